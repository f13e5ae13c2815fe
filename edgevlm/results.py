"""What an answer is made of: `Chunk` while it streams, `Answer` at the end, `Stats` for where time went."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
"""``stop``: the model ended its answer or a stop string came; ``length``: ``max_tokens`` was reached."""


@dataclass(frozen=True)
class Stats:
    """Where the time of one answer went (milliseconds) and what it cost (tokens, bytes).

    ``wait_ms``, ``prepare_ms``, ``encode_ms``, ``prefill_ms`` and ``decode_ms`` add up to ``total_ms``.
    """

    load_ms: float
    """Loading the model, once, before the first answer."""
    wait_ms: float
    """For requests of other threads."""
    prepare_ms: float
    """Reading and tiling pictures, rendering and tokenizing the prompt."""
    encode_ms: float
    """Vision graph."""
    prefill_ms: float
    """Decoder over the part of the prompt that the KV cache did not hold, and copying that cache."""
    decode_ms: float
    """Decoder and sampler, from the first to the last token of the answer."""
    first_token_ms: float
    """From the call to the first token."""
    total_ms: float
    """From the call to the end, without the time that the reader of a stream took between two chunks."""
    prompt_tokens: int
    """Positions of the prompt, pictures included."""
    cached_tokens: int
    """Of these, positions that the KV cache already held."""
    encoded_tiles: int
    """Tiles that went through the vision graph."""
    cached_tiles: int
    """Tiles of the prompt that did not: their positions or their embeddings were there."""
    answer_tokens: int
    drafted_tokens: int
    """Tokens that were right in a draft (see `edgevlm.engine.prompt_lookup`), the end token among them."""
    peak_memory: int | None
    """Bytes that this process held at most since its start; None where the system does not say."""
    dropped_turns: int = 0
    """Oldest turns that a `Chat` dropped before this answer, to fit the context."""
    dropped_images: int = 0
    """Images of earlier turns that went the same way, those of dropped turns among them."""

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token; 0.0 for answers of one token."""
        if self.answer_tokens < 2 or self.decode_ms <= 0:
            return 0.0
        return (self.answer_tokens - 1) / self.decode_ms * 1000


@dataclass(frozen=True)
class TokenLogprob:
    """A token, and how likely the model found it after what came before."""

    token_id: int
    piece: bytes
    """UTF-8, perhaps a part of a character; empty for control tokens."""
    logprob: float
    """Natural logarithm of its probability, before temperature, penalties and filters."""
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens in its place, the likeliest first, themselves without `top`."""


@dataclass(frozen=True)
class PromptText:
    """Consecutive tokens of a prompt."""

    text: str
    """With its special tokens spelled out."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptTile:
    """The place of one tile of a picture in a prompt."""

    picture: int
    """Which picture of the messages, from 0."""
    tile: int
    """Which of its tiles, from 0: the grid row by row, and the overview last."""
    row: int
    """Its place in the grid, from 1; both 0 for a tile that shows the whole picture."""
    column: int
    pixels: NDArray[np.uint8]
    """``[height, width, 3]``, as the vision graph takes it."""
    tokens: int
    """Positions that it takes."""


@dataclass(frozen=True)
class Prompt:
    """What a model is given for some messages, in order; made by `VLM.prompt`."""

    parts: tuple[PromptText | PromptTile, ...]

    @property
    def tokens(self) -> int:
        """Positions of the whole."""
        return sum(
            part.tokens if isinstance(part, PromptTile) else len(part.token_ids)
            for part in self.parts
        )


@dataclass(frozen=True)
class ChoiceScore:
    """How likely a model finds one of several answers; made by `VLM.score`."""

    text: str
    logprob: float
    """Natural logarithm of the probability that the model answers with exactly this text."""
    share: float
    """That probability over the sum of all choices' probabilities."""


@dataclass(frozen=True)
class CacheInfo:
    """What the caches of a `VLM` hold and what they spared."""

    positions: int
    """Of the conversation in the decoder's KV cache."""
    conversations: int
    """Further ones, copied out of it."""
    conversation_bytes: int
    tiles: int
    """Tiles whose embeddings are kept."""
    tile_bytes: int
    reused_positions: int
    """Prompt positions that were not prefilled, since the model was loaded."""
    prefilled_positions: int
    reused_tiles: int
    """Tiles of prompts that were not encoded: their embeddings or their positions were there."""
    encoded_tiles: int


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer while it streams."""

    text: str
    """New text; may be empty (while the prompt is taken in, in the last chunk, or after half a character)."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if the request has ``top_logprobs``."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""
    stats: Stats | None = None
    """Set on the last chunk only."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    """As the decoder chose them, without the end token."""
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()
    """As in `Chunk`."""


def collect(chunks: Iterable[Chunk]) -> Answer:
    """Read a stream to its end."""
    text: list[str] = []
    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []
    for chunk in chunks:
        text.append(chunk.text)
        token_ids += chunk.token_ids
        logprobs += chunk.logprobs
        if chunk.finish_reason is not None and chunk.stats is not None:
            return Answer(
                "".join(text),
                chunk.finish_reason,
                tuple(token_ids),
                chunk.stats,
                tuple(logprobs),
            )
    raise RuntimeError("the stream ended without a finish reason")
