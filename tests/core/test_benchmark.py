"""`edgevlm bench` on the built-in model; its times are not checked."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

from edgevlm import Bundle
from edgevlm.benchmark import camera_frame, measure_image, measure_limits, settings

BENCH = [sys.executable, "-m", "edgevlm", "bench"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*BENCH, *arguments], capture_output=True, text=True, check=False)


def test_every_precision_is_measured_once() -> None:
    done = bench("edgevlm-nano", "--device", "all", "--rounds", "1", "--threads", "1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert {(s["vision"], s["decoder"]) for s in result["pictures"]} == {
        ("int8", "q8_0"),
        ("int8", "int8"),
    }
    ran_on = [s["device"].split(",")[0] for s in result["pictures"] if s["decoder"] == "q8_0"]
    assert ran_on[0] == "vision CPUExecutionProvider" and ran_on[1].startswith(
        "vision OpenVINO CPU"
    )
    for speed in result["pictures"]:
        parts = speed["prepare_ms"] + speed["encode_ms"] + speed["prefill_ms"]
        assert 0 < parts <= speed["first_token_ms"]
        assert speed["peak_memory"] > 50e6
    assert len(result["decoders"]) == 2
    for decoder in result["decoders"]:
        assert decoder["prompt_tokens"] == result["pictures"][0]["prompt_tokens"]
        assert min(value for name, value in decoder.items() if name.endswith("_rate")) > 0
    assert result["ceilings"]["read_rate"] > 1e8


def test_the_table_names_what_was_measured() -> None:
    done = bench("--device", "cpu", "--rounds", "1", "--threads", "1")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("int8    q8_0") and "CPUExecution" in line for line in lines)
    assert any(line.startswith("q8_0") and line.count("%") == 3 for line in lines)


def test_what_cannot_be_measured_is_said() -> None:
    done = bench("edgevlm-nano", "--device", "qnn", "--rounds", "1")
    assert done.returncode == 1
    assert "not measured: QNNExecutionProvider" in done.stderr


def test_no_round_is_spared_by_a_cache() -> None:
    """Each round has a new image. Otherwise the median of three rounds would be a cached one."""
    setting, _ = settings(Bundle.open("edgevlm-nano"), "edgevlm-nano", "cpu", 1)
    assert measure_image(setting, camera_frame(), 3).tiles == 1


def test_limits_of_the_machine_are_plausible() -> None:
    found = measure_limits(rounds=1)
    assert np.isfinite([found.read_rate, found.multiply_rate]).all()
    assert found.multiply_rate > 1e8
