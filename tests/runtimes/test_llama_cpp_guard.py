"""The guard, with child processes that really crash."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from edgevlm.errors import LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp import guard, probe
from edgevlm.runtimes.llama_cpp import library as llama_cpp

Command = Callable[..., list[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """A probe that counts its runs and crashes with `signal` at the arguments named."""
    script = tmp_path / "probe.py"
    script.write_text(
        "import os, sys\n"
        "runs, signal, *crashing = sys.argv[1].split(',')\n"
        "open(runs, 'a').write(' '.join(sys.argv[2:]) + '\\n')\n"
        "if sys.argv[-1] in crashing:\n"
        "    print('last words', file=sys.stderr, flush=True)\n"
        "    os.kill(os.getpid(), int(signal))\n"
    )

    def make(*crashing: str, signal: int = 11) -> list[str]:
        settings = ",".join([str(tmp_path / "runs"), str(signal), *crashing])
        return [sys.executable, str(script), settings]

    return make


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder that stands for the installed shared libraries."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "libllama.so").write_bytes(b"one build")
    return folder


def runs(folder: Path) -> list[str]:
    path = folder / "runs"
    return path.read_text().splitlines() if path.exists() else []


def test_ok_is_remembered(command: Command, library: Path, tmp_path: Path) -> None:
    for _ in range(3):
        result = guard.check_library(command(), library, tmp_path / "cache")
        assert result.outcome == "ok" and result.extra_buffer_types
    assert runs(tmp_path) == ["library extra-bufts"]


def test_a_crash_turns_the_fast_kernels_off(
    command: Command, library: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    crashing = command("extra-bufts")
    for _ in range(3):
        result = guard.check_library(crashing, library, tmp_path / "cache")
        assert result.outcome == "no_extra_bufts" and not result.extra_buffer_types
        assert result.detail == "status -11: last words"
    assert runs(tmp_path) == ["library extra-bufts", "library no-extra-bufts"]
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "CC=clang" in warnings[0].message and "-U__AMX_INT8__" in warnings[0].message


def test_two_crashes_are_an_error_with_the_fix(
    command: Command, library: Path, tmp_path: Path
) -> None:
    crashing = command("extra-bufts", "no-extra-bufts", signal=4)
    for _ in range(3):
        with pytest.raises(LoadError, match=r"status -4: last words.*CC=clang"):
            guard.check_library(crashing, library, tmp_path / "cache")
    assert runs(tmp_path) == ["library extra-bufts", "library no-extra-bufts"]


def test_another_build_is_probed_again(command: Command, library: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert guard.check_library(command("extra-bufts"), library, cache).outcome == "no_extra_bufts"
    (library / "libllama.so").write_bytes(b"another build")
    assert guard.check_library(command(), library, cache).outcome == "ok"
    assert len(runs(tmp_path)) == 3


def test_another_cpu_is_probed_again(
    command: Command, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard.check_library(command(), library, tmp_path / "cache")
    monkeypatch.setattr(system, "cpu_flags", lambda: frozenset({"amx_int8"}))
    guard.check_library(command(), library, tmp_path / "cache")
    assert len(runs(tmp_path)) == 2


def test_without_a_cache_each_process_probes(
    command: Command, library: Path, tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for _ in range(2):
        assert guard.check_library(command(), library, tmp_path / "cache").outcome == "ok"
    assert len(runs(tmp_path)) == 2


@pytest.mark.parametrize("content", ["", "{", "[]", '{"outcome": "fine"}', '{"verdict": "ok"}'])
def test_a_damaged_cache_is_probed_over(
    command: Command, library: Path, tmp_path: Path, content: str
) -> None:
    cache = tmp_path / "cache"
    guard.check_library(command(), library, cache)
    (entry,) = cache.iterdir()
    entry.write_text(content)
    assert guard.check_library(command(), library, cache).outcome == "ok"
    assert len(runs(tmp_path)) == 2
    assert json.loads(entry.read_text())["outcome"] == "ok"


def test_what_is_no_crash_is_not_remembered(library: Path, tmp_path: Path) -> None:
    failures = {
        "import sys; print('why', file=sys.stderr); sys.exit(3)": "^why$",
        "raise ImportError('no library')": "exit status 1.*no library",
        "import os; os.kill(os.getpid(), 9)": "memory is short",
    }
    for script, message in failures.items():
        with pytest.raises(LoadError, match=message):
            guard.check_library([sys.executable, "-c", script], library, tmp_path / "cache")
    with pytest.raises(LoadError, match="cannot start"):
        guard.check_library([str(tmp_path / "no-python")], library, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_probe_that_hangs(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PROBE_TIMEOUT", 0.2)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(LoadError, match="did not end"):
        guard.check_library(command, library, tmp_path / "cache")


def test_the_installed_library_passes_its_own_probe(tmp_path: Path) -> None:
    result = guard.probe_library(cache=tmp_path)
    assert result.outcome in ("ok", "no_extra_bufts")
    assert len(list(tmp_path.iterdir())) == 1


def test_the_probe_runs_what_the_fast_kernels_need(tmp_path: Path) -> None:
    probe.try_library(probe.BasicKernelsDecoder, tmp_path)
    types = {
        tensor.tensor_type.name
        for path in tmp_path.glob("*.gguf")
        for tensor in gguf.GGUFReader(path).tensors
        if "attn" in tensor.name and "norm" not in tensor.name
    }
    assert types >= {"F16", "Q8_0", "Q4_0", "Q4_K"}
    assert sum(path.stat().st_size for path in tmp_path.glob("*.gguf")) < 4_000_000


def test_the_fast_kernels_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """llama.cpp names the buffers that it puts weights into."""
    probe.try_library(probe.BasicKernelsDecoder, tmp_path)
    logs = []
    for decoder_class in (probe.UncheckedDecoder, probe.BasicKernelsDecoder):
        caplog.clear()
        with caplog.at_level(logging.DEBUG, "edgevlm"):
            decoder_class(tmp_path / "probe-Q4_0.gguf", context_length=64, threads=1).close()
        logs.append(caplog.text)
    fast, plain = ("CPU_REPACK model buffer" in log or "AMX model buffer" in log for log in logs)
    assert not plain
    if {"avx2", "asimddp"} & system.cpu_flags():
        assert fast


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    probe.write_model(path)
    return path


def damage(model: Path, path: Path, old: bytes, new: bytes) -> Path:
    """Write a copy with one occurrence of `old` replaced by as many bytes."""
    content = model.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def test_a_good_file_is_tried_once(model: Path, tmp_path: Path) -> None:
    guard.check_file(model, cache=tmp_path)
    (entry,) = tmp_path.iterdir()
    guard.check_file(model, [sys.executable, "-c", "raise SystemExit(1)"], cache=tmp_path)
    assert list(tmp_path.iterdir()) == [entry]


def test_files_that_abort_llama_cpp_are_errors(model: Path, tmp_path: Path) -> None:
    duplicate = damage(model, tmp_path / "duplicate.gguf", b"<0x41>", b"<0x42>")
    layers = b"llama.block_count" + np.uint32(gguf.GGUFValueType.UINT32).tobytes()
    counts = [layers + np.uint32(count).tobytes() for count in (1, 0)]
    no_layers = damage(model, tmp_path / "layers.gguf", *counts)
    no_byte = damage(model, tmp_path / "bytes.gguf", b"<0xE4>", b"<0xe4>")
    for path in (duplicate, no_layers, no_byte):
        with pytest.raises(LoadError, match=rf"crashes on {path} \(status -6.*get it again"):
            guard.check_file(path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.5, 0.999])
def test_cut_files_are_errors(model: Path, tmp_path: Path, share: float) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(model.read_bytes()[: int(model.stat().st_size * share)])
    with pytest.raises(LoadError, match=r"cannot load .*get it again"):
        guard.check_file(path, cache=tmp_path / "cache")


def test_files_that_are_no_gguf_are_refused_without_a_probe(tmp_path: Path) -> None:
    never = ["/nonexistent"]
    for content in (b"", b"GG", b"PK\3\4", np.random.default_rng(0).bytes(4096)):
        path = tmp_path / "file"
        path.write_bytes(content)
        with pytest.raises(LoadError, match="not a GGUF file"):
            guard.check_file(path, never, cache=tmp_path / "cache")
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(LoadError, match="cannot read"):
            guard.check_file(path, never, cache=tmp_path / "cache")


def test_a_probe_keeps_its_models_in_memory_where_nothing_can_be_written(tmp_path: Path) -> None:
    probe.try_library(probe.UncheckedDecoder, tmp_path / "not there")


def test_without_a_temporary_folder_the_library_is_tried_all_the_same(
    command: Command, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "not there"))
    assert guard.check_library(command(), library, tmp_path / "cache").outcome == "ok"
    assert runs(tmp_path) == ["library extra-bufts"]


def test_a_gpu_is_tried_once(command: Command, library: Path, tmp_path: Path) -> None:
    for _ in range(3):
        guard.check_gpu(command(), library, tmp_path / "cache")
    assert runs(tmp_path) == ["gpu all-layers"]
    (library / "libllama.so").write_bytes(b"another build")
    guard.check_gpu(command(), library, tmp_path / "cache")
    assert runs(tmp_path) == ["gpu all-layers"] * 2


def test_another_gpu_or_driver_is_tried_again(
    command: Command, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = tmp_path / "driver"
    monkeypatch.setattr(guard, "NVIDIA_DRIVER", driver)
    for path, text in (
        ("gpus/0000:00:06.0/information", "Model: \t NVIDIA H200"),
        ("version", "580.1"),
    ):
        for content in (text, text.replace("0", "1")):
            (driver / path).parent.mkdir(parents=True, exist_ok=True)
            (driver / path).write_text(content)
            guard.check_gpu(command(), library, tmp_path / "cache")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    guard.check_gpu(command(), library, tmp_path / "cache")
    assert runs(tmp_path) == ["gpu all-layers"] * 5


def test_kernels_that_crash_on_the_gpu_are_an_error_with_the_cause(
    library: Path, tmp_path: Path
) -> None:
    """The probe prints what llama.cpp prints when it was compiled for another GPU."""
    script = (
        "import os, sys\n"
        "print('llama.cpp ends this process: CUDA error: no kernel image', file=sys.stderr)\n"
        "print('ggml-cuda.cu:109: CUDA error', file=sys.stderr, flush=True)\n"
        "os.abort()"
    )
    for _ in range(2):
        with pytest.raises(
            LoadError,
            match=r"on this GPU \(status -6: .*no kernel image\); CMAKE_ARGS=-DGGML_CUDA.*gpu_layers=0",
        ):
            guard.check_gpu([sys.executable, "-c", script], library, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_the_probe_of_a_gpu_says_that_there_is_none(tmp_path: Path) -> None:
    if not llama_cpp.no_gpu_reason():
        guard.check_gpu(cache=tmp_path)
        return
    with pytest.raises(LoadError, match="gpu_layers=-1, but"):
        guard.check_gpu(cache=tmp_path)
