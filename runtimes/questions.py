"""The question that a vision graph reads beside the tiles (InstructBLIP), as tokens of its own tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError, LoadError
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.text_checks import encode_text

INSTALL_TOKENIZERS = "pip install tokenizers"
"""Command that installs the library."""


@dataclass(frozen=True)
class QuestionInput:
    """An input of a vision graph for the question."""

    name: str
    """Name of the graph's input, int64 ``[1, n]``."""
    tokenizer: Path
    """A ``tokenizer.json`` of Hugging Face's tokenizers."""
    max_tokens: int
    """Longest question in tokens, with those that the tokenizer puts around it."""


class QuestionTokenizer:
    """Converts questions to tokens.

    Raises:
        MissingDependencyError: the library tokenizers is not installed.
        LoadError: the file cannot be read, or the library cannot be loaded.
    """

    def __init__(self, question: QuestionInput) -> None:
        library = import_library(
            "tokenizers",
            "tokenizers",
            "the vision graph, which reads the question,",
            INSTALL_TOKENIZERS,
            f"{INSTALL_TOKENIZERS} --force-reinstall",
        )
        try:
            self._tokenizer: Any = library.Tokenizer.from_file(str(question.tokenizer))
        except Exception as error:  # the library raises no other
            raise LoadError(
                f"{question.tokenizer} is no tokenizer file that can be read ({error}); get the bundle again"
            ) from error
        self._tokenizer.encode_special_tokens = True  # as plain text, not as the tokens they spell
        self.name = question.name
        self._max_tokens = question.max_tokens

    def tokenize(self, question: str) -> NDArray[np.int64]:
        """Return the tokens of a question, int64 ``[1, n]``, with those that stand around each text.

        Raises:
            InputError: the question has too many tokens, or lone surrogates, which UTF-8 cannot encode.
        """
        encode_text(question)
        ids = self._tokenizer.encode(question).ids
        if len(ids) > self._max_tokens:
            raise InputError(
                f"the question has {len(ids)} tokens for the vision graph, which takes {self._max_tokens}; "
                f"shorten it"
            )
        return np.array([ids], np.int64)
