"""Write what `python -m benchmarks.comparison` measured into docs/performance.md and the README.

`python -m scripts.write_comparison` replaces the text between the marks `<!-- table: begin -->` and
`<!-- table: end -->` of docs/performance.md by one table of all machines in benchmarks/results/, a folder
for each, and that between the same marks of the README by a few rows of one machine. The table between the
marks of ``native images`` is that of `benchmarks.native_images`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import native_images

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENT = REPOSITORY / "docs" / "performance.md"
README = REPOSITORY / "README.md"
README_MACHINE = RESULTS / "epyc" / "results.json"
README_ROWS = {
    "first token: 17 tiles": "first token, image in 17 tiles",
    "first token: camera frame, detail auto": 'first token, camera frame with `detail="auto"`',
    "first token of a second question: 17 tiles": "first token, second question about the 17 tiles",
    "first token of the next turn, after 3 frames": "first token, next turn after three frames",
    "load, warm page cache": "load, files in the page cache",
    "peak memory, 17 tiles": "peak memory, image in 17 tiles",
}
"""Work in the results to its words in the README."""
NATIVE_IMAGES = RESULTS / "epyc" / "native_images.json"
PARTS = ("encoding", "answers", "loading", "decoding")


def _key(row: dict[str, Any]) -> tuple[str, str]:
    """The work and the peer, without the settings that were the peer's best on one machine."""
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
    """Markdown: a line for each work and peer, a column for each machine.

    Args:
        results: what `benchmarks.comparison` wrote, parts by name.
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


def summary(result: dict[str, Any]) -> str:
    """Return the README's rows of one machine as Markdown, beside llama.cpp's multimodal stack."""
    rows = {row["work"]: row for part in PARTS for row in result[part]["rows"]}
    lines = ["| | edgevlm | llama.cpp's own | times as good |", "|---|---|---|---|"]
    for work, words in README_ROWS.items():
        row = rows[work]
        ratio = f"{row['ratio']:.{1 if row['ratio'] < 10 else 0}f}"
        unit = row["unit"]
        lines.append(
            f"| {words} | {row['ours']:.3g} {unit} | {row['theirs']:.3g} {unit} | {ratio} |"
        )
    return "\n".join(lines)


def put(path: Path, block: str, name: str = "table") -> None:
    """Replace the text between a document's marks."""
    begin, end = (f"<!-- {name}: {mark} -->" for mark in ("begin", "end"))
    before, rest = path.read_text(encoding="utf-8").split(begin)
    path.write_text(f"{before}{begin}\n{block}\n{end}{rest.split(end)[1]}", encoding="utf-8")


def main() -> None:
    files = sorted(RESULTS.glob("*/results.json"))
    put(DOCUMENT, table([json.loads(file.read_text(encoding="utf-8")) for file in files]))
    put(README, summary(json.loads(README_MACHINE.read_text(encoding="utf-8"))))
    result = json.loads(NATIVE_IMAGES.read_text(encoding="utf-8"))
    put(DOCUMENT, native_images.table(result), "native images")


if __name__ == "__main__":
    main()
