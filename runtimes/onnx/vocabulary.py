"""The vocabulary of a decoder without llama.cpp: text to tokens and back, by the library tokenizers.

`edgevlm.export.tokenizer_file` writes the file. It is a ``tokenizer.json`` that does to plain text what
llama.cpp does with the same tokenizer: it neither normalizes text nor puts a space before it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edgevlm.errors import LoadError
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.text_checks import encode_text
from edgevlm.validation import check_integer

INSTALL_TOKENIZERS = "pip install tokenizers"
"""Command that installs the library."""

_SPACE = "▁"
_BYTE = re.compile("<0x([0-9A-F]{2})>")
"""SentencePiece's spelling of a space and of a byte."""


def _byte_alphabet() -> dict[str, int]:
    """Return GPT-2's spelling of each byte: printable ones as they are, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + number): byte for number, byte in enumerate(others)},
    }


_BYTE_ALPHABET = _byte_alphabet()


class Vocabulary:
    """The tokens of a decoder. Thread-safe.

    Args:
        path: the tokenizer file of the bundle.

    Raises:
        MissingDependencyError: the library tokenizers is not installed.
        LoadError: the file cannot be read, or the library cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        library = import_library(
            "tokenizers",
            "tokenizers",
            "the decoder",
            INSTALL_TOKENIZERS,
            f"{INSTALL_TOKENIZERS} --force-reinstall",
        )
        try:
            self._tokenizer: Any = library.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no other
            raise LoadError(
                f"{path} is no tokenizer file that can be read ({error}); get the bundle again"
            ) from error
        self._tokenizer.encode_special_tokens = True  # as plain text, not as the tokens they spell
        self.size: int = self._tokenizer.get_vocab_size()
        """Number of tokens, with those of padding; ids are below it."""
        added = self._tokenizer.get_added_tokens_decoder()
        self._control = {token for token, one in added.items() if one.special}
        self._byte_level = not self._tokenizer.model.byte_fallback
        self._added = set(added)

    def tokenize(self, text: str) -> list[int]:
        """Convert plain text to token ids; neither recognize nor add special tokens.

        Added tokens that are not special are still recognized.

        Raises:
            InputError: the text is not a string, has lone surrogates, which UTF-8 cannot encode, or is longer
                than `edgevlm.runtimes.text_checks.MAX_TEXT_BYTES`.
        """
        encode_text(text)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, maybe a part of a character; empty for control tokens.

        Raises:
            InputError: the vocabulary has no such token.
        """
        token = check_integer("token", token, 0, self.size - 1)
        if token in self._control:
            return b""
        text: str = self._tokenizer.id_to_token(token)
        if not self._byte_level:
            byte = _BYTE.fullmatch(text)
            return bytes.fromhex(byte[1]) if byte else text.replace(_SPACE, " ").encode()
        if token in self._added or not _BYTE_ALPHABET.keys() >= set(text):
            return text.encode()
        return bytes(map(_BYTE_ALPHABET.__getitem__, text))
