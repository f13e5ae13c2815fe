"""Which tokens may go on a JSON text of a schema, by llguidance.

llama.cpp's own grammars would end the process where nothing fits, and allow control characters within
strings; llguidance does neither, and says why a schema cannot be kept to. It works in a child process, so
that no schema can cost this one more than a wait.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.runtimes.json_schema_ends import check_ends
from edgevlm.runtimes.json_schema_helper import REFUSED
from edgevlm.runtimes.json_schema_keywords import refuse
from edgevlm.runtimes.json_schema_process import HelperEndedError, HelperProcess, hello
from edgevlm.runtimes.json_schema_translation import Translation, translate

INSTALL = "pip install 'edgevlm[serve]'"

MAX_CHARACTERS = 65_536
"""Of a schema as JSON; longer ones are refused."""

REMEMBERED = 256
"""Schemas that cost too much, refused at once when they come again."""


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
        if importlib.util.find_spec("llguidance") is None:
            raise MissingDependencyError(f"a JSON schema needs llguidance; {INSTALL}")
        self._vocabulary = hello(list(pieces), sorted(end_tokens))
        self._vocabulary_size = len(pieces)
        self._tokenize = tokenize
        self._lock = threading.Lock()
        self._session: Session | None = None
        self._too_costly: OrderedDict[bytes, str] = OrderedDict()

    def matcher(self, schema: Mapping[str, Any]) -> JsonMatcher:
        """For one text.

        Raises:
            InputError: a schema that is too long, not valid, or that asks for what cannot be kept to; one
                line, with the place in the schema.
            RuntimeLoadError: llguidance's process cannot be started.
        """
        return JsonMatcher(self, checked(schema))

    def open(self, translation: Translation, tokens: Sequence[int]) -> Ticket:
        """Begin a text in the child process, with these tokens.

        Raises:
            InputError: see `matcher`.
        """
        key = hashlib.sha256(json.dumps(translation.schema).encode()).digest()
        with self._lock:
            if key in self._too_costly:
                refuse((), self._too_costly[key])
            if self._session is None or not self._session.alive:
                self._session = Session(HelperProcess(self._vocabulary, self._tokenize))
            ticket = Ticket(self._session)
            try:
                kind, body = ticket.ask("open", translation.schema, list(tokens))
            except HelperEndedError as error:
                reason = f"costs too much: {error}; write a simpler schema"
                self._too_costly[key] = reason
                if len(self._too_costly) > REMEMBERED:
                    self._too_costly.popitem(last=False)
                refuse((), reason)
        if kind == REFUSED:
            place, reason = json.loads(body)
            refuse(translation.origin(tuple(place)), reason)
        return ticket

    def allowed(self, ticket: Ticket, tokens: Sequence[int]) -> NDArray[np.int64] | None:
        """Ids of the tokens that may come next, ascending, after these; None if the process had ended.

        Raises:
            InputError: the schema became too complex.
        """
        with self._lock:
            if not ticket.session.alive:
                return None
            try:
                kind, body = ticket.ask("next", list(tokens))
            except HelperEndedError as error:
                refuse((), f"an answer costs too much: {error}; write a simpler schema")
        if kind == REFUSED:
            refuse((), f"cannot be kept to any more: {json.loads(body)[1]}")
        bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little")
        return np.flatnonzero(bits[: self._vocabulary_size])


class JsonMatcher:
    """One text while it grows; begun again where another one has ended the child process."""

    def __init__(self, texts: JsonTexts, translation: Translation) -> None:
        self._texts = texts
        self._translation = translation
        self._tokens: list[int] = []
        self._told = 0
        """How many of them the child process knows."""
        self._ticket = texts.open(translation, ())

    def allowed(self) -> NDArray[np.int64]:
        """Ids of the tokens that may come next, ascending; at least one.

        Raises:
            InputError: the schema became too complex, or no token can go on.
        """
        found = self._texts.allowed(self._ticket, self._tokens[self._told :])
        while found is None:
            self._ticket = self._texts.open(self._translation, self._tokens)
            found = self._texts.allowed(self._ticket, ())
        self._told = len(self._tokens)
        if not len(found):
            refuse((), "no token of the model can go on the text; use another schema")
        return found

    def push(self, token: int) -> None:
        """The text goes on with this token, one of `allowed`."""
        self._tokens.append(token)


class Session:
    """One child process, and how many texts were begun in it."""

    def __init__(self, process: HelperProcess) -> None:
        self._process = process
        self._count = 0
        self._over: deque[int] = deque()
        """Texts that are over; any thread may say so at any time."""

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.alive

    def begin(self, ticket: Ticket) -> int:
        """A number for a new text, given back when nobody refers to its ticket."""
        self._count += 1
        weakref.finalize(ticket, self._over.append, self._count)
        return self._count

    def ask(self, kind: str, number: int, *message: Any) -> tuple[bytes, bytes]:
        """What comes of a message about a text."""
        over = [self._over.popleft() for _ in range(len(self._over))]
        return self._process.ask(kind, over, number, *message)


class Ticket:
    """A text's place in a child process."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._number = session.begin(self)

    def ask(self, kind: str, *message: Any) -> tuple[bytes, bytes]:
        """What comes of a message about this text."""
        return self.session.ask(kind, self._number, *message)


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
