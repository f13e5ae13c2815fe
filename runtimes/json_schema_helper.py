"""What `edgevlm.runtimes.json_schema_process` runs in a child process: llguidance, and nothing else.

A client's schema may cost more than anybody can tell beforehand, and llguidance may crash on it. Here the
operating system bounds time and memory, and what breaks is this process.

Messages come on stdin as pickles, and each is answered on stdout by a frame: a byte that says what it is,
four of the length, and the body. In between, frames may ask for the tokens of a text.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import re
import signal
import struct
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, BinaryIO

from edgevlm.runtimes.json_schema_keywords import Path
from edgevlm.runtimes.json_schema_translation import subschemas

HEADER = struct.Struct("<cI")
READY, MASK, REFUSED, TOKENIZE = b"r", b"m", b"e", b"t"
"""A matcher is made; tokens that may come next, one bit each; a schema or text that cannot go on; a text
whose tokens are wanted."""

CONTROL = re.compile(r"\\u00[01]|\\[xc]|\\p|\\P|\\0")
"""In a schema as JSON: characters that only ``\\u`` can spell in an answer, or what may stand for them."""

SEARCH_SECONDS = 1.5
"""Of computing, for the place of what is wrong."""


class Helper:
    """Matchers of one vocabulary, by number.

    Args:
        pieces: UTF-8 of each token, empty for control tokens.
        end_tokens: those that may follow a complete text.
        cpu_seconds, memory_bytes: what one message may cost, where the system can bound it.
    """

    def __init__(
        self,
        messages: BinaryIO,
        frames: BinaryIO,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        cpu_seconds: int,
        memory_bytes: int,
    ) -> None:
        import llguidance

        self._messages = messages
        self._frames = frames
        self._cpu_seconds = cpu_seconds
        self._matchers: dict[int, Any] = {}
        openings = (b"{", b"[")
        self._openings = [[], *([pieces.index(text)] for text in openings if text in pieces)]
        self._make = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(verbose_errors=False)
        wrapper = llguidance.TokenizerWrapper(_Vocabulary(pieces, end_tokens, self._tokenize))
        self._tokenizer = llguidance.LLTokenizer(
            wrapper, n_vocab=len(pieces), eos_token=sorted(end_tokens)
        )
        _bound_memory(memory_bytes)
        self._send(READY, b"")

    def run(self) -> None:
        """Until stdin ends."""
        while True:
            kind, over, number, *rest = pickle.load(self._messages)
            _bound_time(self._cpu_seconds)
            for closed in over:
                self._matchers.pop(closed, None)
            try:
                if kind == "open":
                    self._open(number, *rest)
                else:
                    self._go_on(number, *rest)
            except (KeyboardInterrupt, SystemExit, EOFError, OSError, MemoryError):
                raise
            except BaseException as error:  # Rust's panics are no Exception
                self._refuse((), f"llguidance fails on it ({type(error).__name__})")

    def _open(self, number: int, schema: Mapping[str, Any], tokens: Sequence[int]) -> None:
        matcher, error = self._compile(schema)
        if error:
            self._refuse(self._culprit(schema), error)
            return
        for token in tokens:
            matcher.consume_token(token)
        self._matchers[number] = matcher
        self._send(READY, b"")

    def _go_on(self, number: int, tokens: Sequence[int]) -> None:
        matcher = self._matchers[number]
        for token in tokens:
            matcher.consume_token(token)
        mask = matcher.compute_bitmask()
        if matcher.is_error():
            self._refuse((), _reason(matcher.get_error()))
        else:
            self._send(MASK, mask)

    def _refuse(self, place: Path, reason: str) -> None:
        self._send(REFUSED, json.dumps([place, reason]).encode())

    def _compile(self, schema: Mapping[str, Any]) -> tuple[Any, str]:
        """A matcher, and why it is of no use."""
        try:
            written = json.dumps(schema)
            # without free white space, of which a small model may write no end; without \u, which spells
            # names of properties so that they pass for others, unless the schema has such characters
            letters = 'nrbtf\\"u' if CONTROL.search(written) else 'nrbtf\\"'
            options: Any = {"whitespace_flexible": False, "json_allowed_escapes": letters}
            grammar = self._make.grammar_from_json_schema(written, overrides=options)
            matcher = self._make(self._tokenizer, grammar, log_level=0, limits=self._limits)
            for opening in self._openings:  # most schemas that meet a limit meet it here
                begun = matcher.deep_copy()
                begun.try_consume_tokens(opening)
                begun.compute_bitmask()
                if begun.is_error():
                    return None, _reason(begun.get_error())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:
            return None, f"llguidance fails on it ({type(error).__name__})"
        return matcher, _reason(matcher.get_error()) if matcher.is_error() else ""

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
                tried[key] = bool(self._compile({**part, "$defs": definitions})[1])
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

    def _tokenize(self, text: str) -> list[int]:
        """By the process that has the model's tokenizer."""
        self._send(TOKENIZE, text.encode())
        tokens: list[int] = pickle.load(self._messages)
        return tokens

    def _send(self, kind: bytes, body: bytes) -> None:
        self._frames.write(HEADER.pack(kind, len(body)) + body)
        self._frames.flush()


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], end_tokens: Collection[int], tokenize: Any) -> None:
        self.eos_token_id = min(end_tokens)
        control = {token for token, piece in enumerate(pieces) if not piece} | set(end_tokens)
        self.special_token_ids = sorted(control)
        self.tokens = [
            f"<control {token}>".encode() if token in control else piece
            for token, piece in enumerate(pieces)
        ]
        self._tokenize = tokenize

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("takes text only")  # llguidance tries bytes first
        tokens: list[int] = self._tokenize(text)
        return tokens


def _reason(error: str) -> str:
    """What llguidance's error means; its other lines are of its insides."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    first = lines[0] if lines else "llguidance says no reason"
    if first.startswith("regex parse error"):
        cause = next((line for line in lines if line.startswith("error:")), "error: it is not one")
        return f"not a regular expression that is supported: {cause.partition(':')[2].strip()}"
    return next((reason for begin, reason in _REASONS if begin in first), first)


_REASONS = (
    ("oneOf constraints", "oneOf is supported where no value fits two of its options; use anyOf"),
    ("lookarounds", "look-around and word borders are not supported; ^ and $ are, at the ends"),
    ("Regex is empty", "no text fits all that is said of it"),
    ("Unable to determine if regex", "too complex to tell whether a text fits it"),
    (
        "too many expressions",
        "too many or too large patterns, enums or multiples; write a smaller one",
    ),
    ("lexer precomputation", "too many or too large patterns; write a smaller one"),
    ("too big", "too large; write a smaller one"),
    ("schema too large", "too large once references and allOf are resolved; write a smaller one"),
    ("stack level exceeded", "allOf and references are nested too deep; write a flatter one"),
    ("circular references", "a reference with other keywords beside it leads back to itself"),
    ("Current row has", "too many optional properties or alternatives in one place"),
    ("Failed to generate regex for", "its bounds are too far apart, or too close to each other"),
    ("can't determine if patternProperty", "too complex to tell whether patternProperties overlap"),
    ("NoExtension", "no token of the model can write a text that fits it"),
    ("are not disjoint", "a name may fit one of patternProperties only, and some fit two"),
)
"""Part of what llguidance says, and the same in the words of the standard."""


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
        Helper(sys.stdin.buffer, frames, *pickle.load(sys.stdin.buffer)).run()
    os._exit(0)


if __name__ == "__main__":
    main()
