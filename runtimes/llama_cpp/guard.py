"""Lets a child process try first what could end this one.

llama.cpp compiled by gcc 12 for a CPU with AMX dies of SIGSEGV in every quantized model; a library built
on another machine may die of SIGILL; kernels compiled for another GPU, and assertions that a damaged file
fails, abort. So before a decoder is created
`edgevlm.runtimes.llama_cpp.probe` runs in child processes: once for each
build of the library on each CPU, once for it on each GPU that is asked for, once for each file. What came
out is remembered in the user's cache folder.

Not covered: applications frozen into one executable, which have no interpreter to start; their makers know
what they ship.
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
from edgevlm.user_cache import keep, user_cache

PROBE = (sys.executable, "-m", "edgevlm.runtimes.llama_cpp.probe")
"""The command that is run; what is to be tried follows as arguments."""

PROBE_SECONDS = 600
"""A probe that takes longer hangs."""

REFUSED = 3
"""Exit status of a probe that met an error it could explain; its last line on stderr is the message."""

LLAMA_CPP_PYTHON_VERSION = "0.3.36"
"""The structures of llama.cpp's C API change between releases, so exactly this one is used."""

INSTALL = f"pip install 'llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION}'"
REBUILD = f"{INSTALL} --force-reinstall --no-deps --no-cache-dir"
BUILD_WITH_CUDA = f"CMAKE_ARGS=-DGGML_CUDA=on {REBUILD}"
NVIDIA = Path("/proc/driver/nvidia")
MEND = (
    f"build it again with clang, CC=clang CXX=clang++ {REBUILD}, or without AMX, "
    "CMAKE_ARGS='-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__' "
    f"{REBUILD}"
)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LibraryVerdict:
    """What this build of llama.cpp can do on this CPU."""

    outcome: Literal["ok", "no_extra_bufts", "crash"]
    """``ok``; ``no_extra_bufts``: runs only without its repacked and AMX kernels; ``crash``."""
    detail: str = ""
    """How the probe ended, if not well."""

    @property
    def extra_buffer_types(self) -> bool:
        """llama.cpp's ``use_extra_bufts``."""
        return self.outcome == "ok"

    @property
    def explanation(self) -> str:
        """What is wrong and how to mend it, if the outcome is not ``ok``."""
        lost = (
            ""
            if self.outcome == "crash"
            else " unless its fastest kernels are left out, so they are"
        )
        return f"llama.cpp as it is built here crashes on this CPU ({self.detail}){lost}; {MEND}"


def check_library(
    command: Sequence[str] = PROBE, folder: Path | None = None, cache: Path | None = None
) -> LibraryVerdict:
    """Whether the installed llama.cpp runs quantized models here; probed once for each build and CPU.

    Args:
        command: runs the probe; gets ``library`` and ``extra-bufts`` or ``no-extra-bufts``.
        folder: the library's; None finds llama-cpp-python's.
        cache: where outcomes are kept; None is the user's cache folder.

    Returns:
        A verdict whose outcome is ``ok`` or, after a warning, ``no_extra_bufts``.

    Raises:
        LoadError: it crashes either way, or cannot even be tried; with the mend.
        MissingDependencyError: llama-cpp-python is not installed.
    """
    verdict = library_verdict(command, folder, cache)
    if verdict.outcome == "crash":
        raise LoadError(verdict.explanation)
    if verdict.outcome == "no_extra_bufts":
        _warn_once(verdict.explanation)
    return verdict


def library_verdict(
    command: Sequence[str] = PROBE, folder: Path | None = None, cache: Path | None = None
) -> LibraryVerdict:
    """`check_library` without judging: the verdict, remembered or probed."""
    key = _digest("library", _library_identity(folder), system.model(), *sorted(system.flags()))
    remembered = _recall(key, cache)
    if remembered is not None:
        return remembered
    crash = _run([*command, "library", "extra-bufts"])
    verdict = LibraryVerdict("ok")
    if crash:
        again = _run([*command, "library", "no-extra-bufts"])
        verdict = (
            LibraryVerdict("crash", again) if again else LibraryVerdict("no_extra_bufts", crash)
        )
    _remember(key, verdict, cache)
    return verdict


def check_file(
    path: Path,
    command: Sequence[str] = PROBE,
    folder: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Make sure that loading a GGUF file does not end the process; tried once for each file that is good.

    Args:
        path: the file.
        command: runs the probe; gets ``file`` and the path.
        folder, cache: as in `check_library`.

    Raises:
        LoadError: no such file, no GGUF file, or llama.cpp refuses or crashes on it.
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
    if _recall(key, cache) is not None:
        return
    crash = _run([*command, "file", str(path)])
    if crash:
        raise LoadError(f"llama.cpp crashes on {path} ({crash}); the file is damaged, get it again")
    _remember(key, LibraryVerdict("ok"), cache)


def check_gpu(
    command: Sequence[str] = PROBE, folder: Path | None = None, cache: Path | None = None
) -> None:
    """Make sure that llama.cpp's GPU kernels do not end the process; tried once for each build and GPU.

    Args:
        command: runs the probe; gets ``gpu`` and ``all-layers``.
        folder, cache: as in `check_library`.

    Raises:
        LoadError: they crash, as those that were compiled for another GPU do.
    """
    key = _digest("gpu", _library_identity(folder), *_nvidia_identity())
    if _recall(key, cache) is not None:
        return
    crash = _run([*command, "gpu", "all-layers"])
    if crash:
        raise LoadError(
            f"llama.cpp as it is built here crashes on this GPU ({crash}); {BUILD_WITH_CUDA}, or leave the "
            "decoder on the CPU: gpu_layers=0"
        )
    _remember(key, LibraryVerdict("ok"), cache)


def _run(command: Sequence[str]) -> str:
    """Run a probe; how it crashed, or an empty text if it ended well."""
    if getattr(sys, "frozen", False):
        return ""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
        "GGML_NO_BACKTRACE": "1",
        "PYTHONFAULTHANDLER": "",
    }
    with _scratch() as scratch:
        try:
            ended = subprocess.run(
                command,
                cwd=scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PROBE_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise LoadError(
                f"llama.cpp, tried in a child process, did not end in {PROBE_SECONDS} seconds; {MEND}"
            ) from error
        except OSError as error:
            raise LoadError(
                f"cannot start {command[0]} to try llama.cpp in a child process: {error}"
            ) from error
    lines = ended.stderr.decode("utf-8", "replace").strip().splitlines()
    last = next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "")
    if ended.returncode == 0:
        return ""
    if ended.returncode == REFUSED:
        raise LoadError(last)
    if ended.returncode == -9:
        raise LoadError("llama.cpp, tried in a child process, was killed; memory is short")
    if 0 < ended.returncode < 128:
        raise LoadError(
            f"llama.cpp could not be tried in a child process (exit status {ended.returncode}): {last}"
        )
    return f"status {ended.returncode}{': ' + last if last else ''}"


@contextlib.contextmanager
def _scratch() -> Iterator[str | None]:
    """A folder for a probe's files; None where nothing can be written, as on a read-only system."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="edgevlm-probe-", ignore_cleanup_errors=True)
    except OSError:
        yield None  # the probe keeps its files in memory then
        return
    with folder as name:
        yield name


def _library_identity(folder: Path | None) -> str:
    """Names, sizes and times of llama-cpp-python's shared libraries, found without loading them."""
    if folder is None:
        package = importlib.util.find_spec("llama_cpp")
        if package is None or package.origin is None:
            raise MissingDependencyError(f"the decoder needs llama-cpp-python; {INSTALL}")
        folder = Path(package.origin).parent / "lib"
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    stats = [(path.name, path.stat()) for path in files]
    return repr([(name, status.st_size, status.st_mtime_ns) for name, status in stats])


def _nvidia_identity() -> list[str]:
    """What NVIDIA's driver for Linux says of itself and its GPUs, and which of them this process may see."""
    files = [*sorted(NVIDIA.glob("gpus/*/information")), NVIDIA / "version"]
    texts = [path.read_text(errors="replace") for path in files if path.is_file()]
    return [*texts, os.environ.get("CUDA_VISIBLE_DEVICES", "all")]


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _recall(key: str, cache: Path | None) -> LibraryVerdict | None:
    """A remembered verdict; None if there is none that can be read."""
    path = (cache or user_cache("probes")) / f"{key}.json"
    try:
        verdict = LibraryVerdict(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return verdict if verdict.outcome in ("ok", "no_extra_bufts", "crash") else None


def _remember(key: str, verdict: LibraryVerdict, cache: Path | None) -> None:
    keep((cache or user_cache("probes")) / f"{key}.json", json.dumps(asdict(verdict)))


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning("%s", message)
