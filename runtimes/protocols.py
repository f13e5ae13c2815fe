"""The protocols of a vision runtime, a decoder and a sampler, and the settings of sampling.

An implementation takes plain arguments (path, device, threads) and knows neither manifest nor prompt. So it
can be tested, replaced and timed alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import InputError
from edgevlm.validation import check_integer, check_number


@dataclass(frozen=True)
class CallGrammar:
    """Grammar of an answer that calls tools: each call is `begin`, a JSON text, and `end`."""

    begin: str
    end: str
    separator: str
    """Text between two calls."""
    schema: Mapping[str, Any]
    """JSON schema of the text of a call, which has a space after each comma and colon."""
    required: bool
    """True: the answer is calls only; False: a text, and calls or none."""
    several: bool
    """True: more than one call is allowed."""


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling: how the next token is chosen from the logits.

    With ``temperature`` 0 the choice is greedy; only ``repetition_penalty`` and ``json_schema`` change it.

    Raises:
        InputError: a setting has the wrong type or is outside its range.
    """

    temperature: float = 0.0
    """From 0 to 100; 0 is greedy."""
    top_k: int = 40
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 0.95
    """Keep the most likely tokens whose probabilities sum to at least p, from 0 to 1; 1 keeps all."""
    min_p: float = 0.05
    """Keep tokens with at least this share of the highest probability, from 0 to 1; 0 keeps all."""
    repetition_penalty: float = 1.0
    """Penalty on tokens that are among the last 64 of the answer, from 0.01 to 100; 1 is off."""
    seed: int = 0
    """Seed of the random draws, from 0 to 2**32 - 2."""
    json_schema: Mapping[str, Any] | None = None
    """Schema of the answer: only tokens that can continue a JSON text of this schema are candidates."""
    calls: CallGrammar | None = None
    """Grammar of the answer: only tokens that can continue such a text are candidates."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0.0, 100.0)
        check_integer("top_k", self.top_k, 0, 2**31 - 1)
        check_number("top_p", self.top_p, 0.0, 1.0)
        check_number("min_p", self.min_p, 0.0, 1.0)
        check_number("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        # With 2**32 - 1 llama.cpp would draw a seed itself.
        check_integer("seed", self.seed, 0, 2**32 - 2)
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise InputError(f"json_schema must be a mapping, is {type(self.json_schema).__name__}")


@dataclass(frozen=True)
class Place:
    """How far a sequence is in the KV cache.

    Both numbers are equal for decoders whose positions count entries. They differ where an image takes fewer
    positions than entries.
    """

    entries: int = 0
    """Entries of the KV cache that are taken; they decide whether a prompt fits."""
    position: int = 0
    """The next position: one more than the largest number of a position so far."""

    def after(self, tokens: int) -> Place:
        """Return the place after so many further tokens."""
        return Place(self.entries + tokens, self.position + tokens)


@dataclass(frozen=True, eq=False)
class CrossStates:
    """The features of one image that cross-attention looks at."""

    entry: int
    """The entry of the KV cache in whose place the image stands; from 0."""
    states: NDArray[np.float32]
    """``[n, width]``, n >= 1."""
    seen: int
    """The first of these states show the image; the others are padding. From 1 to n."""


class VisionRuntime(Protocol):
    """A loaded vision graph: encodes tiles to embeddings."""

    device: str
    """Device in the runtime's own words, such as ``CPUExecutionProvider``."""
    on_cpu: bool
    """True if the graph runs on the CPU and so competes with other work there."""

    def encode(
        self,
        tiles: NDArray[np.uint8],
        *,
        question: str = "",
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Encode tiles.

        Args:
            tiles: uint8 ``[n, height, width, 3]``, n >= 1.
            question: what a graph with an input for it reads; others do not.
            cancel: stops this call from another thread; None: nothing does.

        Returns:
            float32 ``[n, rows, width]``.

        Raises:
            InputError: the dtype or the shape is not the graph's, or the question is too long.
            CancelledError: `cancel` stopped it. The next call is not affected.
            ClosedError: the runtime is closed.
            InferenceError: the runtime failed.
        """
        ...

    def close(self) -> None:
        """Free the graph. A second call does nothing."""
        ...


class Sampler(Protocol):
    """The sampler of one answer, with the state of its penalties and random numbers."""

    def sample(self) -> int:
        """Choose the next token from the logits of the last decoded position, and remember it."""
        ...

    def forced(self, limit: int) -> list[int]:
        """Return the tokens that come next whatever the logits are, and remember them.

        `sample` would return the same tokens, one at a time.

        Args:
            limit: the most tokens to return, at least 1; later calls return the others.
        """
        ...

    def close(self) -> None:
        """Free the sampler. A second call does nothing."""
        ...


class DecoderRuntime(Protocol):
    """A loaded decoder with its KV cache: decodes tokens and embeddings to logits.

    The decoder holds one sequence. Further sequences, the branches, can branch off it. A branch shares the
    entries that the held sequence has at this moment, and goes on with tokens of its own. Held sequence and
    branches share the context. Tokens of several branches are decoded in one batch, which costs less than one
    batch for each.

    The caller numbers the positions: the decode methods take one position per entry. They split input that is
    longer than a batch, and compute logits of the last entry only, if asked.

    A position of an M-RoPE model has three numbers: time, line and column. Those of a text are equal, so one
    number per token is enough. The embeddings of an image all have the next position as their time, and count
    lines and columns from there.
    """

    device: str
    """Device in the runtime's own words, such as ``cpu``."""
    on_cpu: bool
    """True if it uses the time of the CPU; see `VisionRuntime.on_cpu`."""
    context_length: int
    """Entries that the KV cache holds."""
    grid_positions: bool
    """True: the positions of embeddings can have three numbers (M-RoPE)."""
    cross_attention: bool
    """True: images are no entries; layers with cross-attention look at what `set_images` gave."""
    max_removable: int
    """Number of the last entries that `truncate` can certainly remove; `context_length` for attention-only
    models."""
    max_branches: int
    """Most branches that can be open at the same time; at least 1."""
    can_shift: bool
    """True if `remove` works: positions count up by one, and the memory can move its entries."""
    independent_branches: bool
    """True: the held sequence may change while branches are open, and `cut_branch` works. False for memories
    with recurrent layers or sliding windows."""
    batch_length: int
    """Most entries of one call of `decode_branches`."""
    max_logits: int
    """Most entries of one call that can have logits."""
    exact_batch_length: int
    """Most entries of one call of `decode_branches` that can be exact; see `is_exact`."""
    width: int
    """Width of an embedding. Deepstack models read several features from one embedding, side by side."""
    vocabulary_size: int
    """Number of tokens; ids are below it."""
    copy_format: str
    """Format of the copies of `save`. A decoder of the same file reads copies of an equal format."""

    def tokenize(self, text: str) -> list[int]:
        """Convert plain text to token ids; neither recognize nor add special tokens."""
        ...

    def piece(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, maybe a part of a character; empty for control tokens."""
        ...

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return rows float32 ``[n, width]`` of the input embedding table, padded with zeros to the width.

        With them `decode_embeddings` does what `decode_tokens` does with the ids, so that text can share a
        batch with images.
        """
        ...

    def decode_tokens(
        self,
        token_ids: Sequence[int],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        cancel: CancelSignal | None = None,
    ) -> None:
        """Decode tokens into the KV cache.

        Args:
            token_ids: ``[n]``, n >= 1.
            positions: int32 ``[n]``, the next positions of the KV cache.
            logits: compute the logits of the last token.
            cancel: stops this call from another thread; None: nothing does.

        Raises:
            InputError: ids or positions have the wrong type, shape or range.
            ContextError: the entries do not fit into the context.
            CancelledError: `cancel` stopped it; the KV cache holds nothing of this call. One that cannot be
                cut back (`max_removable`) may be empty then.
            InferenceError: the runtime failed; the KV cache is as after a CancelledError.
        """
        ...

    def decode_draft(
        self,
        token_ids: Sequence[int],
        positions: NDArray[np.int32],
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode a few tokens; arguments and errors as of `decode_tokens`.

        Returns:
            float32 ``[n, vocabulary]``: the logits after each token, valid until the next decoding.
        """
        ...

    def decode_embeddings(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        bidirectional: bool = False,
        cancel: CancelSignal | None = None,
    ) -> None:
        """Decode embeddings into the KV cache.

        An image may come in several calls. If one of them fails, the KV cache holds nothing of the image.

        Args:
            embeddings: float32 ``[n, width]``, n >= 1.
            positions: int32, the next positions of the KV cache: ``[n]``, or ``[3, n]`` for an M-RoPE model.
                ``[n]`` means three equal numbers there.
            logits: compute the logits of the last entry.
            bidirectional: each entry of this call attends to all others of this call and to all before it.
            cancel: as of `decode_tokens`.

        Raises:
            InputError: embeddings or positions have the wrong type, shape or range.
            ContextError, CancelledError, InferenceError: as `decode_tokens`.
        """
        ...

    def set_images(
        self, images: Sequence[CrossStates], *, cancel: CancelSignal | None = None
    ) -> None:
        """Replace the images that cross-attention looks at. The KV cache must be empty.

        An entry in the place of an image, or after one, sees the last images up to it that have no entry
        between them. An entry before the first image sees all images with their padding, without the
        feed-forward part of these layers, as ``_prepare_cross_attention_mask`` of transformers' Mllama lets
        it. Branches that are open keep their images.

        Args:
            images: in the order of their entries.
            cancel: as of `decode_tokens`.

        Raises:
            InputError: `cross_attention` is False, the KV cache is not empty, or an image has the wrong
                shape or range.
            CancelledError, InferenceError: as `decode_tokens`. There are no images then, or only the first
                ones.
        """
        ...

    def branch(self, source: int | None = None) -> int:
        """Open a branch of the held sequence, and return its number.

        Args:
            source: a branch without tokens of its own, to branch off from the same place instead.

        Raises:
            InputError: `source` is no such branch.
            InferenceError: `max_branches` are open.
        """
        ...

    def branch_of_copy(self, copy: NDArray[np.uint8], place: Place) -> int:
        """Open a branch that begins with a copy that `save` made at `place`, and return its number.

        Raises:
            InputError: `independent_branches` is False.
            ContextError: the entries of the copy do not fit into the context.
            InferenceError: `max_branches` are open, or it is no copy of this decoder's KV cache.
        """
        ...

    def is_exact(self, branch: int, tokens: int) -> bool:
        """Return True if the next tokens of a branch get the logits that they would have alone.

        That is to the last bit, as if the held sequence went on and had been empty before its prompt; in
        batches of up to `exact_batch_length` entries. The first call may measure this, for which it decodes a
        few batches, so the logits before it are no longer valid.

        Args:
            branch: the branch.
            tokens: how many tokens it decodes next.

        Raises:
            InputError: there is no such branch.
        """
        ...

    def decode_branches(
        self,
        branches: Sequence[int],
        token_ids: Sequence[int],
        logits: NDArray[np.bool_] | None = None,
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode tokens of several branches in one batch.

        Each token gets the next position of its branch. Tokens of one branch stand in their order; those of
        others may be between them.

        Args:
            branches: ``[n]``, the branch of each token; n from 1 to `batch_length`.
            token_ids: ``[n]``.
            logits: bool ``[n]``, True for tokens after which logits are wanted, at most `max_logits`; None:
                all.
            cancel: as of `decode_tokens`.

        Returns:
            float32 ``[wanted, vocabulary]``: the logits after these tokens, valid until the next decoding. A
            sampler takes those of the last one.

        Raises:
            InputError: there is no such branch, or an argument has the wrong type, shape or range.
            ContextError: the entries do not fit into the context.
            CancelledError: `cancel` stopped it; the branches hold nothing of this call, and nothing at all if
                the memory cannot be cut back.
            InferenceError: the runtime failed; the branches are as after a CancelledError.
        """
        ...

    def cut_branch(self, branch: int, tokens: int) -> None:
        """Remove the last `tokens` tokens of a branch.

        Raises:
            InputError: there is no such branch, it has fewer tokens of its own, or `independent_branches` is
                False.
        """
        ...

    def drop(self, branch: int) -> None:
        """Close a branch, and free the entries that no other sequence has.

        Raises:
            InputError: there is no such branch.
        """
        ...

    def room(self, entries: int) -> int:
        """Return how many entries would be free if the held sequence had only its first `entries` ones."""
        ...

    def truncate(self, place: Place) -> bool:
        """Remove everything from `place` on from the KV cache.

        Returns:
            True if the KV cache ends at `place` now. False if it ends before, or if more than `max_removable`
            entries would go and the memory cannot give them up; nothing has changed then.

        Raises:
            InputError: `place` is inside an image, or its numbers are negative.
        """
        ...

    def remove(self, start: Place, end: Place) -> None:
        """Remove the entries between two places, and move those after them there.

        The entries that move keep what they have seen: their keys and values were computed while the removed
        entries were there. Only the positions in their keys change.

        Args:
            start: the place of the first entry to remove.
            end: the place after the last one.

        Raises:
            InputError: `can_shift` is False, a branch is open, or a place is inside an image or not reached.
        """
        ...

    def save(self) -> NDArray[np.uint8]:
        """Return a copy of what the KV cache holds, for `restore`. Not between `remove` and a decoding."""
        ...

    def restore(self, copy: NDArray[np.uint8], place: Place) -> None:
        """Replace the content of the KV cache with a copy that `save` made at `place`."""
        ...

    def logits(self) -> NDArray[np.float32]:
        """Return a copy, float32 ``[vocabulary]``, of the logits that ``logits=True`` asked for last."""
        ...

    def schema_checker(self, end_tokens: Collection[int]) -> Callable[[Mapping[str, Any]], object]:
        """Return a function that raises InputError for a JSON schema that `sampler` does not support.

        The function may run in any thread while the decoder works.

        Args:
            end_tokens: tokens that may follow a complete JSON text.

        Raises:
            MissingDependencyError: a library that JSON schemas need is not installed.
        """
        ...

    def sampler(self, sampling: Sampling, end_tokens: Collection[int] = ()) -> Sampler:
        """Return a new sampler for one answer.

        Args:
            sampling: its settings.
            end_tokens: tokens that may follow a complete JSON text; needed with a JSON schema only.

        Raises:
            InputError: the JSON schema is not supported.
            MissingDependencyError: a library that JSON schemas need is not installed.
        """
        ...

    def close(self) -> None:
        """Free the decoder. A second call does nothing."""
        ...
