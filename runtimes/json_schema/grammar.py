"""Grammars of JSON schemas, compiled by llguidance for one vocabulary."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.json_schema.escapes import needs_escapes
from edgevlm.runtimes.protocols import CallGrammar

INSTALL_TYPED = "pip install 'edgevlm[typed]'"
"""Command that installs llguidance and pydantic."""

MAX_LEXER_STATES = 50_000
"""Most states of a grammar's lexer; one takes 1 to 2 kB."""


class Grammars:
    """A compiler of translated schemas for one vocabulary.

    Args:
        pieces: UTF-8 bytes of each token; empty for control tokens.
        end_tokens: tokens that may follow a complete text.
        tokenize: converts plain text to token ids; None always takes the longest token.

    Raises:
        MissingDependencyError: llguidance is not installed.
        LoadError: llguidance cannot be loaded.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        tokenize: Callable[[str], list[int]] | None = None,
    ) -> None:
        llguidance = import_library(
            "llguidance", "llguidance", "a JSON schema", INSTALL_TYPED, INSTALL_TYPED
        )
        openings = (b"{", b"[")
        self._openings = [[], *([pieces.index(text)] for text in openings if text in pieces)]
        self._make = llguidance.LLMatcher
        self._limits = llguidance.LLParserLimits(
            verbose_errors=False, max_lexer_states=MAX_LEXER_STATES
        )
        self._tokenizer: Any = None
        vocabulary = _Vocabulary(pieces, end_tokens, tokenize or self._longest)
        self._tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary),
            n_vocab=len(pieces),
            eos_token=sorted(end_tokens),
        )

    def compile(self, schema: Mapping[str, Any]) -> tuple[Any, str]:
        """Compile a schema.

        Returns:
            llguidance's matcher and an error message, which is empty if the matcher can be used.
        """

        def write() -> str:
            written = json.dumps(schema)
            grammar: str = self._make.grammar_from_json_schema(written, overrides=_options(schema))
            return grammar

        return self._compile(write, self._openings)

    def compile_calls(self, calls: CallGrammar, schema: Mapping[str, Any]) -> tuple[Any, str]:
        """Compile the grammar of an answer with calls.

        Args:
            schema: that of the calls, translated.

        Returns:
            As `compile`.
        """

        def write() -> str:
            options = {**_options(schema), "item_separator": ", ", "key_separator": ": "}
            call = f"%json {json.dumps({**schema, 'x-guidance': options})} {_quote(calls.end)}"
            more = f"({_quote(calls.separator + calls.begin)} call)*" if calls.several else ""
            lines = [f"call: {call}"]
            if calls.required:
                lines.append(f"start: {_quote(calls.begin)} call {more}")
            else:
                # A text ends where the first call begins, or it is the whole answer, without a call.
                begin = _quote_pattern(calls.begin)
                lines += [
                    f"start: TEXT | text_before_call call {more}",
                    f"TEXT: /(?s:.*)/ & ~/(?s:.*){begin}(?s:.*)/",
                    f"text_before_call[suffix={_quote(calls.begin)}]: /(?s:.*)/",
                ]
            grammar: str = self._make.grammar_from_lark("\n".join(lines))
            return grammar

        return self._compile(write, [[]])

    def _compile(
        self, write: Callable[[], str], openings: Sequence[Sequence[int]]
    ) -> tuple[Any, str]:
        """Compile a grammar, and try the tokens of each opening."""
        try:
            matcher = self._make(self._tokenizer, write(), log_level=0, limits=self._limits)
            for opening in openings:  # most schemas over a limit fail here
                begun = matcher.deep_copy()
                begun.try_consume_tokens(opening)
                begun.compute_bitmask()
                if begun.is_error():
                    return None, reason(begun.get_error())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # Rust's panics are no Exception
            return None, f"llguidance fails on it ({type(error).__name__})"
        return matcher, reason(matcher.get_error()) if matcher.is_error() else ""

    def _longest(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.greedy_tokenize(text)
        return tokens


def _options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return llguidance's options for a schema."""
    letters = 'nrbtf\\"u' if needs_escapes(schema) else 'nrbtf\\"'
    # No free white space, of which a small model may write without end.
    return {"whitespace_flexible": False, "json_allowed_escapes": letters}


def _quote(text: str) -> str:
    """Return a text as llguidance's grammars write it."""
    return json.dumps(text, ensure_ascii=False)


def _quote_pattern(text: str) -> str:
    """Return a regular expression of llguidance's grammars that matches a text alone."""
    return "".join(f"\\x{{{ord(character):x}}}" for character in text)


class _Vocabulary:
    """The interface that llguidance expects of a tokenizer."""

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


def reason(error: str) -> str:
    """Return the cause in llguidance's error message, in the words of JSON Schema."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    first = lines[0] if lines else "llguidance gives no reason"
    if first.startswith("regex parse error"):
        cause = next(
            (line for line in lines if line.startswith("error:")), "error: it is not valid"
        )
        return f"the regular expression is not supported: {cause.partition(':')[2].strip()}"
    return next((reason for begin, reason in _REASONS if begin in first), first)


_REASONS = (
    ("oneOf constraints", "oneOf is supported where no value fits two of its options; use anyOf"),
    ("lookarounds", "look-around and word borders are not supported; ^ and $ are, at the ends"),
    ("Regex is empty", "no string fits all its constraints"),
    ("Unable to determine if regex", "too complex to tell whether a string fits it"),
    (
        "too many expressions",
        "too many or too large patterns, enums or multiples; write a smaller schema",
    ),
    ("lexer precomputation", "too many or too large patterns; write a smaller schema"),
    ("too many digits", "doubles do not hold this multiple; take another, such as 0.01 or 0.25"),
    ("too big", "too large; write a smaller schema"),
    (
        "schema too large",
        "too large once references and allOf are resolved; write a smaller schema",
    ),
    ("stack level exceeded", "allOf and references are nested too deep; write a flatter schema"),
    ("circular references", "a reference with other keywords beside it leads back to itself"),
    ("Current row has", "too many optional properties or alternatives in one place"),
    ("Failed to generate regex for", "its bounds are too far apart or too close together"),
    ("can't determine if patternProperty", "too complex to tell whether patternProperties overlap"),
    ("NoExtension", "no sequence of the model's tokens fits it"),
    (
        "min/maxProperties only",
        "minProperties and maxProperties need every name of properties in required",
    ),
    ("are not disjoint", "some names fit two of patternProperties; a name may fit only one"),
)
"""Parts of llguidance's messages, and the cause in the words of JSON Schema."""
