"""The programs in docs/evaluation.md turn files in the published formats into question files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from edgevlm.evaluation import dataset, metrics

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def program(word: str) -> str:
    """Return the only Python program of the document that contains a word."""
    text = DOCUMENT.read_text(encoding="utf-8")
    (found,) = (
        block for block in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S) if word in block
    )
    return str(found)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 3), (9, 9, 9)).save(path)


def run(word: str) -> None:
    exec(compile(program(word), word, "exec"), {})


def test_docvqa(folder: Path) -> None:
    save(folder / "documents" / "xnbl0037_1.png")
    entry = {
        "questionId": 337,
        "question": "What is the date?",
        "question_types": ["handwritten", "form"],
        "image": "documents/xnbl0037_1.png",
        "docId": 279,
        "ucsf_document_id": "xnbl0037",
        "ucsf_document_page_no": "1",
        "answers": ["1/8/93"],
        "data_split": "val",
    }
    data = {"dataset_name": "docvqa", "dataset_version": "1.0", "data": [entry]}
    (folder / "val_v1.0_withQT.json").write_text(json.dumps(data))
    run("docvqa.jsonl")
    (item,) = dataset.read(folder / "docvqa.jsonl")
    assert item.turns[0].startswith("What is the date?\nAnswer")
    assert metrics.score(item.metric, "1/8/95", item.answers) == pytest.approx(5 / 6)
    assert item.images[0].load().size == (4, 3)


def test_textvqa(folder: Path) -> None:
    save(folder / "train_images" / "003a8ae2ef43b901.jpg")
    entry = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck"],
        "image_width": 1024,
        "question_tokens": ["what"],
        "question_id": 34602,
        "set_name": "val",
        "answers": ["nous les gosses", "dakota camera", "dakota digital", *["dakota"] * 7],
    }
    (folder / "TextVQA_0.5.1_val.json").write_text(json.dumps({"data": [entry]}))
    run("TextVQA_0.5.1")
    (item,) = dataset.read(folder / "textvqa.jsonl")
    assert len(item.answers) == 10
    assert metrics.score(item.metric, "Dakota.", item.answers) == 1
    assert metrics.score(item.metric, "dakota digital", item.answers) == pytest.approx(0.3)


def test_vqav2(folder: Path) -> None:
    save(folder / "val2014" / "COCO_val2014_000000262148.jpg")
    question = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
    annotation = {
        "question_type": "none of the above",
        "multiple_choice_answer": "down",
        "answers": [
            {"answer": said, "answer_confidence": "yes", "answer_id": number}
            for number, said in enumerate(["down"] * 3 + ["at table"] * 7, 1)
        ],
        "image_id": 262148,
        "answer_type": "other",
        "question_id": 262148000,
    }
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({"questions": [question]})
    )
    (folder / "v2_mscoco_val2014_annotations.json").write_text(
        json.dumps({"annotations": [annotation]})
    )
    run("v2_mscoco")
    (item,) = dataset.read(folder / "vqav2.jsonl")
    assert (item.task, item.metric) == ("other", "vqa_accuracy")
    assert metrics.score(item.metric, "down", item.answers) == pytest.approx(0.9)


def test_mmmu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry: dict[str, Any] = {f"image_{number}": None for number in range(1, 8)}
    entry |= {
        "id": "validation_Art_1",
        "question": "<image 1> shows which art, and <image 2>?",
        "options": "['still life', 'history']",
        "image_1": Image.new("RGBA", (4, 3)),
        "image_2": Image.new("L", (4, 3)),
        "answer": "B",
        "question_type": "multiple-choice",
    }
    library = ModuleType("datasets")
    other = {**entry, "question_type": "open"}
    monkeypatch.setattr(library, "load_dataset", lambda *_, **__: [entry, other], raising=False)
    monkeypatch.setitem(sys.modules, "datasets", library)
    run("load_dataset")
    (item,) = dataset.read(folder / "mmmu" / "art.jsonl")
    assert item.turns[0].startswith(
        "image 1 shows which art, and image 2?\nA. still life\nB. history\n"
    )
    assert [image.load().size for image in item.images] == [(4, 3), (4, 3)]
    for answer, right in (("B", 1), ("b.", 1), ("(B)", 1), ("B. History", 1), ("A", 0)):
        assert metrics.score(item.metric, answer, item.answers) == right
    assert item.chance == 0.5
