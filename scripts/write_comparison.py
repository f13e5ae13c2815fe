"""Write the results of `python -m benchmarks.comparison` into docs/performance.md.

`python scripts/write_comparison.py` replaces the text between the marks `<!-- table: begin -->` and
`<!-- table: end -->` with one table of all machines in benchmarks/results/, a folder for each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENT = REPOSITORY / "docs" / "performance.md"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
PARTS = ("encoding", "answers", "loading", "decoding")


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """Return work and peer, without the settings that were the peer's best on one machine."""
    return row["work"], row["peer"].partition(" (")[0]


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    ratio = f"{row['ratio']:.{2 if row['ratio'] < 10 else 0}f}"
    if row["reached"] is False:
        ratio = f"**{ratio}**"
    both = f"{row['ours']:.3g} {row['unit']}, {row['theirs']:.3g}"
    return "; ".join(filter(None, (f"{ratio} ({both})", row["note"])))


def table(results: list[dict[str, Any]]) -> str:
    """Return the Markdown table: a line for each work and peer, a column for each machine.

    Args:
        results: the results.json of each machine.
    """
    machines = [{_key(row): row for part in PARTS for row in one[part]["rows"]} for one in results]
    names = [f"{one['encoding']['cpu']}, {one['encoding']['date'][:10]}" for one in results]
    head = " | ".join(["work", "peer", "at least", *names])
    lines = [f"| {head} |", "|---" * (3 + len(names)) + "|"]
    for key in dict.fromkeys(key for machine in machines for key in machine):
        rows = [machine.get(key) for machine in machines]
        bar = next(row["at_least"] for row in rows if row is not None)
        cells = [*key, "" if bar is None else f"{bar:.2f}", *map(_cell, rows)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Write the table."""
    files = sorted(RESULTS.glob("*/results.json"))
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
