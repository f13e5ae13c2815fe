"""A comparison's rows, and how they are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.peers import median

HEAD = """\
| work | peer | edgevlm | peer | times as good | at least | reached | |
|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    work: str
    peer: str
    unit: str
    ours: float
    """Median."""
    theirs: float
    ratio: float
    """How many times better ours is."""
    at_least: float | None
    """The ratio that was asked for."""
    note: str = ""
    rounds: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        return None if self.at_least is None else self.ratio >= self.at_least


def times(
    work: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    at_least: float | None,
    note: str = "",
) -> Row:
    """A row of seconds, of which fewer are better."""
    a, b = median(ours), median(theirs)
    return Row(work, peer, "s", a, b, b / a, at_least, note, {"ours": ours, "theirs": theirs})


def rates(
    work: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    at_least: float | None,
    note: str = "",
) -> Row:
    """A row of tokens per second, of which more are better."""
    a, b = median(ours), median(theirs)
    return Row(
        work, peer, "tokens/s", a, b, a / b, at_least, note, {"ours": ours, "theirs": theirs}
    )


def line(row: Row) -> str:
    """A row of the table."""
    bar = "" if row.at_least is None else f"{row.at_least:.2f}"
    mark = {True: "yes", False: "**no**", None: ""}[row.reached]
    return (
        f"| {row.work} | {row.peer} | {row.ours:.3g} {row.unit} | {row.theirs:.3g} | "
        f"{row.ratio:.2f} | {bar} | {mark} | {row.note} |"
    )
