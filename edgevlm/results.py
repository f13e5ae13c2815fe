"""Results: `Chunk` while an answer streams, the whole `Answer`, and `Stats` of time and cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgevlm.boxes import Box, Point
from edgevlm.tool_calls import ToolCall

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "deadline"]
"""``stop``: the model ended its answer or a stop string was found; ``length``: ``max_tokens`` was reached;
``deadline``: the time of the request (``within``) was over."""


@dataclass(frozen=True)
class Deadline:
    """What an answer gave up to end in time."""

    within: float
    """Seconds that the request allowed."""
    detail: str | None
    """``detail`` that its images had; see `Generation`."""
    max_image_tokens: int | None
    """``max_image_tokens`` that its images had; see `Generation`."""
    cut: bool
    """True if the deadline ended the answer."""


@dataclass(frozen=True)
class Stats:
    """Time (milliseconds) and cost (tokens, bytes) of one answer.

    ``wait_ms``, ``prepare_ms``, ``encode_ms``, ``prefill_ms`` and ``decode_ms`` add up to ``total_ms``.
    """

    load_ms: float
    """Loading the model, once, before the first answer."""
    wait_ms: float
    """Waiting for requests of other threads."""
    prepare_ms: float
    """Reading and splitting images, rendering and tokenizing the prompt."""
    encode_ms: float
    """Running the vision graph."""
    prefill_ms: float
    """Decoding the part of the prompt that the KV cache did not hold, and copying that cache."""
    decode_ms: float
    """Decoding and sampling, from the first to the last token of the answer."""
    first_token_ms: float
    """From the call to the first token."""
    total_ms: float
    """From the call to the end, without the time that the consumer of a stream takes between two chunks."""
    prompt_tokens: int
    """Positions of the prompt, images included."""
    cached_tokens: int
    """Positions of the prompt that the KV cache already held."""
    encoded_tiles: int
    """Tiles that went through the vision graph."""
    cached_tiles: int
    """Tiles of the prompt that did not: the KV cache or the embedding cache held them."""
    answer_tokens: int
    accepted_draft_tokens: int
    """Draft tokens that were accepted (see `edgevlm.engine.prompt_lookup`), including the end token."""
    peak_memory: int | None
    """Most memory in bytes that this process used since its start; None if the system does not report it."""
    forced_tokens: int = 0
    """Tokens that the JSON schema left no choice for; they are decoded in batches and not sampled."""
    dropped_turns: int = 0
    """Turns that a `Chat` dropped before this answer to fit the context; the oldest go first."""
    dropped_images: int = 0
    """Images of earlier turns that a `Chat` dropped, including those of dropped turns."""
    deadline: Deadline | None = None
    """What ``within`` changed; None for a request without a deadline."""

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed after the first token; 0.0 for an answer of one token."""
        if self.answer_tokens < 2 or self.decode_ms <= 0:
            return 0.0
        return (self.answer_tokens - 1) / self.decode_ms * 1000


@dataclass(frozen=True)
class TokenLogprob:
    """A token and its log-probability, given all tokens before it."""

    token_id: int
    piece: bytes
    """UTF-8 bytes, perhaps part of a character; empty for control tokens."""
    logprob: float
    """Natural logarithm of its probability, before temperature, penalties and filters."""
    top: tuple[TokenLogprob, ...] = ()
    """The most likely tokens in this place, most likely first; they have no `top` themselves."""


@dataclass(frozen=True)
class PromptText:
    """Consecutive tokens of a prompt."""

    text: str
    """The text, with special tokens spelled out."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class PromptTile:
    """The place of one tile of an image or a video in a prompt.

    Where the tiles of an image are packed together, their parts follow each other, each with its share.
    A tile whose lines stand in the prompt by themselves has a part for each line.
    """

    image: int
    """Index of the image or video in the messages, from 0."""
    tile: int
    """Index of the tile, from 0, in the order of the vision graph's input."""
    row: int
    """Row and column in the grid, from 1; both 0 for a tile that shows the whole image."""
    column: int
    pixels: NDArray[np.uint8]
    """RGB uint8 ``[height, width, 3]``, the input of the vision graph; or 6 channels of two frames."""
    tokens: int
    """Positions of this tile in the prompt."""


@dataclass(frozen=True)
class Prompt:
    """The parts of a prompt in order; returned by `VLM.prompt`."""

    parts: tuple[PromptText | PromptTile, ...]

    @property
    def tokens(self) -> int:
        """Positions of the whole prompt."""
        return sum(
            part.tokens if isinstance(part, PromptTile) else len(part.token_ids)
            for part in self.parts
        )


@dataclass(frozen=True)
class ChoiceScore:
    """Probability of one of several answers; returned by `VLM.score`."""

    text: str
    logprob: float
    """Natural logarithm of the probability that the model answers with exactly this text."""
    probability: float
    """This probability divided by the sum over all choices."""


@dataclass(frozen=True)
class Choice:
    """The most probable of several answers; returned by `VLM.choose`."""

    label: str
    """The most probable choice; of several that are equally probable, the first."""
    probabilities: Mapping[str, float]
    """Probability of each choice, in the order of the request; they add up to 1."""
    margin: float
    """Difference between the two highest probabilities, 0 to 1."""
    calibrated: bool = False
    """True: a temperature that `edgevlm calibrate` measured is applied; False: the model's own numbers."""


@dataclass(frozen=True)
class CacheInfo:
    """Content of the caches of a `VLM`, and what they saved; returned by `VLM.cache_info`."""

    positions: int
    """Positions in the decoder's KV cache."""
    conversations: int
    """Other conversations, kept as copies of the KV cache."""
    conversation_bytes: int
    tiles: int
    """Tiles whose embeddings are in the cache."""
    tile_bytes: int
    reused_positions: int
    """Prompt positions that were not prefilled, since the model was loaded."""
    prefilled_positions: int
    reused_tiles: int
    """Tiles of prompts that were not encoded, because a cache held them."""
    encoded_tiles: int


@dataclass(frozen=True)
class Chunk:
    """A part of an answer while it streams."""

    text: str
    """New text. Empty during prefill, in the last chunk, and after part of a character."""
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if the request sets ``top_logprobs``."""
    finish_reason: FinishReason | None = None
    """Set on the last chunk only."""
    stats: Stats | None = None
    """Set on the last chunk only."""
    boxes: tuple[Box, ...] = ()
    """All boxes of the answer, as of `Answer`. On the last chunk only."""
    points: tuple[Point, ...] = ()
    """All points of the answer, as of `Answer`. On the last chunk only."""
    tool_calls: tuple[ToolCall, ...] = ()
    """All calls of the answer, as of `Answer`. On the last chunk only."""


@dataclass(frozen=True)
class Answer:
    """A whole answer."""

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...]
    """Token ids in order, without the end token."""
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of `token_ids`, if the request sets ``top_logprobs``."""
    boxes: tuple[Box, ...] = ()
    """The boxes in the answer, in its order, on the last image of the messages; on a video, in its frames.
    Empty if there is no image, or if the model writes none."""
    points: tuple[Point, ...] = ()
    """The points in the answer, as `boxes`."""
    tool_calls: tuple[ToolCall, ...] = ()
    """The complete calls of `Generation.tools`, in order. `text` has them, too, as the model writes them."""


def collect(chunks: Iterable[Chunk]) -> Answer:
    """Read a stream to its end and return the whole answer."""
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
                chunk.boxes,
                chunk.points,
                chunk.tool_calls,
            )
    raise RuntimeError("the stream ended without a finish reason")
