"""Write the results of JSON Schema's test suite into docs/json-schemas.md.

`python -m scripts.write_json_schema_tables` runs the suite and replaces the text between the marks
`<!-- suite: begin -->` and `<!-- suite: end -->`.
"""

from __future__ import annotations

from pathlib import Path

from tests.support import json_schema_suite
from tests.support.json_schema_suite import Report, Result

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "json-schemas.md"
BEGIN, END = "<!-- suite: begin -->\n", "<!-- suite: end -->"
HEAD = (
    "schemas kept to",
    "schemas refused",
    "valid values allowed",
    "valid values excluded",
    "invalid values refused",
)


def tables(report: Report) -> str:
    """Return the results as Markdown: keywords, formats, and the optional tests."""
    parts: dict[str, list[str]] = {"keyword": [], "format": [], "optional tests": []}
    total = Result()
    for topic, result in report.topics.items():
        folder, _, name = topic.rpartition("/")
        kind = {"": "keyword", "optional": "optional tests", "optional/format": "format"}[folder]
        parts[kind].append(_row(f"`{name}`", result))
        total.kept += result.kept
        total.refused += result.refused
        total.valid += result.valid
        total.excluded += result.excluded
        total.invalid += result.invalid
        total.wrong += result.wrong
    summary = (
        f"{total.kept + total.refused} schemas: {total.kept} are kept to, {total.refused} are refused. "
        f"{total.valid + total.excluded + total.invalid} values: {total.valid} valid ones are allowed, "
        f"{total.excluded} are excluded by the rules above, {total.invalid} invalid ones are refused. "
        f"Wrong: {len(total.wrong) or 'none'}."
    )
    text = [summary]
    for kind, rows in parts.items():
        head = f"| {kind} | {' | '.join(HEAD)} |\n|---{'|---:' * len(HEAD)}|"
        text.append("\n".join([head, *rows]))
    return "\n\n".join(text) + "\n"


def _row(name: str, result: Result) -> str:
    counts = (result.kept, result.refused, result.valid, result.excluded, result.invalid)
    return f"| {name} | {' | '.join(map(str, counts))} |"


def insert(document: str, text: str) -> str:
    """Return the document with the text between its marks."""
    before, rest = document.split(BEGIN)
    return f"{before}{BEGIN}{text}{END}{rest.split(END)[1]}"


def main() -> None:
    text = tables(json_schema_suite.run())
    DOCUMENT.write_text(insert(DOCUMENT.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
