"""Write the figures of `edgevlm eval --json FILE` into the docs and the built-in model's cards.

`python scripts/write_figures.py FILE` replaces the text between the marks `<!-- eval: begin -->` and
`<!-- eval: end -->`. A card without marks gets them before its last heading. Only this script writes these
figures, so all of them come from one run.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = (
    "docs/built-in-model.md",
    "training/nano/README.md",
    "edgevlm/models/edgevlm-nano/README.md",
)
BEGIN, END = "<!-- eval: begin -->", "<!-- eval: end -->"
LANGUAGES = {"": "English", " (ru)": "Russian"}


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _right(row: dict[str, Any]) -> str:
    right = row["right"]
    low, high = _percent(right["low"]), _percent(right["high"])
    return f"{_percent(right['share'])} ({low} to {high})"


def _cells(row: dict[str, Any]) -> list[str]:
    difference = row["difference"]
    compared = "" if difference is None else f"{difference['mean']:+.1f}"
    cells = [str(row["items"]), _right(row), compared]
    grounding = row["grounding"]
    if grounding is None:
        return [*cells, "", "", "", ""]
    shares = [grounding["right_with_other"]["share"], grounding["right_with_grey"]["share"]]
    return [*cells, *map(_percent, [*shares, grounding["chance"], grounding["changed"]])]


def tables(result: dict[str, Any]) -> str:
    """Return the tasks as Markdown, a table for each language, all shares in percent."""
    versions = result["versions"]
    head = (
        "| skill | items | right (95 % interval) | to transformers, points | with another image "
        "| with grey | chance | answers changed |\n|---|---|---|---|---|---|---|---|"
    )
    parts = [
        f"{result['date'][:10]}, seed {result['seed']:,}, edgevlm {versions['edgevlm']}, ONNX Runtime "
        f"{versions['onnxruntime']}, llama-cpp-python {versions['llama-cpp-python']}; all shares in "
        "percent."
    ]
    for ending, language in LANGUAGES.items():
        lines = [
            f"| {' | '.join([row['name'].removesuffix(ending), *_cells(row)])} |"
            for row in result["tasks"]
            if row["name"].endswith(" (ru)") == bool(ending)
        ]
        parts.append("\n".join([f"{language}:\n\n{head}", *lines]))
    return "\n\n".join(parts)


def insert(text: str, block: str) -> str:
    """Return the text with the block between its marks."""
    if BEGIN not in text:
        before, heading, after = text.rpartition("\n## ")
        mark = f"\n## What it gets right\n\n{BEGIN}\n{END}\n"
        text = f"{before}{mark}{heading}{after}" if heading else f"{text.rstrip()}\n{mark}"
    start, rest = text.split(BEGIN, 1)
    return f"{start}{BEGIN}\n{block}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="a file that `edgevlm eval --json` wrote")
    result = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    for name in FILES:
        file = REPOSITORY / name
        file.write_text(insert(file.read_text(encoding="utf-8"), tables(result)), encoding="utf-8")


if __name__ == "__main__":
    main()
