"""Compare two results of `edgevlm eval --json`: python -m scripts.compare_evaluations FIRST SECOND

Both must have the answers to the same questions. Two answers agree if they are the same text, or the same
text with the sides of a box at most one percent apart. Kernels of different CPUs round differently, so an
answer can differ where two tokens are about equally likely. The exit code is 0 if enough answers agree.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ANSWERS = {
    "with the question's images": "said",
    "with other images": "said_with_other",
    "with grey images": "said_with_grey",
}
"""Name of a row in the table to the key of its answers."""

MAX_DISTANCE = 1.0
"""Percent of the image between the sides of two boxes that agree."""

MIN_AGREEMENT = 0.95
"""Share of the answers in each row of the table that must agree."""

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_BOX = re.compile(r"\[[-\d., ]+\]")


def near(first: str, second: str) -> bool:
    """Return whether two answers have the same text around boxes that differ by at most `MAX_DISTANCE`."""
    boxes = _BOX.findall(first), _BOX.findall(second)
    if not boxes[0] or _BOX.sub("[]", first) != _BOX.sub("[]", second):
        return False
    numbers = [[float(number) for number in _NUMBER.findall("".join(found))] for found in boxes]
    return len(numbers[0]) == len(numbers[1]) and all(
        abs(one - other) <= MAX_DISTANCE for one, other in zip(*numbers, strict=True)
    )


def compare(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, bool]:
    """Compare two results.

    Returns:
        A table in Markdown with the answers that differ below it, and whether enough answers agree.

    Raises:
        ValueError: the results are of different questions.
    """
    pairs = list(zip(first["answers"], second["answers"], strict=True))
    lines = [
        "| answers | questions | same text | box within 1 % | other |",
        "|---|---|---|---|---|",
    ]
    others = []
    enough = True
    for name, key in ANSWERS.items():
        same = close = 0
        asked = [(one, two) for one, two in pairs if key in one or key in two]
        for one, two in asked:
            if (one["images"], one["turns"]) != (two["images"], two["turns"]):
                raise ValueError(f"not the same question: {one['turns']} and {two['turns']}")
            if one[key] == two[key]:
                same += 1
            elif near(one[key], two[key]):
                close += 1
            else:
                others.append(f"{one['turns'][-1]} ({name}): {one[key]!r}, {two[key]!r}")
        other = len(asked) - same - close
        enough = enough and same + close >= MIN_AGREEMENT * len(asked)
        lines.append(f"| {name} | {len(asked)} | {same} | {close} | {other} |")
    return "\n".join([*lines, "", *others]).rstrip(), enough


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare two results of `edgevlm eval --json`.")
    parser.add_argument("first", metavar="FIRST", type=Path)
    parser.add_argument("second", metavar="SECOND", type=Path)
    arguments = parser.parse_args()
    results = [
        json.loads(path.read_text(encoding="utf-8")) for path in (arguments.first, arguments.second)
    ]
    for path, result in zip((arguments.first, arguments.second), results, strict=True):
        print(f"{path.name}: {result['model']} on {result['device']}, {result['versions']}")
    try:
        table, agree = compare(*results)
    except ValueError as error:
        parser.error(str(error))
    print(f"\n{table}")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
