"""Write the table of families into the documentation: ``python -m tests.families.table``.

Runs every row as the tests do. The figures are those of this machine; the names are checked by a test.
"""

from __future__ import annotations

import datetime
import platform
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.families.case import ANSWER_TOKENS, ROWS, Case
from tests.families.row import Row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- table of families -->", "<!-- end of the table -->"
HEAD = (
    "| `model_type` and variant | what works | compared: images, prompts | error of embeddings | "
    "error of logits | missing |\n|---|---|---|---|---|---|"
)


def measure(row: Row) -> str:
    """Return the line of one row, measured."""
    with tempfile.TemporaryDirectory() as folder:
        case = Case(row, Path(folder))
        conversations = len(case.conversations())
        embeddings, logits = case.embeddings_error(), case.logits_error()
        case.vlm.close()
    return (
        f"| {row.name} | {row.works} | {len(row.sizes)}, {conversations} | {embeddings:.0e} | "
        f"{logits:.0e} | {row.missing or '–'} |"
    )


def main() -> None:
    """Measure all rows and write the page."""
    lines = []
    for row in ROWS:
        lines.append(measure(row))
        print(lines[-1], flush=True)
    measured = (
        f"Measured by `python -m tests.families.table` on {datetime.date.today():%d %B %Y}, "
        f"{platform.machine()}, with transformers {version('transformers')}, "
        f"onnxruntime {version('onnxruntime')} and llama-cpp-python {version('llama-cpp-python')}; "
        f"answers of {ANSWER_TOKENS} tokens."
    )
    table = "\n".join([BEGIN, "", HEAD, *lines, "", measured, "", END])
    page = PAGE.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    PAGE.write_text(pattern.sub(lambda match: table, page), encoding="utf-8")


if __name__ == "__main__":
    main()
