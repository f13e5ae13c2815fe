"""Which tokens may go on a JSON text of a schema, by llguidance.

llama.cpp's own grammars would end the process where nothing fits, and allow control characters within
strings; llguidance does neither, and says why a schema cannot be kept to.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError, RuntimeLoadError
from edgevlm.runtimes.libraries import import_library

INSTALL = "pip install 'edgevlm[serve]'"

MOST_CHARACTERS = 65_536
"""Of a schema as JSON; longer ones are refused."""


class JsonTexts:
    """Makes matchers for one vocabulary; costs about a second for 50,000 tokens.

    Args:
        pieces: UTF-8 of each token, empty for control tokens.
        end_tokens: those that may follow a complete text.
        tokenize: plain text to ids.

    Raises:
        MissingDependencyError: llguidance is not installed.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._llguidance = import_library(
            "llguidance", "llguidance", "a JSON schema", INSTALL, INSTALL
        )
        wrapper = self._llguidance.TokenizerWrapper(_Vocabulary(pieces, end_tokens, tokenize))
        self._tokenizer = self._llguidance.LLTokenizer(
            wrapper, n_vocab=len(pieces), eos_token=sorted(end_tokens)
        )

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """For one text.

        Raises:
            InputError: a schema that is too long, not valid, or that asks for what cannot be kept to.
        """
        try:
            written = json.dumps(schema, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(f"json_schema cannot be written as JSON: {error}") from error
        if len(written) > MOST_CHARACTERS:
            raise InputError(
                f"json_schema has {len(written)} characters, at most {MOST_CHARACTERS} are accepted"
            )
        make = self._llguidance.LLMatcher
        try:
            # without free white space, of which a small model may write no end
            grammar = make.grammar_from_json_schema(
                written, overrides={"whitespace_flexible": False}
            )
        except ValueError as error:
            raise InputError(f"json_schema is not a JSON schema: {error}") from error
        matcher = make(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise InputError(f"json_schema cannot be kept to: {matcher.get_error()}")
        return JsonMatcher(matcher, self._tokenizer.vocab_size)


class JsonMatcher:
    """One text while it grows."""

    def __init__(self, matcher: Any, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def allowed(self) -> NDArray[np.int64]:
        """Ids of the tokens that may come next, ascending; at least one.

        Raises:
            RuntimeLoadError: the schema became too complex, or no token can go on.
        """
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        bits = np.unpackbits(mask, bitorder="little")[: self._vocabulary_size]
        found = np.flatnonzero(bits)
        self._check()
        if not len(found):
            raise RuntimeLoadError(
                "no token of the model can go on the JSON text; use another schema"
            )
        return found

    def push(self, token: int) -> None:
        """The text goes on with this token, one of `allowed`."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RuntimeLoadError(
                f"the JSON schema cannot be kept to any more: {self._matcher.get_error()}"
            )


class _Vocabulary:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(
        self,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
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
        return self._tokenize(text)
