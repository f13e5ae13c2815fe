"""The benchmarks run on a tiny model; the tests do not check the measured times."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import native_images, recall, reliability
from edgevlm import VLM
from edgevlm.choice_calibration import scale_logprobs
from edgevlm.evaluation import calibration
from edgevlm.evaluation.temperature_scaling import ScoredChoices
from edgevlm.runtimes import system
from tests.families import real_shapes
from tests.support.checkpoints import smolvlm

ROOT = Path(__file__).resolve().parents[2]


def run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    smolvlm(folder / "checkpoint", dtype=torch.bfloat16, max_position_embeddings=8192)
    return folder


@pytest.fixture(scope="module")
def compared(folder: Path) -> dict[str, Any]:
    run("comparison", str(folder), "--rounds", "1")
    result: dict[str, Any] = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return result


def test_every_peer_is_measured(compared: dict[str, Any]) -> None:
    rows = [row for part in compared.values() for row in part["rows"]]
    assert {row["peer"].split(",")[0] for row in rows} >= {
        "llama.cpp mtmd f16",
        "MTMDChatHandler",
        "bare llama.cpp",
        "llama.cpp's default settings",
    }
    for row in rows:
        assert min(row["ours"], row["theirs"]) > 0 and math.isfinite(row["ratio"])
        better = row["theirs"] / row["ours"]
        assert row["ratio"] == pytest.approx(better if row["unit"] != "tokens/s" else 1 / better)
        assert row["reached"] == (
            None if row["at_least"] is None else row["ratio"] >= row["at_least"]
        )


def test_the_peers_see_the_same(compared: dict[str, Any]) -> None:
    """All peers give the embeddings of transformers: a peer with wrong weights would be useless."""
    errors = compared["encoding"]["errors"]
    notes = {row["work"]: row["note"] for row in compared["encoding"]["rows"]}
    flags = system.cpu_flags()
    floats = "bf16" if "avx512_bf16" in flags and "amx_bf16" not in flags else "f32"
    assert f"OpenVINO CPU {floats}" in notes["encode one tile: openvino"]
    assert errors["onnx_fp32"] < 1e-5
    assert errors["openvino"] < (2e-2 if floats == "bf16" else 1e-5)
    assert errors["torch_bf16"] < 2e-2
    assert errors["mtmd"] < 0.05  # it resizes the image in its own way
    assert max(errors["onnx_int8"], errors["openvino_int8"]) < 0.05


def test_first_tokens_are_split_into_phases(compared: dict[str, Any]) -> None:
    answers = compared["answers"]
    works = {row["work"]: row["ours"] for row in answers["rows"]}
    assert len(answers["phases"]) == 5
    for work, phases in answers["phases"].items():
        assert 0 < sum(phases.values()) <= works[work]


def test_growth_is_measured_and_everything_is_drawn(folder: Path, compared: dict[str, Any]) -> None:
    run("growth", str(folder), "--rounds", "1")
    grown = json.loads((folder / "growth.json").read_text(encoding="utf-8"))
    assert [cost["tiles"] for cost in grown["pictures"]] == [1, 2, 3, 4, 6, 8]
    assert grown["tiles"][0]["tiles"] == 1 and grown["tiles"][-1]["tiles"] == 68
    assert list(grown["answer"]) == ["1", "32", "128", "512"]
    run("plots", str(folder))
    for name in ("first_tokens", "ratios", "growth"):
        with Image.open(folder / f"{name}.png") as plot:
            assert plot.width > 700


def test_copies_are_measured(folder: Path, compared: dict[str, Any]) -> None:
    run("camera", str(folder), "--rounds", "1")
    found = json.loads((folder / "camera.json").read_text(encoding="utf-8"))
    assert found["frames"]["positions"] > 0 and found["frames"]["copied MB"] > 0
    assert all(value > 0 for value in found["conversations"].values())


def test_the_cost_of_a_frame_is_measured(folder: Path) -> None:
    run("frame_cost", str(folder), "--rounds", "1")
    found = json.loads((folder / "frame_cost.json").read_text(encoding="utf-8"))
    assert found["watch, ms"] > 0 and found["bare encode and decode, ms"] > 0


def test_memories_are_measured_and_drawn(tmp_path: Path) -> None:
    samples = tmp_path / "memory-nano.csv"
    found = json.loads(run("memory", "--frames", "60", "--sources", "2", "--samples", str(samples)))
    assert found["its copy, MB"] > 1 and found["same label"].endswith(" of 40")
    assert len(samples.read_text(encoding="utf-8").splitlines()) == 2
    run("plots", str(tmp_path))
    with Image.open(tmp_path / "memory.png") as plot:
        assert plot.width > 700


def test_deadlines_are_measured(folder: Path) -> None:
    run("deadlines", str(folder), "--rounds", "1")
    found = json.loads((folder / "deadlines.json").read_text(encoding="utf-8"))
    assert found["others"] < 1
    for model in ("edgevlm-nano", "SmolVLM-256M's shape"):
        assert list(found[model]) == ["0.1 s", "0.3 s", "1.0 s"]
        for settings in found[model].values():
            for values in settings.values():
                assert values["late"] in (0, 1)
                assert (values["late"] == 1) == (values["latest ms"] > 0)


def test_settings_are_compared(folder: Path, compared: dict[str, Any]) -> None:
    run("settings", str(folder), "--rounds", "1")
    found = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    assert len(found["memory_mb"]) == 4 and min(found["memory_mb"].values()) > 50
    assert list(found["tiles"]) == ["1", "2", "4", "8"]
    assert len(found["decoder"]) == 7  # the heads of the tiny model are too small for Q8_0
    assert all(list(rates) == ["16", "450", "1100", "2200"] for rates in found["decoder"].values())


def test_operators_and_drafts_are_told(folder: Path, compared: dict[str, Any]) -> None:
    assert "MatMul" in run("operators", str(folder / "bundle" / "vision.int8.onnx"))
    assert run("drafts").count("times as fast") == 9


def test_samplers_are_compared() -> None:
    assert run("samplers", "--rounds", "1").count("NumPy") == 14


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tiny towers that get images of the real sizes."""
    folder = tmp_path_factory.mktemp("native")
    for name, where in native_images.SHAPES.items():
        shape = real_shapes.SHAPES[name]
        kinds = ["conv", "full_attention"] * 2
        text = {"layer_types": kinds} if "layer_types" in shape.text else {}
        vision = {"patch_size": 16, "hidden_size": 64, "num_attention_heads": 4}
        tiny = dataclasses.replace(shape, vision=vision, text=text, config={})
        real_shapes.build(tiny, folder / where)
    run("native_images", str(folder), "--rounds", "1")
    result = json.loads((folder / "native_images.json").read_text(encoding="utf-8"))
    shapes: dict[str, Any] = result["shapes"]
    return shapes


@pytest.mark.slow
def test_native_images_are_the_same_in_llama_cpp(native: dict[str, Any]) -> None:
    assert {name: shape["image_tokens"] for name, shape in native.items()} == {
        "LFM2-VL 450M": 18 * 13,
        "Qwen3-VL 2B": 20 * 15,
    }
    for shape in native.values():
        errors = shape["errors"]
        assert errors["mtmd f16"] < 3e-3 and max(errors.values()) < 0.05


@pytest.mark.slow
def test_nothing_of_a_native_image_is_computed_twice(native: dict[str, Any]) -> None:
    for shape in native.values():
        for setup, values in shape["values"].items():
            assert min(values["first token"] + values["second question"]) > 0
            if setup.startswith("edgevlm"):
                whole, again = (
                    values[f"{name} positions"][0] for name in ("prompt", "second question")
                )
                assert again < whole - shape["image_tokens"]


def test_the_event_loop_is_measured() -> None:
    told = run("event_loop", "--rounds", "1", "--requests", "8")
    assert "µs for each of 14 chunks" in told and "8 requests at once" in told


def test_the_documents_have_what_was_measured() -> None:
    results = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))
    written = runpy.run_path(str(ROOT / "scripts" / "write_comparison.py"))
    table = written["table"]([json.loads(file.read_text(encoding="utf-8")) for file in results])
    assert table.count("\n") > 20
    measured = json.loads(written["NATIVE_IMAGES"].read_text(encoding="utf-8"))
    document = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert table in document and native_images.table(measured) in document
    summary = written["summary"](json.loads(written["README_MACHINE"].read_text(encoding="utf-8")))
    assert summary in (ROOT / "README.md").read_text(encoding="utf-8")


def test_reliability_is_written_and_drawn(tmp_path: Path) -> None:
    measured = json.loads(
        (ROOT / "benchmarks" / "results" / "epyc" / "reliability.json").read_text(encoding="utf-8")
    )
    document = (ROOT / "docs" / "typed-answers.md").read_text(encoding="utf-8")
    assert reliability.table(measured) in document
    generator = np.random.default_rng(0)
    logprobs = scale_logprobs(generator.normal(size=(300, 4)), 0.3)
    right = (np.exp(logprobs).cumsum(axis=1) < generator.random((300, 1))).sum(axis=1).clip(max=3)
    result = calibration.calibrate(ScoredChoices(logprobs, right, np.arange(300)))
    reliability.draw({"one": result, "other": result}, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as plot:
        assert plot.width > 700
    assert (tmp_path / "plot.png").stat().st_size < 60_000


def test_recalled_labels_are_compared_with_what_was_shown() -> None:
    colors = ["red", "green", "blue", "red", "black", "white", "green", "blue", "red", "black"]
    shown = dict(enumerate(colors))
    before = {at: colors[at - 1] for at in range(1, 10)}
    assert recall.marks(shown, colors, 0) == [1, 1] and recall.marks(shown, colors, 1) == [0, 0]
    assert recall.marks(before, colors, 0) == [0, 0] and recall.marks(before, colors, 1) == [1, 1]
    assert recall.marks({7: "red", 8: "green", 9: "red"}, colors, 7) == [1, 0]
    assert recall.marks({9: "blue"}, colors, 7) == [1]


def test_recall_is_measured() -> None:
    with VLM.from_pretrained(threads=1) as vlm:
        newest, before = itertools.islice(recall.measure(vlm, 17), 2)
    assert (newest.ago, before.ago) == (0, 1)
    for row in (newest, before):
        assert 9 * row.endless.share == pytest.approx(round(9 * row.endless.share))
        assert {row.compared.share, row.anew.share, row.same.share} <= {0, 0.5, 1}
    assert newest.alone.share == 1
    assert recall.line([0, newest.alone]) == "| 0 | 100.0 (34.2 to 100.0) |"
