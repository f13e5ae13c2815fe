"""`scripts/compare_evaluations.py`: same answers, boxes that are near, answers that differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm.evaluation import report
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.evaluation.runner import Answered, Control
from scripts import compare_evaluations
from scripts.compare_evaluations import compare, near


def result(*answers: str, grey: str = "a star") -> dict[str, Any]:
    """A result as `edgevlm eval --json` writes it; each question has the same wrong images."""
    image = LazyImage("a.png", lambda: Image.new("RGB", (2, 2)))
    item = Item("where", (image,), ("Where is the key?",), ("[1, 2, 3, 4]",), "iou@0.5", "where")
    answered = [Answered(item, answer, Control((image,), "no key", grey)) for answer in answers]
    about = {"model": "m", "device": "d", "versions": {}}
    result: dict[str, Any] = json.loads(json.dumps(about | report.as_dict(answered)))
    return result


def test_boxes_are_near_within_one_percent_a_side() -> None:
    assert near("At [62, 57, 88, 90].", "At [62, 57, 87, 90].")
    assert not near("At [62, 57, 89, 90].", "At [62, 57, 87, 90].")
    assert not near("At [62, 57, 88, 90].", "In [62, 57, 87, 90].")
    assert not near("[62, 57, 88, 90]", "[62, 57, 88]")
    assert not near("red", "green")
    assert not near("[]", "[ ]")


def test_each_kind_of_answer_is_counted() -> None:
    table, agree = compare(
        result("[1, 2, 3, 4]", "[1, 2, 9, 9]"), result("[1, 2, 3, 4]", "[1, 2, 8, 9]")
    )
    assert agree
    assert "| with the question's images | 2 | 1 | 1 | 0 |" in table
    assert "| with other images | 2 | 2 | 0 | 0 |" in table

    table, agree = compare(result("[1, 2, 3, 4]"), result("[1, 2, 3, 4]", grey="a moon"))
    assert not agree
    assert "| with grey images | 1 | 0 | 0 | 1 |" in table
    assert table.endswith("Where is the key? (with grey images): 'a star', 'a moon'")


def test_one_answer_in_twenty_may_differ() -> None:
    first = result(*["red"] * 20)
    table, agree = compare(first, result(*["red"] * 19, "blue"))
    assert agree and "'red', 'blue'" in table
    _, agree = compare(first, result(*["red"] * 18, "blue", "blue"))
    assert not agree


def test_different_questions_are_refused() -> None:
    other = result("[1, 2, 3, 4]")
    other["answers"][0]["turns"] = ["What is it?"]
    with pytest.raises(ValueError, match="not the same question"):
        compare(result("[1, 2, 3, 4]"), other)
    with pytest.raises(ValueError, match="shorter"):
        compare(result("[1, 2, 3, 4]", "a key"), other)


def test_the_exit_code_says_whether_they_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, answer in (("a", "red"), ("b", "red"), ("c", "green")):
        (tmp_path / name).write_text(json.dumps(result(answer)), encoding="utf-8")
    for other, code in (("b", 0), ("c", 1)):
        paths = [str(tmp_path / "a"), str(tmp_path / other)]
        monkeypatch.setattr(sys, "argv", ["compare_evaluations", *paths])
        assert compare_evaluations.main() == code
    assert "'red', 'green'" in capsys.readouterr().out
