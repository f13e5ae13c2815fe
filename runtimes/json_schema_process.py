"""The child process in which llguidance works, and the bounds on what a schema may cost there.

Most schemas take milliseconds. One like ``{"type": "integer", "multipleOf": 9999991}`` takes minutes and
gigabytes within one call that nothing can interrupt, so such calls are made where they can be ended.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, BinaryIO

from edgevlm.errors import RuntimeLoadError
from edgevlm.runtimes.json_schema_helper import HEADER, TOKENIZE

CPU_SECONDS = 5
"""Of one step: taking in a schema, or one token of an answer."""

WALL_SECONDS = 30.0
"""The same by the clock on the wall, for a machine that is busy, or that cannot bound the other."""

MEMORY_BYTES = 256 * 2**20
"""Beside the vocabulary; Linux only."""

COMMAND = (sys.executable, "-c", "from edgevlm.runtimes.json_schema_helper import main; main()")


class HelperEndedError(Exception):
    """The child process went past a bound, or crashed; the message says which."""


class HelperProcess:
    """One child process; ends when it is closed, when nobody refers to it, and with this process.

    Args:
        vocabulary: pickled pieces and end tokens.
        tokenize: plain text to ids.

    Raises:
        RuntimeLoadError: no child process can be started here, or llguidance does not load in it.
    """

    def __init__(self, vocabulary: bytes, tokenize: Callable[[str], list[int]]) -> None:
        self._tokenize = tokenize
        if getattr(sys, "frozen", False) or not sys.executable:
            raise RuntimeLoadError(
                "a JSON schema is worked on in a child process, and there is no Python interpreter to "
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
            raise RuntimeLoadError(
                f"a JSON schema is worked on in a child process, and none can be started: {error}"
            ) from error
        self._frames: queue.SimpleQueue[tuple[bytes, bytes] | None] = queue.SimpleQueue()
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
            raise RuntimeLoadError(
                f"llguidance does not start in a child process ({error}); "
                f"install it again: pip install --force-reinstall llguidance"
            ) from error

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self.close.alive and self._process.poll() is None

    def ask(self, *message: Any) -> tuple[bytes, bytes]:
        """What comes of a message: a frame's kind and body.

        Raises:
            HelperEndedError: it has ended, or had to be.
        """
        try:
            self._write(pickle.dumps(message))
            return self._receive()
        except BaseException:  # also Ctrl-C: what comes later would answer another message
            self.close()
            raise

    def _receive(self) -> tuple[bytes, bytes]:
        """The next frame; texts are tokenized meanwhile."""
        while True:
            try:
                frame = self._frames.get(timeout=WALL_SECONDS)
            except queue.Empty:
                self.close()
                raise HelperEndedError(f"more than {WALL_SECONDS:.0f} seconds") from None
            if frame is None:
                self.close()
                raise HelperEndedError(self._ending())
            if frame[0] != TOKENIZE:
                return frame
            self._write(pickle.dumps(self._tokenize(frame[1].decode("utf-8", "replace"))))

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


def _read_frames(stream: BinaryIO, frames: queue.SimpleQueue[tuple[bytes, bytes] | None]) -> None:
    """In a thread of its own, so that waiting can have an end on every system."""
    with contextlib.suppress(OSError, ValueError):
        while len(header := stream.read(HEADER.size)) == HEADER.size:
            kind, size = HEADER.unpack(header)
            body = stream.read(size)
            if len(body) < size:
                break
            frames.put((kind, body))
    frames.put(None)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that it belongs to
    process.kill()
    process.wait()
    with contextlib.suppress(OSError):  # what was not written yet
        if process.stdin is not None:
            process.stdin.close()
