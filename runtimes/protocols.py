"""The two protocols that the engine stands on, the sampling settings that a decoder understands, and checks.

An implementation takes plain arguments (path, device, threads) and knows neither manifest nor prompt, so
that it can be tested, replaced and timed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.validation import check_integer, check_number


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from the logits; llama.cpp's samplers in this order.

    ``temperature`` 0 is greedy, and then only ``repetition_penalty`` matters beside it.

    Raises:
        InputError: a setting of the wrong type or outside its range.
    """

    temperature: float = 0.0
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    min_p: float = 0.05
    repetition_penalty: float = 1.0
    """Over the last 64 tokens of the answer; 1 is off."""
    seed: int = 0
    json_schema: Mapping[str, Any] | None = None
    """Only tokens count that may go on a JSON text of this schema."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        # 2**32 - 1 makes llama.cpp draw a seed itself
        check_integer("seed", self.seed, 0, 2**32 - 2)
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise InputError(f"json_schema must be a mapping, is {type(self.json_schema).__name__}")


class VisionRuntime(Protocol):
    """Tiles in, embeddings out."""

    device: str
    """Where it runs, as the runtime names it, such as ``CPUExecutionProvider``."""
    on_cpu: bool
    """It takes its time from what else runs on the CPU."""

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``; n >= 1, any n.

        Raises:
            InputError: another dtype or shape than the graph takes.
        """
        ...

    def close(self) -> None: ...


class Sampler(Protocol):
    """State of one answer's sampling (penalties, random numbers)."""

    def sample(self) -> int:
        """The next token, from the logits of the position decoded last; the sampler remembers it."""
        ...

    def close(self) -> None: ...


class DecoderRuntime(Protocol):
    """Tokens and embeddings in, logits and tokens out, one sequence with a KV cache.

    Positions are the caller's: `decode_tokens` and `decode_embeddings` get one position per entry. They
    split what is longer than a batch; only the last entry's logits are computed, and only if asked.
    """

    device: str
    on_cpu: bool
    """As `VisionRuntime.on_cpu`."""
    context_length: int
    """Positions that the KV cache holds."""
    width: int
    vocabulary_size: int

    def tokenize(self, text: str) -> list[int]:
        """Plain text to ids: no special token is recognised or added."""
        ...

    def piece(self, token: int) -> bytes:
        """UTF-8 bytes of a token, perhaps a part of a character; empty for control tokens."""
        ...

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Rows ``[n, width]`` of the input embedding table, for text that shares a batch with pictures:
        `decode_embeddings` does with them what `decode_tokens` does with the ids."""
        ...

    def decode_tokens(
        self, token_ids: Sequence[int], positions: NDArray[np.int32], *, logits: bool
    ) -> None: ...

    def decode_draft(
        self, token_ids: Sequence[int], positions: NDArray[np.int32]
    ) -> NDArray[np.float32]:
        """As `decode_tokens`, for a few tokens; the logits ``[n, vocabulary]`` after each of them, valid
        until the next decoding."""
        ...

    def decode_embeddings(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        bidirectional: bool = False,
    ) -> None:
        """Embeddings float32 ``[n, width]``.

        Args:
            bidirectional: each entry of this call sees every other (and all before it).

        Raises:
            InputError: wrong shape, or positions outside the context.
        """
        ...

    def truncate(self, position: int) -> None:
        """Forget every position >= `position`."""
        ...

    def save(self) -> NDArray[np.uint8]:
        """A copy of the KV cache, for `restore`; only as large as what it holds."""
        ...

    def restore(self, copy: NDArray[np.uint8], length: int) -> None:
        """Hold what `save` copied when there were `length` positions, instead of what is held."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """A copy ``[vocabulary]`` of the logits of the last position decoded with ``logits=True``."""
        ...

    def schema_checker(self, end_tokens: Collection[int]) -> Callable[[Mapping[str, Any]], object]:
        """A function that raises InputError for a JSON schema that `sampler` would refuse.

        It may run in any thread while the decoder works.

        Raises:
            MissingDependencyError: what a JSON schema needs is not installed.
        """
        ...

    def sampler(self, sampling: Sampling, end_tokens: Collection[int] = ()) -> Sampler:
        """A fresh sampler for one answer.

        Args:
            end_tokens: those that may follow a complete JSON text.

        Raises:
            InputError: a JSON schema that cannot be kept to.
            MissingDependencyError: what a JSON schema needs is not installed.
        """
        ...

    def close(self) -> None: ...
