"""Constrained decoding: the tokens that can continue a JSON text of a schema, computed by llguidance.

llama.cpp's own grammars abort the process where no token fits, and allow control characters within strings.
llguidance does neither, and says why it does not support a schema. Each schema is tried in a child process
first, which bounds its cost in time and memory.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.lru_cache import LruCache
from edgevlm.runtimes.json_schema.ends import check_ends
from edgevlm.runtimes.json_schema.escapes import check_escapes
from edgevlm.runtimes.json_schema.grammar import Grammars, reason
from edgevlm.runtimes.json_schema.keywords import refusal, refuse
from edgevlm.runtimes.json_schema.multiples import check_multiples
from edgevlm.runtimes.json_schema.process import HelperEndedError, HelperProcess, encode_vocabulary
from edgevlm.runtimes.json_schema.translation import Translation, translate
from edgevlm.runtimes.protocols import CallGrammar

MAX_CHARACTERS = 65_536
"""Longest schema, in characters of JSON."""

MAX_REMEMBERED_SCHEMAS = 256
"""Schemas whose check is remembered, so that they are not tried again."""


class JsonConstraint:
    """Checks schemas and makes matchers for one vocabulary. Thread-safe.

    Args:
        pieces: UTF-8 bytes of each token; empty for control tokens.
        end_tokens: tokens that may follow a complete text.
        tokenize: converts plain text to token ids.

    Raises:
        MissingDependencyError: llguidance is not installed.
        LoadError: llguidance cannot be loaded.
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        end_tokens: Collection[int],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._grammars = Grammars(pieces, end_tokens, tokenize)
        self._vocabulary = encode_vocabulary(list(pieces), sorted(end_tokens))
        self._vocabulary_size = len(pieces)
        self._end_token = min(end_tokens)
        self._try_lock = threading.Lock()
        """Held while a schema is tried. Schemas that are remembered do not wait for it."""
        self._helper: HelperProcess | None = None
        self._messages: LruCache[bytes, str] = LruCache(MAX_REMEMBERED_SCHEMAS)
        """Error messages by hash of the schema; empty for schemas that are supported."""

    def check(self, schema: Mapping[str, Any]) -> Translation:
        """Check that a schema is supported and not too costly, and translate it.

        Raises:
            InputError: the schema is too long, not valid, not supported or too costly. The message is one
                line, with the place in the schema.
            LoadError: the child process cannot be started.
        """
        translation = check_schema(schema)
        message = self._message(translation)
        if message:
            raise InputError(message)
        return translation

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """Return a matcher for one text; errors as of `check`."""
        translation = self.check(schema)
        matcher, error = self._grammars.compile(translation.schema)
        if error:
            refuse((), error)
        return JsonMatcher(matcher, self._vocabulary_size, self._end_token)

    def call_matcher(self, calls: CallGrammar) -> JsonMatcher:
        """Return a matcher for one answer with calls; errors as of `check` for their schema."""
        translation = self.check(calls.schema)
        matcher, error = self._grammars.compile_calls(calls, translation.schema)
        if error:
            refuse((), error)
        return JsonMatcher(matcher, self._vocabulary_size, self._end_token)

    def _message(self, translation: Translation) -> str:
        """Return why a schema is not supported, remembered or tried; an empty string if it is."""
        key = hashlib.sha256(json.dumps(translation.schema).encode()).digest()
        message = self._messages.get(key)
        if message is not None:
            return message
        with self._try_lock:
            message = self._messages.get(key)
            if message is None:
                message = self._messages[key] = self._try(translation)
        return message

    def _try(self, translation: Translation) -> str:
        if self._helper is None or not self._helper.alive:
            self._helper = HelperProcess(self._vocabulary)
        try:
            found = self._helper.check(translation.schema)
        except HelperEndedError as error:
            return refusal((), f"costs too much: {error}; write a simpler schema")
        if found is None:
            return ""
        place, cause = found
        return refusal(translation.origin(tuple(place)), cause)


class JsonMatcher:
    """The state of one JSON text while the model writes it."""

    def __init__(self, matcher: Any, vocabulary_size: int, end_token: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size
        self._end_token = end_token

    def accept_forced(self) -> list[int]:
        """Continue the text as far as the schema leaves no choice, and return the tokens of it.

        The tokens are those that the model's tokenizer makes of the forced text. They end with an end token
        if the text is complete and nothing can follow.

        Raises:
            InputError: the schema became too complex.
        """
        forced: list[int] = self._call(self._matcher.compute_ff_tokens)
        if forced:
            self._call(self._matcher.consume_tokens, forced)
        return [*forced, self._end_token] if self._matcher.is_stopped() else forced

    def allowed_tokens(self) -> NDArray[np.int64]:
        """Return the ids of the tokens that can come next, ascending; at least one.

        Raises:
            InputError: the schema became too complex, or no token can continue the text.
        """
        mask = np.frombuffer(self._call(self._matcher.compute_bitmask), np.uint8)
        bits = np.unpackbits(mask, bitorder="little")[: self._vocabulary_size]
        found = np.flatnonzero(bits)
        if not len(found):
            refuse((), "no token of the model can continue the text; use another schema")
        return found

    def accept(self, token: int) -> None:
        """Continue the text with a token, one of `allowed_tokens`.

        Raises:
            InputError: the schema became too complex, or does not allow the token.
        """
        self._call(self._matcher.consume_token, token)

    def _call(self, method: Callable[..., Any], *arguments: Any) -> Any:
        """Call one of llguidance's methods and return its result, or raise InputError."""
        try:
            found = method(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Rust's panics are no Exception
            refuse((), f"llguidance fails on it ({type(error).__name__})")
        if self._matcher.is_error():
            refuse((), f"llguidance cannot continue the text: {reason(self._matcher.get_error())}")
        return found


def check_schema(schema: Mapping[str, Any]) -> Translation:
    """Check a schema without llguidance, and translate it for llguidance.

    Raises:
        InputError: the schema is too long, not valid or not supported, or its answers cannot end. The message
            is one line, with the place in the schema.
    """
    if not isinstance(schema, Mapping):
        raise InputError(f"json_schema must be a mapping, is {type(schema).__name__}")
    try:
        size = len(json.dumps(dict(schema), default=str, skipkeys=True))
    except RecursionError:
        refuse((), "nested too deep; write a flatter schema")
    except ValueError as error:
        circular = "ircular" in str(error)
        refuse(
            (), "it is within itself" if circular else "it has an integer of thousands of digits"
        )
    if size > MAX_CHARACTERS:
        refuse((), f"has {size} characters as JSON; at most {MAX_CHARACTERS} are accepted")
    translation = translate(schema)
    check_ends(translation)
    check_multiples(translation)
    check_escapes(translation)
    return translation
