"""The bytes of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edgevlm.manifest import SpecialToken


class Spelling:
    """Spells tokens, special ones by their names.

    Args:
        special: the special tokens of the model.
        piece: `DecoderRuntime.piece` of the decoder.
    """

    def __init__(self, special: Iterable[SpecialToken], piece: Callable[[int], bytes]) -> None:
        self._special = {token.id: token.text.encode() for token in special}
        self._piece = piece

    def spell(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, maybe a part of a character."""
        return self._special.get(token) or self._piece(token)

    def text(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens; bytes that are no character become U+FFFD."""
        return b"".join(map(self.spell, tokens)).decode("utf-8", errors="replace")
