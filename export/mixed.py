"""Choose a vision precision and a type for each matrix of the decoder, for a size or for an error.

Each part has choices, with bytes and a divergence that they cause. Divergences of parts add up. So the best
pair of files of a size is found by steps of the most divergence saved per byte, from the smallest choices on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

from edgevlm.errors import ExportError
from edgevlm.export.sizes import megabytes

Key = TypeVar("Key")


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
    """Return the divergence that the larger choice saves per byte."""
    return (smaller.kl - larger.kl) / (larger.size - smaller.size)


class Frontier(Generic[Key]):
    """The pairs of files that save the most divergence per byte.

    Args:
        parts: choices of each part.
        fixed: bytes of the files that are the same for all choices.
    """

    def __init__(self, parts: Mapping[str, Sequence[Choice[Key]]], fixed: int) -> None:
        self._parts = parts
        self._hulls = {part: convex_choices(choices) for part, choices in parts.items()}
        self._fixed = fixed
        steps = [
            Step(part, index, larger.size - smaller.size, smaller.kl - larger.kl)
            for part, hull in self._hulls.items()
            for index, (smaller, larger) in enumerate(pairwise(hull), 1)
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

    @property
    def smallest_kl(self) -> float:
        """Divergence of the pair that causes the least."""
        return sum(hull[-1].kl for hull in self._hulls.values())

    def fixed_at(self, part: str, key: Key) -> Frontier[Key]:
        """Return the frontier with one choice of a part."""
        only = [choice for choice in self._parts[part] if choice.key == key]
        return Frontier({**self._parts, part: only}, self._fixed)

    def within_size(self, budget: int) -> dict[str, Choice[Key]]:
        """Return the choice of each part that causes the least divergence within a size.

        Raises:
            ExportError: the smallest pair is larger than `budget` bytes.
        """
        left = budget - self.smallest
        if left < 0:
            raise ExportError(
                f"the smallest pair of vision graph and decoder has {megabytes(self.smallest)}, the budget "
                f"is {megabytes(budget)}; raise --budget"
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
