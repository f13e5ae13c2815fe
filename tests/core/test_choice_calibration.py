"""``choice_calibration.json``: what `VLM.choose` makes of it, and which files are refused."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import VLM, Bundle
from edgevlm.choice_calibration import (
    FILE_NAME,
    ChoiceCalibration,
    MeasuredTemperature,
    scale_logprobs,
)
from edgevlm.errors import BundleError
from tests.support.oracle import BUNDLES

GREY = np.full((32, 32, 3), 128, np.uint8)
QUESTION = "What is this?"
CHOICES = ["red", "a green square", "blue"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A copy of a bundle of one vision graph and one decoder."""
    shutil.copytree(BUNDLES / "smolvlm", tmp_path / "bundle")
    return Bundle.open(tmp_path / "bundle")


def measured(bundle: Bundle, temperature: float = 2.0) -> MeasuredTemperature:
    (vision,) = bundle.manifest.vision.files.values()
    (decoder,) = bundle.manifest.decoder.files.values()
    return MeasuredTemperature(
        vision=vision.sha256,
        decoder=decoder.sha256,
        temperature=temperature,
        questions=100,
        questions_file="0" * 64,
        error_before=0.2,
        error_after=0.1,
        device="vision cpu, decoder cpu",
        date="2026-11-27T00:00:00+00:00",
    )


def write(bundle: Bundle, content: dict[str, Any]) -> None:
    (bundle.folder / FILE_NAME).write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 20.0])
def test_choose_divides_the_log_probabilities(bundle: Bundle, temperature: float) -> None:
    with VLM.from_pretrained(bundle.folder, threads=1) as vlm:
        plain = vlm.choose(GREY, QUESTION, CHOICES)
        scores = vlm.score(GREY, QUESTION, CHOICES)
    assert not plain.calibrated
    assert plain.probabilities == pytest.approx({one.text: one.probability for one in scores})
    bundle.choice_calibration.with_temperature(measured(bundle, temperature)).save(bundle.folder)
    with VLM.from_pretrained(bundle.folder, threads=1) as vlm:
        choice = vlm.choose(GREY, QUESTION, CHOICES)
        again = vlm.score(GREY, QUESTION, CHOICES)
    weights = [math.exp((one.logprob - scores[0].logprob) / temperature) for one in scores]
    wanted = [weight / sum(weights) for weight in weights]
    assert choice.calibrated
    assert list(choice.probabilities) == CHOICES
    assert list(choice.probabilities.values()) == pytest.approx(wanted)
    assert choice.label == plain.label
    assert choice.margin == pytest.approx(sorted(wanted)[-1] - sorted(wanted)[-2])
    assert again == scores, "score gives the model's own probabilities"


def test_one_temperature_for_each_pair_of_files(bundle: Bundle) -> None:
    one = measured(bundle)
    other = dataclasses.replace(one, decoder="1" * 64, temperature=3.0)
    both = bundle.choice_calibration.with_temperature(one).with_temperature(other)
    (vision,) = bundle.manifest.vision.files.values()
    (decoder,) = bundle.manifest.decoder.files.values()
    assert both.find(vision, decoder) == one
    assert both.find(vision, dataclasses.replace(decoder, sha256="1" * 64)) == other
    assert both.find(dataclasses.replace(vision, sha256="1" * 64), decoder) is None
    newer = dataclasses.replace(one, temperature=1.5)
    assert both.with_temperature(newer).temperatures == (other, newer)


def test_what_is_saved_is_loaded(bundle: Bundle) -> None:
    assert bundle.choice_calibration == ChoiceCalibration()
    saved = bundle.choice_calibration.with_temperature(measured(bundle))
    saved.save(bundle.folder)
    assert Bundle.open(bundle.folder).choice_calibration == saved
    assert not list(bundle.folder.glob(".*"))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"temperature": 0}, "temperatures[0].temperature: must be from 0.05 to 20.0, is 0"),
        (
            {"temperature": math.nan},
            "temperatures[0].temperature: must be from 0.05 to 20.0, is nan",
        ),
        ({"temperature": "2"}, "temperatures[0].temperature: must be float, is '2'"),
        ({"vision": "x"}, "temperatures[0].vision: must be 64 lower-case hexadecimal digits"),
        ({"questions": 0}, "temperatures[0].questions: must be positive"),
        ({"error_after": 2}, "temperatures[0].error_after: must be from 0 to 1"),
        ({"bias": 1}, "temperatures[0].bias: unknown field"),
        ({"vision": "0" * 64}, "is not of this bundle: it has a temperature for a vision file"),
        ({"decoder": "0" * 64}, "is not of this bundle: it has a temperature for a decoder file"),
    ],
)
def test_damaged_and_foreign_temperatures_are_refused(
    bundle: Bundle, change: dict[str, Any], complaint: str
) -> None:
    entry = dataclasses.asdict(measured(bundle)) | change
    write(bundle, {"schema_version": 1, "temperatures": [entry]})
    with pytest.raises(BundleError) as raised:
        Bundle.open(bundle.folder)
    assert complaint in str(raised.value)
    remedy = f"delete {bundle.folder / FILE_NAME} and run 'edgevlm calibrate' again"
    assert str(raised.value).endswith(remedy)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cannot be read (Expecting value"),
        (b'{"schema_version": 1, "temper', "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[]", "choice_calibration: must be an object, is []"),
        (b'{"schema_version": 2}', "schema_version: must be 1; if a newer edgevlm wrote"),
    ],
)
def test_damaged_files_are_refused(bundle: Bundle, content: bytes, complaint: str) -> None:
    (bundle.folder / FILE_NAME).write_bytes(content)
    with pytest.raises(BundleError) as raised:
        VLM.from_pretrained(bundle.folder)
    assert complaint in str(raised.value)
    assert "delete" in str(raised.value)


def test_a_pair_of_files_has_one_temperature(bundle: Bundle) -> None:
    entry = dataclasses.asdict(measured(bundle))
    write(bundle, {"schema_version": 1, "temperatures": [entry, entry]})
    with pytest.raises(BundleError, match="must not name a pair of files twice"):
        Bundle.open(bundle.folder)


def test_a_failed_write_leaves_the_old_file(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = bundle.choice_calibration.with_temperature(measured(bundle))
    saved.save(bundle.folder)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(ValueError, match=r"cannot write .*No space left on device"):
        saved.with_temperature(measured(bundle, 9.0)).save(bundle.folder)
    monkeypatch.undo()
    assert Bundle.open(bundle.folder).choice_calibration == saved


def test_a_choice_that_does_not_exist_has_no_probability() -> None:
    scaled = scale_logprobs(np.array([[-1.0, -2.0, -np.inf], [-3.0, -3.0, -3.0]]), 2.0)
    assert np.exp(scaled).sum(axis=1) == pytest.approx([1, 1])
    assert np.exp(scaled[:, 2]) == pytest.approx([0, 1 / 3])
    assert scaled[0, 0] - scaled[0, 1] == pytest.approx(0.5)


def test_a_download_takes_the_temperatures(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot(*_: object, allow_patterns: list[str], **__: object) -> str:
        asked.append(allow_patterns)
        return str(bundle.folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    bundle.choice_calibration.with_temperature(measured(bundle)).save(bundle.folder)
    found = Bundle.open("somebody/some-bundle").choice_calibration
    assert FILE_NAME in asked[0]
    assert found.temperatures == (measured(bundle),)
