"""``edgevlm doctor`` on this machine, and on machines with known traps."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from edgevlm import cli
from edgevlm.cli import doctor
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp import guard
from edgevlm.runtimes.llama_cpp.installation import LLAMA_CPP_PYTHON_VERSION
from edgevlm.runtimes.onnx import session


def test_says_what_this_machine_has(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["llama_cpp_python"] == LLAMA_CPP_PYTHON_VERSION
    assert "CPUExecutionProvider" in report["providers"]
    assert report["llama_cpp_probe"].startswith(("ok", "no_extra_bufts"))
    assert cli.main(["doctor"]) == 0
    shown = capsys.readouterr()
    assert system.cpu_model() in shown.out and shown.err == ""


@pytest.mark.parametrize(
    ("outcome", "fatal"), [("ok", None), ("no_extra_bufts", False), ("crash", True)]
)
def test_a_build_that_crashes(
    monkeypatch: pytest.MonkeyPatch, outcome: Any, fatal: bool | None
) -> None:
    verdict = guard.ProbeResult(outcome, "status -11")
    monkeypatch.setattr(guard, "probe_library", lambda: verdict)
    problems = [problem for problem in doctor.examine().problems if "status -11" in problem.message]
    assert [problem.fatal for problem in problems] == ([] if fatal is None else [fatal])
    assert all("CC=clang" in problem.message for problem in problems)


def test_two_onnxruntimes(monkeypatch: pytest.MonkeyPatch) -> None:
    both = ["onnxruntime 1.31.1", "onnxruntime-gpu 1.31.1"]
    monkeypatch.setattr(session, "installed_distributions", lambda: both)
    report = doctor.examine()
    (problem,) = [problem for problem in report.problems if "overwrite" in problem.message]
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in problem.message and report.works


def test_an_idle_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if "cuda" in session.available_devices():
        pytest.skip("this ONNX Runtime has CUDA")
    monkeypatch.setattr(doctor, "_nvidia_gpus", lambda: ["NVIDIA Orin, 540.4, 8192 MiB"])
    messages = [problem.message for problem in doctor.examine().problems]
    assert any("edgevlm[cuda]" in message for message in messages)
    assert "NVIDIA Orin" in doctor.format_report(doctor.examine())


def test_a_machine_without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can still run decoders in ONNX."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    report = doctor.examine()
    (problem,) = [problem for problem in report.problems if "llama-cpp-python" in problem.message]
    assert "pip install 'edgevlm[llama]'" in problem.message and report.works
