"""The child process that tries schemas, and its limits of time and memory.

Most schemas take milliseconds. One like ``{"type": "integer", "multipleOf": 9999991}`` takes minutes and
gigabytes in one call that cannot be interrupted. A child process can be ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping
from typing import Any, BinaryIO

from edgevlm.errors import LoadError
from edgevlm.runtimes.json_schema.helper import HEADER

CPU_SECONDS = 5
"""Limit of the CPU time of one schema."""

WALL_SECONDS = 30.0
"""Limit of the elapsed time of one schema, for busy machines and for systems without a limit of CPU time."""

MEMORY_BYTES = 256 * 2**20
"""Limit of the memory for schemas, the vocabulary not counted; Linux only."""

COMMAND = (sys.executable, "-c", "from edgevlm.runtimes.json_schema.helper import main; main()")
"""The command of the child process."""


class HelperEndedError(Exception):
    """A child process that exceeded a limit or crashed; the message says which."""


class HelperProcess:
    """A child process that tries schemas.

    It ends when `close` is called, when the object is deleted, or when this process ends.

    Args:
        vocabulary: result of `encode_vocabulary`.

    Raises:
        LoadError: no child process can be started, or llguidance cannot be loaded in it.
    """

    def __init__(self, vocabulary: bytes) -> None:
        if getattr(sys, "frozen", False) or not sys.executable:
            raise LoadError(
                "a JSON schema is tried in a child process, and there is no Python interpreter to "
                "start; run edgevlm in an installed Python"
            )
        try:
            self._process = subprocess.Popen(
                COMMAND,
                cwd=os.path.abspath(os.sep),  # it imports nothing from here
                env=os.environ | {"PYTHONPATH": _path()},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            raise LoadError(
                f"a JSON schema is tried in a child process, and none can be started: {error}"
            ) from error
        self._frames: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        threading.Thread(
            target=_read_frames,
            args=(self._process.stdout, self._frames),
            name="edgevlm-json-schema",
            daemon=True,
        ).start()
        self.close = weakref.finalize(self, _end, self._process, os.getpid())
        try:
            self._write(vocabulary)
            self._receive()
        except HelperEndedError as error:
            raise LoadError(
                f"llguidance does not start in a child process ({error}); "
                f"install it again: pip install --force-reinstall llguidance"
            ) from error

    @property
    def alive(self) -> bool:
        """True if the process runs."""
        return self.close.alive and self._process.poll() is None

    def check(self, schema: Mapping[str, Any]) -> tuple[list[str | int], str] | None:
        """Try a schema. Return the place and the cause of its error; None if it has none.

        Raises:
            HelperEndedError: the schema exceeded a limit, and the process has ended.
        """
        try:
            self._write(pickle.dumps(schema))
            found: tuple[list[str | int], str] | None = json.loads(self._receive())
        except BaseException:  # also Ctrl-C: the next answer would be of an earlier schema
            self.close()
            raise
        return found

    def _receive(self) -> bytes:
        try:
            frame = self._frames.get(timeout=WALL_SECONDS)
        except queue.Empty:
            self.close()
            raise HelperEndedError(f"more than {WALL_SECONDS:.0f} seconds") from None
        if frame is None:
            self.close()
            raise HelperEndedError(self._ending())
        return frame

    def _write(self, data: bytes) -> None:
        stream = self._process.stdin
        if stream is None:
            raise HelperEndedError("it was closed")
        try:
            stream.write(data)
            stream.flush()
        except (OSError, ValueError):
            self.close()
            raise HelperEndedError(self._ending()) from None

    def _ending(self) -> str:
        """Return why the process ended."""
        status = self._process.returncode
        if sys.platform != "win32" and status == -signal.SIGXCPU:
            return f"more than {CPU_SECONDS} seconds of CPU time"
        return f"more than {MEMORY_BYTES >> 20} MiB of memory, or llguidance crashed"


def _path() -> str:
    """Return `sys.path` with absolute paths, as a value of ``PYTHONPATH``."""
    entries = []
    for entry in sys.path:
        with contextlib.suppress(OSError):  # the working directory may be gone
            entries.append(os.path.abspath(entry))
    return os.pathsep.join(entries)


def encode_vocabulary(pieces: list[bytes], end_tokens: list[int]) -> bytes:
    """Return the first message to a helper: a pickle of the vocabulary and the limits."""
    return pickle.dumps((pieces, end_tokens, CPU_SECONDS, MEMORY_BYTES))


def _read_frames(stream: BinaryIO, frames: queue.SimpleQueue[bytes | None]) -> None:
    """Read frames in a thread of its own, so that a wait for one can time out on every system."""
    with stream, contextlib.suppress(OSError, ValueError):
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            (size,) = HEADER.unpack(header)
            body = stream.read(size)
            if len(body) < size:
                break
            frames.put(body)
    frames.put(None)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # this is a fork of the process that started it
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # buffered data cannot be written any more
        if process.stdin is not None:
            process.stdin.close()
