"""Which tokens may go on a JSON text of a schema, by llguidance.

llama.cpp's own grammars would end the process where nothing fits, and allow control characters within
strings; llguidance does neither, and says why a schema cannot be kept to. A schema is tried in a child
process first, so that none can cost this one more than a wait.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.runtimes.json_schema.ends import check_ends
from edgevlm.runtimes.json_schema.grammar import Grammars, reason
from edgevlm.runtimes.json_schema.keywords import refusal, refuse
from edgevlm.runtimes.json_schema.process import HelperEndedError, HelperProcess, hello
from edgevlm.runtimes.json_schema.translation import Translation, translate

MAX_CHARACTERS = 65_536
"""Of a schema as JSON; longer ones are refused."""

REMEMBERED = 256
"""Schemas whose verdict is known, so that they are not tried again."""


class JsonTexts:
    """Makes matchers for one vocabulary; may be used by several threads.

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
        self._grammars = Grammars(pieces, end_tokens, tokenize)
        self._vocabulary = hello(list(pieces), sorted(end_tokens))
        self._vocabulary_size = len(pieces)
        self._trying = threading.Lock()
        """One schema at a time; a schema whose verdict is known does not wait for it."""
        self._helper: HelperProcess | None = None
        self._verdicts: OrderedDict[bytes, str] = OrderedDict()
        """Messages of schemas that are refused, and nothing for the others."""

    def check(self, schema: Mapping[str, Any]) -> Translation:
        """Refuse a schema that cannot be kept to; what that costs has the bounds of the child process.

        Raises:
            InputError: a schema that is too long, not valid, or that asks for what cannot be kept to; one
                line, with the place in the schema.
            LoadError: the process in which schemas are tried cannot be started.
        """
        translation = checked(schema)
        message = self._verdict(translation)
        if message:
            raise InputError(message)
        return translation

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """Make a matcher for one text; raises as `check`."""
        translation = self.check(schema)
        matcher, error = self._grammars.compile(translation.schema)
        if error:
            refuse((), error)
        return JsonMatcher(matcher, self._vocabulary_size)

    def _verdict(self, translation: Translation) -> str:
        """Why a schema is refused, remembered or tried; nothing if it is not."""
        key = hashlib.sha256(json.dumps(translation.schema).encode()).digest()
        verdict = self._verdicts.get(key)
        if verdict is not None:
            return verdict
        with self._trying:
            verdict = self._verdicts.get(key)
            if verdict is None:
                verdict = self._verdicts[key] = self._try(translation)
            if len(self._verdicts) > REMEMBERED:
                self._verdicts.popitem(last=False)
        return verdict

    def _try(self, translation: Translation) -> str:
        if self._helper is None or not self._helper.alive:
            self._helper = HelperProcess(self._vocabulary)
        try:
            found = self._helper.judge(translation.schema)
        except HelperEndedError as error:
            return refusal((), f"costs too much: {error}; write a simpler schema")
        if found is None:
            return ""
        place, why = found
        return refusal(translation.origin(tuple(place)), why)


class JsonMatcher:
    """One text while it grows."""

    def __init__(self, matcher: Any, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size

    def allowed(self) -> NDArray[np.int64]:
        """Ids of the tokens that may come next, ascending; at least one.

        Raises:
            InputError: the schema became too complex, or no token can go on.
        """
        mask = np.frombuffer(self._asked(self._matcher.compute_bitmask), np.uint8)
        bits = np.unpackbits(mask, bitorder="little")[: self._vocabulary_size]
        found = np.flatnonzero(bits)
        if not len(found):
            refuse((), "no token of the model can go on the text; use another schema")
        return found

    def push(self, token: int) -> None:
        """The text goes on with this token, one of `allowed`."""
        self._asked(self._matcher.consume_token, token)

    def _asked(self, method: Callable[..., Any], *arguments: int) -> Any:
        """What one of llguidance's methods returns, if all is well."""
        try:
            found = method(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # Rust's panics are no Exception
            refuse((), f"llguidance fails on it ({type(error).__name__})")
        if self._matcher.is_error():
            refuse((), f"cannot be kept to any more: {reason(self._matcher.get_error())}")
        return found


def checked(schema: Mapping[str, Any]) -> Translation:
    """A schema as llguidance reads it, without asking llguidance.

    Raises:
        InputError: a schema that is too long, not valid, without an end, or that asks for what is not
            supported; one line, with the place in the schema.
    """
    if not isinstance(schema, Mapping):
        raise InputError(f"json_schema must be a mapping, is {type(schema).__name__}")
    try:
        size = len(json.dumps(dict(schema), default=str, skipkeys=True))
    except RecursionError:
        refuse((), "nested too deep; write a flatter one")
    except ValueError as error:
        within = "ircular" in str(error)
        refuse((), "it is within itself" if within else "it has an integer of thousands of digits")
    if size > MAX_CHARACTERS:
        refuse((), f"has {size} characters as JSON, at most {MAX_CHARACTERS} are accepted")
    translation = translate(schema)
    check_ends(translation)
    return translation
