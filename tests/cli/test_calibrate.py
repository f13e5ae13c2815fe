"""``edgevlm calibrate`` on the built-in model, which sees blurred drawings and is too sure of them."""

from __future__ import annotations

import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from edgevlm import VLM, Bundle, cli
from edgevlm.bundle import BUILT_IN
from edgevlm.choice_calibration import FILE_NAME
from edgevlm.evaluation import dataset, test_set
from edgevlm.evaluation.dataset import LazyImage

NANO = BUILT_IN / "edgevlm-nano"
SEED = 90_002
"""A seed that neither training nor `edgevlm eval` uses."""


def blurred(image: LazyImage) -> Image.Image:
    """Return the image as an unfocused camera sees it, small enough for a quick test."""
    return image.load().resize((160, 160)).filter(ImageFilter.GaussianBlur(4))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A question file of which 60 lines and more have choices."""
    items = [
        replace(
            item,
            images=tuple(LazyImage(image.name, partial(blurred, image)) for image in item.images),
        )
        for item in test_set.items(5, SEED)
        if item.choices or item.task == "point"
    ]
    folder = tmp_path_factory.mktemp("questions") / "set"
    dataset.write(folder, items)
    return folder / dataset.FILE_NAME


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "nano"
    shutil.copytree(NANO, folder)
    return folder


def test_calibrate_stores_a_temperature_that_choose_uses(
    nano: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["calibrate", str(nano), str(questions)]) == 0
    out, err = capsys.readouterr()
    items = [item for item in dataset.read(questions) if item.choices]
    assert f"{len(items)} of {len(items) + 5} questions have choices" in err
    assert f"with decoder.q8_0.gguf stored in {nano / FILE_NAME}" in err
    assert f"{len(items)} questions, chosen right" in out
    for row in ("expected calibration error", "negative log-likelihood", "Brier score"):
        assert f"| {row} " in out
    assert "Reliability at temperature 1:" in out
    (measured,) = Bundle.open(nano).choice_calibration.temperatures
    assert measured.questions == len(items) >= 50
    assert 1.2 < measured.temperature < 10, "the model is too sure"
    assert f"temperature {measured.temperature:.2f} (95 % interval" in out

    item = items[0]
    with VLM.from_pretrained(nano, threads=1) as vlm:
        images = [image.load() for image in item.images]
        choice = vlm.choose(images, item.turns[0], item.choices)
        scores = vlm.score(images, item.turns[0], item.choices)
    weights = [math.exp(one.logprob / measured.temperature) for one in scores]
    assert choice.calibrated
    assert list(choice.probabilities.values()) == pytest.approx(
        [weight / sum(weights) for weight in weights]
    )
    assert cli.main(["inspect", str(nano)]) == 0
    assert (
        f"choices       int8 with q8_0: temperature {measured.temperature:.2f}"
        in capsys.readouterr().out
    )


def test_a_dry_run_stores_nothing(questions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["calibrate", str(NANO), str(questions), "--dry-run", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["model"] == "edgevlm-nano"
    assert result["low"] < result["temperature"] < result["high"]
    for scores in (result["before"], result["after"]):
        assert sum(one["questions"] for one in scores["bins"]) == result["questions"]
    assert (
        result["after"]["negative_log_likelihood"]["mean"]
        < result["before"]["negative_log_likelihood"]["mean"]
    )
    assert "stored" not in err
    assert not (NANO / FILE_NAME).exists()


def test_a_folder_that_cannot_be_written_to_is_refused_before_the_work(
    nano: Path,
    questions: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_model(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(VLM, "from_pretrained", no_model)
    assert cli.main(["calibrate", "edgevlm-nano", str(questions)]) == 1
    complaint = capsys.readouterr().err
    assert "edgevlm-nano is part of the edgevlm package" in complaint
    assert f"cp -rL {NANO} ./edgevlm-nano && edgevlm calibrate ./edgevlm-nano" in complaint
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cli.main(["calibrate", str(nano), str(questions)]) == 1
    assert f"the bundle folder {nano} cannot be written to; copy it" in capsys.readouterr().err


def test_few_questions_are_refused(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = {"turns": ["Is it red?"], "answers": ["yes"], "choices": ["yes", "no"]}
    (tmp_path / "few.jsonl").write_text(f"{json.dumps(line)}\n" * 49)
    before = (nano / FILE_NAME).read_bytes() if (nano / FILE_NAME).exists() else None
    assert cli.main(["calibrate", str(nano), str(tmp_path / "few.jsonl")]) == 1
    assert "49 questions have 'choices'; at least 50 are needed" in capsys.readouterr().err
    after = (nano / FILE_NAME).read_bytes() if (nano / FILE_NAME).exists() else None
    assert after == before
