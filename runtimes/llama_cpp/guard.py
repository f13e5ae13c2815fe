"""Trials in a child process of what could crash this one.

llama.cpp compiled by gcc 12 for a CPU with AMX crashes with SIGSEGV in every quantized model. A library built
on another machine may crash with SIGILL. Kernels compiled for another GPU abort, and so do assertions on a
damaged file. So `edgevlm.runtimes.llama_cpp.probe` runs in a child process before a decoder is created: once
per build of the library and CPU, once per build and GPU if a GPU is asked for, and once per file. The results
are kept in the user's cache folder.

Not supported: applications frozen into one executable, which have no Python interpreter to start. There
nothing is tried.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from edgevlm.errors import LoadError, MissingDependencyError
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.installation import (
    BUILD_WITH_CUDA,
    INSTALL_LLAMA,
    REBUILD_ADVICE,
)
from edgevlm.user_cache import user_cache, write_cached

PROBE_COMMAND = (sys.executable, "-m", "edgevlm.runtimes.llama_cpp.probe")
"""The command of the child process; arguments that say what to try follow."""

PROBE_TIMEOUT = 600
"""Seconds after which a probe counts as hung."""

EXIT_REFUSED = 3
"""Exit status of a probe that raised an error of edgevlm; its last line on stderr is the message."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia")
"""Folder where NVIDIA's Linux driver describes itself and its GPUs."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe of llama.cpp."""

    outcome: Literal["ok", "no_extra_bufts", "crash"]
    """``ok``; ``no_extra_bufts`` if it runs only without its repacked and AMX kernels; or ``crash``."""
    detail: str = ""
    """Exit status and last line of the probe that crashed."""

    @property
    def extra_buffer_types(self) -> bool:
        """Value for llama.cpp's parameter ``use_extra_bufts``."""
        return self.outcome == "ok"

    @property
    def explanation(self) -> str:
        """Message about the crash and its fix, for an outcome that is not ``ok``."""
        slower = (
            ""
            if self.outcome == "crash"
            else " with its fastest kernels, so edgevlm turns them off"
        )
        return (
            f"this build of llama.cpp crashes on this CPU ({self.detail}){slower}; {REBUILD_ADVICE}"
        )


def check_library(
    command: Sequence[str] = PROBE_COMMAND, folder: Path | None = None, cache: Path | None = None
) -> ProbeResult:
    """Check that the installed llama.cpp runs quantized models on this CPU.

    Args:
        command: the probe; it gets the arguments ``library`` and ``extra-bufts`` or ``no-extra-bufts``.
        folder: folder of the library; None finds llama-cpp-python's.
        cache: folder of results; None takes the user's cache folder.

    Returns:
        A result whose outcome is ``ok`` or, after a warning, ``no_extra_bufts``.

    Raises:
        LoadError: llama.cpp crashes with and without its extra kernels, or cannot be tried.
        MissingDependencyError: llama-cpp-python is not installed.
    """
    result = probe_library(command, folder, cache)
    if result.outcome == "crash":
        raise LoadError(result.explanation)
    if result.outcome == "no_extra_bufts":
        _warn_once(result.explanation)
    return result


def probe_library(
    command: Sequence[str] = PROBE_COMMAND, folder: Path | None = None, cache: Path | None = None
) -> ProbeResult:
    """Try the installed llama.cpp, or return the kept result for this build and CPU.

    Args:
        command: as of `check_library`.
        folder: as of `check_library`.
        cache: as of `check_library`.

    Raises:
        LoadError: llama.cpp cannot be tried.
        MissingDependencyError: llama-cpp-python is not installed.
    """
    key = _digest(
        "library", _library_identity(folder), system.cpu_model(), *sorted(system.cpu_flags())
    )
    known = _load_result(key, cache)
    if known is not None:
        return known
    crash = _run([*command, "library", "extra-bufts"])
    result = ProbeResult("ok")
    if crash:
        again = _run([*command, "library", "no-extra-bufts"])
        result = ProbeResult("crash", again) if again else ProbeResult("no_extra_bufts", crash)
    _store_result(key, result, cache)
    return result


def check_file(
    path: Path,
    command: Sequence[str] = PROBE_COMMAND,
    folder: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Check that llama.cpp loads a GGUF file. Files that passed are not tried again until they change.

    Args:
        path: the file.
        command: the probe; it gets the arguments ``file`` and the path.
        folder: as of `check_library`.
        cache: as of `check_library`.

    Raises:
        LoadError: the file does not exist or is not a GGUF file, or llama.cpp cannot load it.
    """
    try:
        path = path.resolve()
        with path.open("rb") as file:
            magic = file.read(4)
        status = path.stat()
    except OSError as error:
        raise LoadError(f"cannot read the decoder {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise LoadError(
            f"{path} is not a GGUF file: it begins with {magic!r}; get the bundle again"
        )
    key = _digest(
        "file", _library_identity(folder), str(path), str(status.st_size), str(status.st_mtime_ns)
    )
    if _load_result(key, cache) is not None:
        return
    crash = _run([*command, "file", str(path)])
    if crash:
        raise LoadError(f"llama.cpp crashes on {path} ({crash}); the file is damaged, get it again")
    _store_result(key, ProbeResult("ok"), cache)


def check_gpu(
    command: Sequence[str] = PROBE_COMMAND, folder: Path | None = None, cache: Path | None = None
) -> None:
    """Check that llama.cpp's GPU kernels run here, once per build and GPU.

    Args:
        command: the probe; it gets the arguments ``gpu`` and ``all-layers``.
        folder: as of `check_library`.
        cache: as of `check_library`.

    Raises:
        LoadError: the kernels crash, for example because they were compiled for another GPU.
    """
    key = _digest("gpu", _library_identity(folder), *_nvidia_identity())
    if _load_result(key, cache) is not None:
        return
    crash = _run([*command, "gpu", "all-layers"])
    if crash:
        raise LoadError(
            f"this build of llama.cpp crashes on this GPU ({crash}); {BUILD_WITH_CUDA}, or leave the "
            "decoder on the CPU: gpu_layers=0"
        )
    _store_result(key, ProbeResult("ok"), cache)


def _run(command: Sequence[str]) -> str:
    """Run a probe.

    Returns:
        Exit status and last line of a probe that crashed; an empty string if it ended well.

    Raises:
        LoadError: the probe raised an error, hung, was killed, or could not be started.
    """
    if getattr(sys, "frozen", False):
        return ""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
        "GGML_NO_BACKTRACE": "1",
        "PYTHONFAULTHANDLER": "",
    }
    with _temporary_folder() as scratch:
        try:
            ended = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"llama.cpp, tried in a child process, did not end in {PROBE_TIMEOUT} seconds; "
                f"{REBUILD_ADVICE}"
            ) from error
        except OSError as error:
            raise LoadError(
                f"cannot start {command[0]} to try llama.cpp in a child process: {error}"
            ) from error
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    last = next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "")
    if ended.returncode == 0:
        return ""
    if ended.returncode == EXIT_REFUSED:
        raise LoadError(last)
    if ended.returncode == -9:
        raise LoadError("llama.cpp, tried in a child process, was killed; memory is short")
    if 0 < ended.returncode < 128:
        raise LoadError(
            f"llama.cpp could not be tried in a child process (exit status {ended.returncode}): {last}"
        )
    return f"status {ended.returncode}{': ' + last if last else ''}"


@contextlib.contextmanager
def _temporary_folder() -> Iterator[str | None]:
    """Yield a folder for a probe's files; None if no folder can be written, as on a read-only system."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="edgevlm-probe-", ignore_cleanup_errors=True)
    except OSError:
        yield None  # the probe then keeps its files in memory
        return
    with folder as name:
        yield name


def _library_identity(folder: Path | None) -> str:
    """Return names, sizes and times of llama-cpp-python's shared libraries, without loading them."""
    if folder is None:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise MissingDependencyError(
                f"a decoder in a GGUF file needs llama-cpp-python; {INSTALL_LLAMA}"
            )
        folder = Path(package.origin).parent / "lib"
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    stats = [(path.name, path.stat()) for path in files]
    return repr([(name, status.st_size, status.st_mtime_ns) for name, status in stats])


def _nvidia_identity() -> list[str]:
    """Return what NVIDIA's Linux driver reports of itself and its GPUs, and ``CUDA_VISIBLE_DEVICES``."""
    files = [*sorted(NVIDIA_DRIVER.glob("gpus/*/information")), NVIDIA_DRIVER / "version"]
    texts = [path.read_text(errors="replace") for path in files if path.is_file()]
    return [*texts, os.environ.get("CUDA_VISIBLE_DEVICES", "all")]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _load_result(key: str, cache: Path | None) -> ProbeResult | None:
    """Return a kept result; None if there is none, or none that can be read."""
    path = (cache or user_cache("probes")) / f"{key}.json"
    try:
        result = ProbeResult(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return result if result.outcome in ("ok", "no_extra_bufts", "crash") else None


def _store_result(key: str, result: ProbeResult, cache: Path | None) -> None:
    write_cached((cache or user_cache("probes")) / f"{key}.json", json.dumps(asdict(result)))


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning("%s", message)
