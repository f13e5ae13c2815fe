"""Plain text of a prompt to token ids, as the tokenizer of the checkpoint does it.

A decoder runtime splits and merges text. It does not normalize text and puts no space before it: that is done
here, and so is a split that the runtime cannot do.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

from edgevlm.inputs.splitting import split_tekken

MAX_REMEMBERED_PARTS = 1 << 14
"""Parts of split texts whose tokens are remembered. Each call of llama.cpp takes some 0.02 ms, and the next
turn of a conversation has all parts of those before it."""

_SPACE = "▁"
"""The mark that SentencePiece writes for a space."""


class PlainText:
    """Tokenizes plain text, which is what stands between special tokens.

    Args:
        tokenize: the tokenizer of the decoder runtime, recognizing no special token.
        normalization: ``"nfc"`` composes characters, as Unicode's normalization form C; None: the text stays
            as it is.
        space_prefix: which text gets a space before it. ``"prepend"``: every text. ``"metaspace-always"``:
            every text that begins with neither a space nor ``▁``. ``"metaspace-first"``: the same, but only
            at the start of the prompt.
        added_tokens: tokens that are not special, and that are found in the text before it is normalized.
            What stands before and after them is text of its own.
        splitting: ``"tekken"`` splits text by `split_tekken` first, and each part is tokenized by itself;
            None: the runtime splits text.
    """

    def __init__(
        self,
        tokenize: Callable[[str], list[int]],
        *,
        normalization: Literal["nfc"] | None = None,
        space_prefix: Literal["never", "prepend", "metaspace-always", "metaspace-first"] = "never",
        added_tokens: Sequence[str] = (),
        splitting: Literal["tekken"] | None = None,
    ) -> None:
        self._tokenize = (
            functools.lru_cache(MAX_REMEMBERED_PARTS)(tokenize) if splitting else tokenize
        )
        self._splitting = splitting
        self._normalization = normalization
        self._space_prefix = space_prefix
        longest_first = sorted(added_tokens, key=len, reverse=True)
        self._added = (
            re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None
        )

    def tokenize(self, text: str, *, at_start: bool) -> list[int]:
        """Return the token ids of a text; errors as of the decoder's `tokenize`.

        Args:
            text: all text between two special tokens, not a part of it.
            at_start: the rendered prompt begins with this text.
        """
        ids: list[int] = []
        for index, part in enumerate(self._added.split(text) if self._added else [text]):
            if index % 2:
                ids += self._tokenize(part)
            elif part:
                prefixed = self._prefixed(part, at_start=at_start and index == 0)
                for word in split_tekken(prefixed) if self._splitting else [prefixed]:
                    ids += self._tokenize(word)
        return ids

    def _prefixed(self, text: str, *, at_start: bool) -> str:
        if self._normalization == "nfc":
            text = unicodedata.normalize("NFC", text)
        if self._space_prefix == "prepend":
            return " " + text
        if self._space_prefix == "metaspace-always" or (
            self._space_prefix == "metaspace-first" and at_start
        ):
            return text if text.startswith((" ", _SPACE)) else " " + text
        return text
