"""`scripts/check_gpu.py`, really run; where there is no GPU, with the CPU in its place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.engine.engine import Engine
from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.onnx import session
from edgevlm.runtimes.protocols import Place
from edgevlm.vlm import VLM
from scripts import check_gpu
from scripts.check_gpu import Check, CheckError, Runner, Setting

CPU = Setting(DEFAULT_MODEL, "cpu", 0, 1)
"""The CPU beside itself: nothing may differ."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scripts.check_gpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_what_is_missing_is_said_and_is_no_failure(tmp_path: Path) -> None:
    if not library.no_gpu_reason() or "cuda" in session.available_devices():
        pytest.skip("there is a GPU, or a build for one")
    done = run("--json", str(tmp_path / "result.json"))
    assert done.returncode == 77, done.stderr
    assert "this machine has no GPU that edgevlm can use" in done.stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert {check["outcome"] for check in result["checks"]} == {"not run"}
    assert all(
        "CMAKE_ARGS" in c["detail"] or "edgevlm[cuda]" in c["detail"] for c in result["checks"]
    )
    names = [check["name"] for check in result["checks"]]
    assert len(set(names)) == len(names)
    assert {"decoder q8_0: logits", "vision int8", "answers: both on the GPU"} <= set(names)
    assert result["machine"]["llama_cpp_python"] and result["setting"]["device"] == "cuda"
    assert f"0 passed, 0 failed, {len(names)} not run" in done.stdout
    assert done.stdout.count("CMAKE_ARGS") == 1  # a reason is printed once


@pytest.mark.slow
def test_the_cpu_beside_itself_passes_every_check(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    done = run("--device", "cpu", "--gpu-layers", "0", "--rounds", "1", "--json", str(result))
    assert done.returncode == 0, done.stdout + done.stderr
    checks = json.loads(result.read_text())["checks"]
    assert {check["outcome"] for check in checks} == {"passed"}
    figures: dict[str, Any] = {check["name"]: check["figures"] for check in checks}
    assert figures["decoder q8_0: logits"]["relative error"] == 0
    assert figures["decoder q8_0: logits"]["same top token"] == "16 of 16"
    assert figures["decoder q8_0: key-value cache"]["after restore"] == 0
    assert figures["decoder q8_0: images"]["relative error"] == 0
    assert figures["decoder q8_0: images"]["prompts"] == 2
    assert 0 < figures["decoder q8_0: KV cache in q8_0"]["relative error"] < 0.05
    assert figures["vision int8"]["relative error"] == 0
    assert figures["answers: both on the GPU"]["same answers"] == "7 of 7"
    assert figures["answers: CPU"]["answers"]["second turn"] == "green"
    assert figures["answers: CPU"]["share of green"] > 0.9
    ahead = figures["encode ahead: vision on the GPU"]
    assert ahead["tiles"] == check_gpu.AHEAD_TILES and not ahead["encodes ahead by itself"]
    assert ahead["one after the other: both at work ms"] == 0 < ahead["ahead: both at work ms"]


def test_overlap_is_the_time_in_which_both_work() -> None:
    assert check_gpu.overlap_ms([(0.0, 2.0), (3.0, 4.0)], [(1.0, 3.5), (5.0, 6.0)]) == 1500
    assert check_gpu.overlap_ms([(0.0, 1.0)], [(1.0, 2.0)]) == 0


def test_tiles_that_are_never_encoded_ahead_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "overlap_ms", lambda first, second: 0.0)
    with pytest.raises(CheckError, match="never worked at the same time"):
        check_gpu.check_encode_ahead(CPU, "cpu", 0)


def test_embeddings_past_the_bound_of_their_precision_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_gpu, "_relative_error", lambda found, reference: 0.03)
    check_gpu.check_vision(CPU, "int8")
    monkeypatch.setitem(check_gpu.FLOAT_BOUNDS, "int8", 1e-2)
    with pytest.raises(CheckError, match=r"by 3\.0e-02 from the CPU's, at most 0\.01 may be"):
        check_gpu.check_vision(CPU, "int8")


def test_other_logits_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = LlamaCppDecoder.decode_draft
    calls = []

    def wrong_the_second_time(self: LlamaCppDecoder, *arguments: Any, **named: Any) -> Any:
        calls.append(1)
        logits = drafts(self, *arguments, **named).copy()
        return logits if len(calls) == 1 else np.roll(logits, 1, axis=1)

    monkeypatch.setattr(LlamaCppDecoder, "decode_draft", wrong_the_second_time)
    with pytest.raises(CheckError, match="logits differ by"):
        check_gpu.check_logits(CPU, "q8_0")


def test_other_logits_after_images_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = Engine.logits
    calls = []

    def wrong_in_the_end(self: Engine, *arguments: Any) -> Any:
        calls.append(1)
        found = logits(self, *arguments)
        return found if len(calls) <= 4 else np.roll(found, 1, axis=1)

    monkeypatch.setattr(Engine, "logits", wrong_in_the_end)
    with pytest.raises(CheckError, match="logits after images differ"):
        check_gpu.check_images(CPU, "q8_0")


def test_numbers_that_are_none_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(decoder: LlamaCppDecoder, start: int) -> NDArray[np.float32]:
        return np.full((16, decoder.vocabulary_size), np.nan, np.float32)

    monkeypatch.setattr(check_gpu, "_draft_logits", none)
    for check in (check_gpu.check_logits, check_gpu.check_cache, check_gpu.check_two_decoders):
        with pytest.raises(CheckError, match="nan"):
            check(CPU, "q8_0")


def test_a_cache_that_is_restored_wrongly_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def restore(self: LlamaCppDecoder, copy: Any, place: Place) -> None:
        self.truncate(Place())
        positions = np.arange(place.position, dtype=np.int32)
        self.decode_tokens([0] * place.entries, positions, logits=False)

    monkeypatch.setattr(LlamaCppDecoder, "restore", restore)
    with pytest.raises(CheckError, match="after restore"):
        check_gpu.check_cache(CPU, "q8_0")


def test_an_answer_outside_the_schema_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = VLM.ask

    def without_schema(self: VLM, *arguments: Any, **options: Any) -> Any:
        return ask(self, *arguments, **{**options, "json_schema": None})

    monkeypatch.setattr(VLM, "ask", without_schema)
    with pytest.raises(CheckError, match="'green' is not JSON"):
        check_gpu.check_schema(CPU)


def _abort() -> dict[str, Any]:
    os.abort()


def _raise() -> dict[str, Any]:
    raise CheckError("this differs")


def test_a_check_that_ends_its_process_is_a_failed_one() -> None:
    runner = Runner()
    assert runner.run("ends", "", _abort) == runner.run("differs", "", _raise) == {}
    assert runner.run("lacks", "no GPU", _abort) == {}
    assert [(check.outcome, check.detail) for check in runner.checks] == [
        ("failed", "its process was ended; what it wrote last stands above"),
        ("failed", "this differs"),
        ("not run", "no GPU"),
    ]


def test_only_some() -> None:
    runner = Runner("speed")
    runner.run("decoder: logits", "", _abort)
    assert runner.checks == []


def test_a_bundle_that_is_not_there() -> None:
    done = run("./no-such-bundle")
    assert done.returncode == 2 and "no model" in done.stderr and "Traceback" not in done.stderr


def test_figures_are_shown_with_three_digits() -> None:
    text = check_gpu.describe(Check("x", "passed", figures={"a": 1234.56, "b": 0.0123456, "c": 7}))
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["1235", "0.0123", "7"]
