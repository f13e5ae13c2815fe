"""What `edgevlm.runtimes.json_schema.process` runs in a child process: it tries what a schema costs.

A client's schema may cost more than anybody can tell beforehand, and llguidance may crash on it. Here the
operating system bounds time and memory, and what breaks is this process.

The vocabulary and then schemas come on stdin as pickles; each is answered on stdout by a frame: four bytes of
the length, and JSON of the place of what is wrong and of what it is, or null.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import random
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, BinaryIO

from edgevlm.runtimes.json_schema.grammar import Grammars, reason
from edgevlm.runtimes.json_schema.keywords import Path
from edgevlm.runtimes.json_schema.translation import subschemas

HEADER = struct.Struct("<I")

WALK = 64
"""Tokens of a text that is tried; what explodes does so soon."""

SEARCH_SECONDS = 1.5
"""Of computing, for the place of what is wrong."""


class Helper:
    """Tries schemas for one vocabulary.

    Args:
        cpu_seconds: what one may cost, where the system can bound it.
    """

    def __init__(self, grammars: Grammars, cpu_seconds: int) -> None:
        self._grammars = grammars
        self._cpu_seconds = cpu_seconds

    def judge(self, schema: Mapping[str, Any]) -> tuple[Path, str] | None:
        """The place of what is wrong with a schema, and what it is."""
        _bound_time(self._cpu_seconds)
        matcher, error = self._grammars.compile(schema)
        if error:
            return self._culprit(schema), error
        return self._walk(matcher)

    def _walk(self, matcher: Any) -> tuple[Path, str] | None:
        choose = random.Random(0)
        for _ in range(WALK):
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                return (), reason(matcher.get_error())
            found = [(index, byte) for index, byte in enumerate(mask) if byte]
            if not found or matcher.is_stopped():
                break
            index, byte = choose.choice(found)
            matcher.consume_token(8 * index + byte.bit_length() - 1)
        return None

    def _culprit(self, schema: Mapping[str, Any]) -> Path:
        """The deepest place that cannot be compiled on its own, as far as `SEARCH_SECONDS` go."""
        definitions = schema.get("$defs", {})
        end = time.process_time() + SEARCH_SECONDS
        tried: dict[str, bool] = {}

        def fails(part: Mapping[str, Any]) -> bool:
            key = json.dumps(part)
            if key not in tried:
                if time.process_time() > end:
                    return False
                tried[key] = bool(self._grammars.compile({**part, "$defs": definitions})[1])
            return tried[key]

        place: Path = ()
        followed: set[str] = set()
        while True:
            within = (
                (step, part)
                for step, part in subschemas(schema)
                if isinstance(part, dict) and fails(part)
            )
            step, part = next(within, ((), None))
            name = schema.get("$ref", "").rpartition("/")[2]
            if part is not None:
                place += step
            elif name and name not in followed and fails(definitions[name]):
                followed.add(name)
                place, part = ("$defs", name), definitions[name]
            else:
                break
            schema = part
        for keyword in [keyword for keyword in schema if keyword not in ("type", "$defs")]:
            rest = {key: value for key, value in schema.items() if key not in (keyword, "$defs")}
            if not fails(rest) and time.process_time() < end:
                return (*place, keyword)
        return place


def _bound_time(seconds: int) -> None:
    """Let the system end this process after so much more time on a CPU."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    with contextlib.suppress(ValueError, OSError):
        limit = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _bound_memory(size: int) -> None:
    """Let the system refuse more memory than so much beside what is held now."""
    if not sys.platform.startswith("linux"):
        return
    import resource

    with contextlib.suppress(ValueError, OSError):
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = held + size
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


def main() -> None:
    """See the module's docstring."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # meant for the parent, whose end ends stdin
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but frames goes there
    with contextlib.suppress(EOFError, BrokenPipeError):
        pieces, end_tokens, cpu_seconds, memory_bytes = pickle.load(sys.stdin.buffer)
        helper = Helper(Grammars(pieces, end_tokens), cpu_seconds)
        _bound_memory(memory_bytes)
        _answer(frames, None)
        while True:
            _answer(frames, helper.judge(pickle.load(sys.stdin.buffer)))
    os._exit(0)


def _answer(frames: BinaryIO, found: tuple[Path, str] | None) -> None:
    body = json.dumps(found).encode()
    frames.write(HEADER.pack(len(body)) + body)
    frames.flush()


if __name__ == "__main__":
    main()
