"""JSON constraints of a decoder's vocabulary, each made when it is first needed."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from edgevlm.errors import InputError
from edgevlm.runtimes.protocols import Sampling

if TYPE_CHECKING:  # imported with the first schema only
    from edgevlm.runtimes.json_schema.constraint import JsonConstraint, JsonMatcher


class Constraints:
    """The JSON constraints of one vocabulary, by the tokens that end a text.

    Args:
        vocabulary_size: number of tokens.
        piece: returns the UTF-8 bytes of a token; empty for control tokens.
        tokenize: converts plain text to token ids.
    """

    def __init__(
        self,
        vocabulary_size: int,
        piece: Callable[[int], bytes],
        tokenize: Callable[[str], list[int]],
    ) -> None:
        self._vocabulary_size = vocabulary_size
        self._piece = piece
        self._tokenize = tokenize
        self._made: dict[frozenset[int], JsonConstraint] = {}

    def find(self, end_tokens: Collection[int]) -> JsonConstraint:
        """Return the constraint with these end tokens, made at the first call.

        Args:
            end_tokens: tokens that may follow a complete JSON text.

        Raises:
            InputError: there are no end tokens.
            MissingDependencyError: llguidance is not installed.
        """
        from edgevlm.runtimes.json_schema.constraint import JsonConstraint

        ends = frozenset(end_tokens)
        if not ends:
            raise InputError("a JSON schema needs end_tokens: without one the text has no end")
        if ends not in self._made:
            pieces = [self._piece(token) for token in range(self._vocabulary_size)]
            self._made[ends] = JsonConstraint(pieces, ends, self._tokenize)
        return self._made[ends]

    def matcher(self, sampling: Sampling, end_tokens: Collection[int]) -> JsonMatcher | None:
        """Return a matcher for one answer; None: the settings have no schema.

        Raises:
            InputError: the schema is not supported, or there are no end tokens.
            MissingDependencyError: llguidance is not installed.
        """
        if sampling.calls is not None:
            return self.find(end_tokens).call_matcher(sampling.calls)
        if sampling.json_schema is not None:
            return self.find(end_tokens).matcher(sampling.json_schema)
        return None

    def close(self) -> None:
        """End the child processes. A second call does nothing."""
        self._made.clear()
