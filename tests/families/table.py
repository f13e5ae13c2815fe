"""Write the table of families into the documentation: ``python -m tests.families.table [NAME]``.

Runs the rows whose name contains NAME, as ``pytest -k`` does; without it, all rows. The other rows keep their
figures. A test compares the names in the table with those of the rows.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from tests.families.case import ANSWER_TOKENS, ROWS, Case
from tests.families.row import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- table of families -->", "<!-- end of the table -->"
HEAD = (
    "| `model_type` and variant | what works | compared: images, prompts | error of embeddings | "
    "error of logits | missing | measured |\n|---|---|---|---|---|---|---|"
)
BELOW = (
    f"Measured by `python -m tests.families.table` on {platform.machine()}, with transformers "
    f"{version('transformers')}, onnxruntime {version('onnxruntime')} and llama-cpp-python "
    f"{version('llama-cpp-python')}; answers of {ANSWER_TOKENS} tokens."
)
_TABLE = re.compile(f"(?<={re.escape(BEGIN)}\n).*(?={re.escape(END)})", re.DOTALL)


def measure(row: Row) -> str:
    """Return the line of one row, measured."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(row, Path(folder))
        conversations = len(case.conversations())
        embeddings, logits = case.embeddings_error(), case.logits_error()
        case.vlm.close()
    return (
        f"| {row.name} | {row.works} | {len(row.sizes)}, {conversations} | {embeddings:.0e} | "
        f"{logits:.0e} | {row.missing or '–'} | {datetime.date.today():%d %b %Y} |"
    )


def read_lines(page: str) -> dict[str, str]:
    """Return the lines of the table in a page, by the names of their rows."""
    lines = [line for line in find_table(page).splitlines() if line.startswith("|")]
    return {line.split(" | ")[0].removeprefix("| "): line for line in lines[2:]}


def find_table(page: str) -> str:
    """Return what stands between `BEGIN` and `END`."""
    found = _TABLE.search(page)
    assert found is not None, f"the page lacks {BEGIN} or {END}"
    return found[0]


def replace_table(page: str, lines: Mapping[str, str]) -> str:
    """Return the page with these lines, in the order of the rows."""
    ordered = [lines[row.name] for row in ROWS if row.name in lines]
    table = "\n".join(["", HEAD, *ordered, "", BELOW, "", ""])
    return _TABLE.sub(lambda match: table, page)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure rows and write the page."""
    parser = argparse.ArgumentParser(description="Write the table of families.")
    parser.add_argument(
        "name", nargs="?", default="", metavar="NAME", help="part of the names of rows"
    )
    name = parser.parse_args(arguments).name
    chosen = [row for row in ROWS if name in row.name]
    if not chosen:
        parser.error(f"no row has {name!r} in its name: {', '.join(row.name for row in ROWS)}")
    page = PAGE.read_text(encoding="utf-8")
    lines = read_lines(page) if name else {}
    if lines and BELOW not in page:
        parser.error(
            f"the rows in {PAGE} were measured with other versions or on another machine; run it without NAME"
        )
    for row in chosen:
        lines[row.name] = measure(row)
        print(lines[row.name], flush=True)
    PAGE.write_text(replace_table(page, lines), encoding="utf-8")


if __name__ == "__main__":
    main()
