"""Grammars of JSON schemas in llguidance, for one vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from edgevlm.runtimes.imports import import_library

INSTALL = "pip install 'edgevlm[serve]'"

MAX_LEXER_STATES = 50_000
"""That a grammar may come to while a text grows; 1 to 2 kB each."""

CONTROL = re.compile(r"\\u00[01]|\\[xc]|\\p|\\P|\\0")
"""In a schema as JSON: characters that only ``\\u`` can spell in an answer, or what may stand for them."""


class Grammars:
    """Compiles schemas that were translated.

    Args:
        pieces: UTF-8 of each token, empty for control tokens.
        end_tokens: those that may follow a complete text.
        tokenize: plain text to ids; None takes the longest tokens.

    Raises:
        MissingDependencyError: llguidance is not installed.
        LoadError: it does not load.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        tokenize: Callable[[str], list[int]] | None = None,
    ) -> None:
        llguidance = import_library("llguidance", "llguidance", "a JSON schema", INSTALL, INSTALL)
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
        """llguidance's matcher, and why it is of no use, if it is not."""
        try:
            written = json.dumps(schema)
            # without free white space, of which a small model may write no end; without \\u, which spells
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
                    return None, reason(begun.get_error())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # Rust's panics are no Exception
            return None, f"llguidance fails on it ({type(error).__name__})"
        return matcher, reason(matcher.get_error()) if matcher.is_error() else ""

    def _longest(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer.greedy_tokenize(text)
        return tokens


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


def reason(error: str) -> str:
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
