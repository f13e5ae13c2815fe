"""The child process in which schemas are tried, and the bounds on what one may cost there.

Most schemas take milliseconds. One like ``{"type": "integer", "multipleOf": 9999991}`` takes minutes and
gigabytes within one call that nothing can interrupt, so such calls are made where they can be ended.
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
"""Of computing, for one schema."""

WALL_SECONDS = 30.0
"""The same by the clock on the wall, for a machine that is busy, or that cannot bound the other."""

MEMORY_BYTES = 256 * 2**20
"""Beside the vocabulary; Linux only."""

COMMAND = (sys.executable, "-c", "from edgevlm.runtimes.json_schema.helper import main; main()")


class HelperEndedError(Exception):
    """The child process went past a bound, or crashed; the message says which."""


class HelperProcess:
    """One child process; ends when it is closed, when nobody refers to it, and with this process.

    Args:
        vocabulary: `hello` of it.

    Raises:
        LoadError: no child process can be started here, or llguidance does not load in it.
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
        """Whether it has not ended."""
        return self.close.alive and self._process.poll() is None

    def judge(self, schema: Mapping[str, Any]) -> tuple[list[str | int], str] | None:
        """The place of what is wrong with a schema, and what it is; None if it can be kept to.

        Raises:
            HelperEndedError: it went past a bound; this process is of no more use.
        """
        try:
            self._write(pickle.dumps(schema))
            found: tuple[list[str | int], str] | None = json.loads(self._receive())
        except BaseException:  # also Ctrl-C: what comes later would answer another schema
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
        """Why the process ended, once it has."""
        status = self._process.returncode
        if sys.platform != "win32" and status == -signal.SIGXCPU:
            return f"more than {CPU_SECONDS} seconds of computing"
        return f"more than {MEMORY_BYTES >> 20} MiB of memory, or what llguidance cannot do"


def _path() -> str:
    """Where modules are imported from, as ``PYTHONPATH``."""
    entries = []
    for entry in sys.path:
        with contextlib.suppress(OSError):  # the working directory may be gone
            entries.append(os.path.abspath(entry))
    return os.pathsep.join(entries)


def hello(pieces: list[bytes], end_tokens: list[int]) -> bytes:
    """What a helper is told first."""
    return pickle.dumps((pieces, end_tokens, CPU_SECONDS, MEMORY_BYTES))


def _read_frames(stream: BinaryIO, frames: queue.SimpleQueue[bytes | None]) -> None:
    """In a thread of its own, so that waiting can have an end on every system."""
    with contextlib.suppress(OSError, ValueError):
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            (size,) = HEADER.unpack(header)
            body = stream.read(size)
            if len(body) < size:
                break
            frames.put(body)
    frames.put(None)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that it belongs to
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # what was not written yet
        if process.stdin is not None:
            process.stdin.close()
