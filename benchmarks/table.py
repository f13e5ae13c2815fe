"""Rows of a comparison, and the Markdown table of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

HEAD = """\
| work | peer | edgevlm | peer | times as good | at least | reached | |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the comparison."""

    work: str
    peer: str
    unit: str
    ours: float
    """Median of edgevlm."""
    theirs: float
    """Median of the peer."""
    ratio: float
    """How many times better edgevlm is."""
    at_least: float | None
    """Required ratio; None: no requirement."""
    note: str = ""
    rounds: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        return None if self.at_least is None else self.ratio >= self.at_least


def compare(
    work: str,
    peer: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    at_least: float | None,
    note: str = "",
    unit: Literal["s", "tokens/s"] = "s",
) -> ComparisonRow:
    """Return the row for measured seconds (fewer are better) or rates (more are better)."""
    a, b = median(ours), median(theirs)
    ratio = b / a if unit == "s" else a / b
    rounds = {"ours": list(ours), "theirs": list(theirs)}
    return ComparisonRow(work, peer, unit, a, b, ratio, at_least, note, rounds)


def line(row: ComparisonRow) -> str:
    """Return a line of the Markdown table."""
    bar = "" if row.at_least is None else f"{row.at_least:.2f}"
    mark = {True: "yes", False: "**no**", None: ""}[row.reached]
    return (
        f"| {row.work} | {row.peer} | {row.ours:.3g} {row.unit} | {row.theirs:.3g} | "
        f"{row.ratio:.2f} | {bar} | {mark} | {row.note} |"
    )
