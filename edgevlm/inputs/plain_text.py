"""Plain text to token ids: the text between two special tokens of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal


class PlainText:
    """Tokenizes the text between two special tokens as the tokenizer of the checkpoint does."""

    def __init__(
        self,
        tokenize: Callable[[str], list[int]],
        *,
        normalization: Literal["nfc"] | None,
        space_prefix: Literal["never", "prepend", "metaspace-always", "metaspace-first"],
    ) -> None:
        self._tokenize = tokenize

    def tokenize(self, text: str, *, at_start: bool) -> list[int]:
        """Return token ids."""
        return self._tokenize(text)
