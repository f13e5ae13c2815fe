"""The program that `edgevlm.runtimes.json_schema.process` runs in a child process to try schemas.

The cost of a client's schema cannot be predicted, and llguidance may crash on it. Here the operating system
bounds time and memory, and only this process ends.

Pickles of the vocabulary and then of schemas come on stdin. The answer to each is a frame on stdout: four
bytes of length, then JSON of the place and the cause of an error, or null.
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
from edgevlm.runtimes.json_schema.keywords import SchemaPath
from edgevlm.runtimes.json_schema.translation import definition_name, subschemas

HEADER = struct.Struct("<I")
"""Header of a frame: the length of its body in bytes."""

TRIAL_TOKENS = 64
"""Tokens of the text that is tried. Costs that explode do so within a few tokens."""

SEARCH_SECONDS = 1.5
"""CPU seconds for the search of an error's place."""


class Helper:
    """Tries schemas for one vocabulary.

    Args:
        grammars: the compiler for this vocabulary.
        cpu_seconds: limit of the CPU time of one schema, on systems that have such a limit.
    """

    def __init__(self, grammars: Grammars, cpu_seconds: int) -> None:
        self._grammars = grammars
        self._cpu_seconds = cpu_seconds

    def check(self, schema: Mapping[str, Any]) -> tuple[SchemaPath, str] | None:
        """Try a schema. Return the place and the cause of its error; None if it has none."""
        _bound_time(self._cpu_seconds)
        matcher, error = self._grammars.compile(schema)
        if error:
            return self._find_error(schema), error
        return self._try_tokens(matcher)

    def _try_tokens(self, matcher: Any) -> tuple[SchemaPath, str] | None:
        choose = random.Random(0)
        for _ in range(TRIAL_TOKENS):
            mask = matcher.compute_bitmask()
            if matcher.is_error():
                return (), reason(matcher.get_error())
            found = [(index, byte) for index, byte in enumerate(mask) if byte]
            if not found or matcher.is_stopped():
                break
            index, byte = choose.choice(found)
            matcher.consume_token(8 * index + byte.bit_length() - 1)
        return None

    def _find_error(self, schema: Mapping[str, Any]) -> SchemaPath:
        """Return the deepest place that does not compile by itself, as found within `SEARCH_SECONDS`."""
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

        place: SchemaPath = ()
        followed: set[str] = set()
        while True:
            within = (
                (step, part)
                for step, part in subschemas(schema)
                if isinstance(part, dict) and fails(part)
            )
            step, part = next(within, ((), None))
            name = definition_name(schema)
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
    """Make the system end this process after `seconds` more of CPU time."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    with contextlib.suppress(ValueError, OSError):
        limit = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


def _bound_memory(size: int) -> None:
    """Make the system refuse this process more than `size` more bytes of memory."""
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
    """Run the program as the module's docstring says."""
    for name in (
        "SIGINT",
        "SIGTERM",
        "SIGHUP",
    ):  # the parent handles them, and its end closes stdin
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    frames = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # other output must not get between the frames
    with contextlib.suppress(EOFError, BrokenPipeError):
        pieces, end_tokens, cpu_seconds, memory_bytes = pickle.load(sys.stdin.buffer)
        helper = Helper(Grammars(pieces, end_tokens), cpu_seconds)
        _bound_memory(memory_bytes)
        _answer(frames, None)
        while True:
            _answer(frames, helper.check(pickle.load(sys.stdin.buffer)))
    os._exit(0)


def _answer(frames: BinaryIO, found: tuple[SchemaPath, str] | None) -> None:
    body = json.dumps(found).encode()
    frames.write(HEADER.pack(len(body)) + body)
    frames.flush()


if __name__ == "__main__":
    main()
