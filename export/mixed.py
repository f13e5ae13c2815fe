"""Choose a vision precision and a type for each matrix of the decoder, for a size or for an error.

Each part has choices, with bytes and a divergence that they cause. Divergences of parts add up. So the best
pair of files of a size is found by steps of the most divergence saved per byte, from the smallest choices on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from edgevlm.errors import ExportError

Key = TypeVar("Key")

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class Choice(Generic[Key]):
    """A type or precision of one part."""

    key: Key
    size: int
    """Bytes in the file."""
    kl: float
    """Divergence in nats that it causes alone."""


@dataclass(frozen=True)
class Step:
    """A change of one part to its next larger choice."""

    part: str
    index: int
    size: int
    """Bytes that it adds."""
    kl: float
    """Divergence that it saves."""


def convex_choices(choices: Sequence[Choice[Key]]) -> list[Choice[Key]]:
    """Return the choices on the lower convex hull of divergence over size, by size.

    Each further one saves less divergence per byte than the one before.
    """
    hull: list[Choice[Key]] = []
    for choice in sorted(choices, key=lambda one: (one.size, one.kl)):
        if hull and choice.kl >= hull[-1].kl:
            continue
        while len(hull) > 1 and slope(hull[-2], hull[-1]) <= slope(hull[-2], choice):
            hull.pop()
        hull.append(choice)
    return hull


def slope(smaller: Choice[Key], larger: Choice[Key]) -> float:
    """Return the divergence saved per byte, negated so that it orders as the hull needs: larger is worse."""
    return (smaller.kl - larger.kl) / (larger.size - smaller.size)


class Frontier(Generic[Key]):
    """The pairs of files that save the most divergence per byte.

    Args:
        parts: choices of each part.
        fixed: bytes of the files that are the same for all choices.
    """

    def __init__(self, parts: Mapping[str, Sequence[Choice[Key]]], fixed: int) -> None:
        self._hulls = {part: convex_choices(choices) for part, choices in parts.items()}
        self._fixed = fixed
        steps = [
            Step(part, index, larger.size - smaller.size, smaller.kl - larger.kl)
            for part, hull in self._hulls.items()
            for index, (smaller, larger) in enumerate(zip(hull, hull[1:], strict=False), 1)
        ]
        self._steps = sorted(steps, key=lambda step: -step.kl / step.size)

    @property
    def smallest(self) -> int:
        """Bytes of the smallest pair."""
        return self._fixed + sum(hull[0].size for hull in self._hulls.values())

    @property
    def largest_kl(self) -> float:
        """Divergence of the smallest pair."""
        return sum(hull[0].kl for hull in self._hulls.values())

    def within_size(self, budget: int) -> dict[str, Choice[Key]]:
        """Return the choice of each part that causes the least divergence within a size.

        Raises:
            ExportError: the smallest pair is larger than `budget` bytes.
        """
        left = budget - self.smallest
        if left < 0:
            raise ExportError(
                f"the smallest pair of vision graph and decoder has {megabytes(self.smallest)}, the budget is "
                f"{megabytes(budget)}; raise --budget"
            )
        chosen = dict.fromkeys(self._hulls, 0)
        for step in self._steps:
            if step.size <= left and chosen[step.part] == step.index - 1:
                chosen[step.part] = step.index
                left -= step.size
        return self._choices(chosen)

    def within_kl(self, bound: float) -> dict[str, Choice[Key]]:
        """Return the choice of each part in the smallest pair whose divergence is at most `bound`."""
        chosen = dict.fromkeys(self._hulls, 0)
        left = self.largest_kl
        for step in self._steps:
            if left <= bound:
                break
            chosen[step.part] = step.index
            left -= step.kl
        return self._choices(chosen)

    def _choices(self, chosen: Mapping[str, int]) -> dict[str, Choice[Key]]:
        return {part: hull[chosen[part]] for part, hull in self._hulls.items()}


def parse_size(text: str) -> int:
    """Return the bytes of a size such as ``150MB`` or ``1.5GiB``.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no size; write bytes, or a number with KB, MB, GB or MiB")
    return int(float(match[1]) * UNITS[(match[2] or "").upper()])


def megabytes(size: int) -> str:
    """Return a size in decimal megabytes."""
    return f"{size / 1e6:.1f} MB"
