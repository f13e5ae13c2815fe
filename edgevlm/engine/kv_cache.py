"""The decoder's KV cache: what it holds, and copies of earlier conversations.

The KV cache holds one conversation. Before another one takes its place, it is copied out, and copied back
when it continues: milliseconds instead of the seconds of a prefill. So many conversations can take turns, and
a single one costs nothing. Only a conversation that is expected to continue is copied: the turns of a `Chat`,
and prompts that hold an earlier answer. A single question is not, so a camera with a new frame each time pays
for no copy (`benchmarks/camera.py`). Copies are bounded by bytes; the least recently used goes first.

A span is known by its key, the hash of its pixels, so no image is ever taken for another.

Some decoders keep a state beside their keys and values, which cannot be cut back (LFM2, Qwen3.5). Their
content is copied after the last image of each prompt, so another question about it does not prefill the image
again.

With cross-attention what stands before the first image has seen all images of a prompt. So only prompts
with the same images share their beginning.

A window of frames (``memory`` of `VLM.watch`) is a prompt that loses its oldest frame when a new one comes.
What stays has seen what is gone, so no other prompt may use it, and it is copied with its `Window` alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InferenceError
from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.prompt import PromptItem
from edgevlm.lru_cache import LruCache
from edgevlm.runtimes.protocols import DecoderRuntime, Place

START = Place()
"""The place before a prompt."""


class SpanKey(NamedTuple):
    """A span without its pixels."""

    key: bytes
    length: int
    positions: int


CacheKey: TypeAlias = "int | SpanKey"
"""A prompt item without its pixels: a token id, or the key of a span."""


@dataclass(frozen=True)
class CacheCopy:
    """A copy of the KV cache, and what it holds."""

    items: tuple[CacheKey, ...]
    data: NDArray[np.uint8]
    """What `DecoderRuntime.save` returned, uint8 ``[bytes]``."""


@dataclass
class Window:
    """The frames of one source, as prompts that lose their oldest frame; see `KVCache.reuse_prefix`."""

    copy: CacheCopy | None = None
    """What the decoder held for it, while another prompt is in its place."""
    exact: int = 0
    """Items of the copy whose keys and values are those of these items alone."""


MAX_SAVED_BYTES = 128 * 2**20
"""Copies of conversations beside the one in the KV cache; 17 tiles of SmolVLM-256M take 25 MB."""

MIN_POSITIONS_WORTH_SAVING = 32
"""A conversation is copied out or back if this saves the decoder at least so many positions."""


class KVCache:
    """Tracks what the decoder's KV cache holds, and keeps copies of other conversations.

    Args:
        max_bytes: limit of all copies together.
    """

    def __init__(
        self,
        decoder: DecoderRuntime,
        max_bytes: int = MAX_SAVED_BYTES,
    ) -> None:
        self._decoder = decoder
        self._held: list[CacheKey] = []
        self._expect_continuation = False
        self._window: Window | None = None
        """The window that is held. Only its own prompts use what is not exact."""
        self._exact = sys.maxsize
        """Items of what is held whose keys and values are those of these items alone."""
        self._moved = False
        """Entries have moved, and the decoder has not decoded since, so it cannot be copied."""
        self._saved: LruCache[tuple[CacheKey, ...], NDArray[np.uint8]] = LruCache(
            max_bytes, lambda copy: copy.nbytes
        )

    @property
    def held(self) -> tuple[CacheKey, ...]:
        """What the decoder's KV cache holds."""
        return tuple(self._held)

    @property
    def held_positions(self) -> int:
        """Entries of the decoder's KV cache that are taken."""
        return _entries(self._held)

    @property
    def saved(self) -> int:
        """Conversations that are kept as copies."""
        return len(self._saved)

    @property
    def saved_bytes(self) -> int:
        """Size of these copies."""
        return self._saved.size

    def reuse_prefix(
        self,
        items: Sequence[PromptItem],
        *,
        expect_continuation: bool,
        logits: bool = True,
        window: Window | None = None,
    ) -> int:
        """Make the decoder hold the longest known prefix of a prompt.

        Args:
            expect_continuation: a later prompt is expected to begin with this one, so save it before another
                one takes its place.
            logits: the logits after the prompt are needed, so the decoder must decode the last item.
            window: the prompt is the one before of this window without a part in the middle, and with more at
                its end. Items after this part are kept, although they have seen it. Prompts of other windows
                and of none do not reuse them. `DecoderRuntime.can_shift` must be True.

        Returns:
            How many items the decoder holds.
        """
        self.settle()
        wanted = [_key(item) for item in (items[:-1] if logits else items)]
        if window is not self._window:
            self._leave_window()
            if window is not None and window.copy is not None:
                self._enter_window(window, window.copy)
        if window is not None and window is self._window:
            self._slide(wanted)
        shared = self._hold_prefix(wanted, expect_continuation)
        self._window = window
        return shared

    def _leave_window(self) -> None:
        """Copy the window that is held, if there is one, and hold only what is right for any prompt."""
        window = self._window
        if window is None:
            return
        if self._held and not self._moved:
            window.copy = CacheCopy(self.held, self._decoder.save())
            window.exact = self._exact
        del self._held[self._exact :]
        self._window, self._exact = None, sys.maxsize
        self.settle()

    def _enter_window(self, window: Window, copy: CacheCopy) -> None:
        """Hold what was copied of a window, and drop the copy."""
        self._save_held(self.held_positions)
        window.copy = None
        self._restore(copy.items, copy.data)
        self._window, self._exact = window, window.exact
        self._expect_continuation = False

    def _slide(self, wanted: Sequence[CacheKey]) -> None:
        """Remove a part in the middle of what is held, if most of a prompt is held then."""
        start = _common_prefix(self._held, wanted)
        if start == len(wanted):
            return
        runs = (
            (_common_prefix(self._held[end:], wanted[start:]), end)
            for end in range(start + 1, len(self._held))
            if self._held[end] == wanted[start]
        )
        length, end = max(runs, default=(0, 0))
        if not any(isinstance(key, SpanKey) for key in self._held[end : end + length]):
            return
        self._decoder.truncate(_place(self._held[: end + length]))
        self._decoder.remove(_place(self._held[:start]), _place(self._held[:end]))
        self._held = self._held[:start] + self._held[end : end + length]
        self._exact = min(self._exact, start)
        self._moved = True

    def _hold_prefix(self, wanted: Sequence[CacheKey], expect_continuation: bool) -> int:
        shared = self._usable(self._held, wanted)
        best = max(self._saved.keys(), key=lambda copy: self._usable(copy, wanted), default=())
        known = self._usable(best, wanted)
        restores = _entries(wanted[shared:known]) >= MIN_POSITIONS_WORTH_SAVING
        fits = max(_entries(best), _entries(wanted)) <= self._decoder.room(0)  # beside branches
        restores = restores and fits
        copy = None
        if restores:
            # What cannot be cut back is needed again for the next question.
            copy = self._saved.pop(best) if self._can_cut else self._saved[best]
        lost = _entries(self._held[shared:])
        # Another question about the same images loses little, and is no other conversation.
        if restores or 4 * lost >= self.held_positions:
            self._save_held(lost)
        self._expect_continuation = expect_continuation
        if copy is not None:
            self._restore(best, copy)
            shared = known
        if not self._decoder.truncate(_place(wanted[:shared])):
            raise InferenceError(
                f"the memory of the decoder cannot be cut back to {_entries(wanted[:shared])} entries"
            )
        del self._held[shared:]
        if shared <= self._exact:
            self._exact = sys.maxsize
        return shared

    def settle(self) -> None:
        """Make the decoder hold what is recorded here, or nothing.

        A request that was stopped may have left a part of a span. A decoder that cannot be cut back may have
        lost everything.
        """
        if not self._decoder.truncate(_place(self._held)):
            self.reset()

    def _save_held(self, lost: int) -> None:
        """Keep a copy of a conversation that is expected to continue, before it loses so many entries."""
        exact = len(self._held) <= self._exact
        if exact and self._expect_continuation and lost >= MIN_POSITIONS_WORTH_SAVING:
            self._saved[tuple(self._held)] = self._decoder.save()

    def _restore(self, items: Sequence[CacheKey], copy: NDArray[np.uint8]) -> None:
        self._held.clear()
        self._decoder.restore(copy, _place(items))
        self._held, self._exact, self._moved = list(items), sys.maxsize, False

    def copies(self, items: Sequence[CacheKey]) -> tuple[CacheCopy, ...]:
        """Copy what is known of a conversation, for `load` in another process.

        A copy has nothing of other conversations: it is cut back first. What cannot be cut back is known as a
        whole, and as it was after the last image.

        Args:
            items: the conversation, as `held` returned it.

        Returns:
            Copies of prefixes, the longest last.
        """
        self.settle()
        self._leave_window()
        if self._can_cut:
            known = [self._held, *self._saved.keys()]
            if not any(_common_prefix(one, items) for one in known):
                return ()
            shared = self._hold_prefix(items, expect_continuation=True)
            return (CacheCopy(tuple(items[:shared]), self._decoder.save()),) if shared else ()
        copies = [
            CacheCopy(one, data) for one, data in self._saved.items() if _is_prefix(one, items)
        ]
        held = self.held
        if _is_prefix(held, items):
            copies = [copy for copy in copies if copy.items != held]
            copies.append(CacheCopy(held, self._decoder.save()))
        return tuple(sorted(copies, key=lambda copy: len(copy.items))[-2:])

    def load(self, copies: Sequence[CacheCopy]) -> None:
        """Restore what `copies` returned. The decoder holds the last copy then, and the others are kept.

        Raises:
            InputError: the items do not fit into the context.
            InferenceError: the decoder cannot read the data. It holds nothing then.
        """
        self.settle()
        self._leave_window()
        self._save_held(self.held_positions)
        self._expect_continuation = True
        for copy in copies:
            self._restore(copy.items, copy.data)
        for copy in copies[:-1]:
            self._saved[copy.items] = copy.data

    @property
    def _can_cut(self) -> bool:
        """True if the decoder can remove any number of entries."""
        return self._decoder.max_removable >= self._decoder.context_length

    def _usable(self, held: Sequence[CacheKey], wanted: Sequence[CacheKey]) -> int:
        """Return how many items a decoder that holds a sequence can keep for a prompt."""
        if self._decoder.cross_attention and _spans(held) != _spans(wanted):
            return 0
        shared = _common_prefix(held, wanted)
        return shared if _entries(held[shared:]) <= self._decoder.max_removable else 0

    def checkpoint(self) -> None:
        """Keep a copy for other prompts that begin as what the decoder holds, if it cannot be cut back."""
        if not self._can_cut and self.held_positions >= MIN_POSITIONS_WORTH_SAVING:
            self._saved[tuple(self._held)] = self._decoder.save()

    def extend(self, items: Iterable[PromptItem]) -> None:
        """Record that the decoder has decoded these items."""
        self._held += map(_key, items)
        self._moved = False

    def reset(self) -> None:
        """Make the decoder drop everything. The copies stay."""
        self._held.clear()
        self._window, self._exact, self._moved = None, sys.maxsize, False
        self._decoder.truncate(START)

    def clear(self) -> None:
        """Forget everything, also the copies, without truncating the decoder."""
        self._held.clear()
        self._saved.clear()


def count_positions(items: Iterable[PromptItem]) -> int:
    """Count the entries that prompt items take in the KV cache: one for a token, one for each embedding."""
    return _entries(map(_key, items))


def place_after(items: Iterable[PromptItem], start: Place = START) -> Place:
    """Return how far a sequence is after these items, which begin at `start`."""
    return _place([_key(item) for item in items], start)


def number_positions(items: Sequence[PromptItem], start: int) -> NDArray[np.int32]:
    """Number the entries of prompt items.

    Args:
        start: position of the first entry.

    Returns:
        int32 ``[entries]``; or ``[3, entries]`` of time, line and column if a span has a grid.
    """
    grid = any(isinstance(item, Span) and item.plan.offsets is not None for item in items)
    parts: list[NDArray[np.int32]] = []
    for item in items:
        if isinstance(item, int):
            offsets = np.zeros((3, 1) if grid else 1, np.int32)
        elif item.plan.offsets is None:
            offsets = np.arange(item.length, dtype=np.int32)
            offsets = np.broadcast_to(offsets, (3, item.length)) if grid else offsets
        else:
            offsets = item.plan.offsets
        parts.append(offsets + np.int32(start))
        start += item.plan.positions if isinstance(item, Span) else 1
    return np.concatenate(parts, axis=-1)


def _entries(keys: Iterable[CacheKey]) -> int:
    return sum(key.length if isinstance(key, SpanKey) else 1 for key in keys)


def _place(keys: Sequence[CacheKey], start: Place = START) -> Place:
    spans = _spans(keys)
    tokens = len(keys) - len(spans)
    return Place(
        start.entries + tokens + sum(span.length for span in spans),
        start.position + tokens + sum(span.positions for span in spans),
    )


def _spans(keys: Iterable[CacheKey]) -> list[SpanKey]:
    return [key for key in keys if isinstance(key, SpanKey)]


def _key(item: PromptItem) -> CacheKey:
    if isinstance(item, Span):
        return SpanKey(item.key, item.length, item.plan.positions)
    return item


def _is_prefix(prefix: Sequence[CacheKey], items: Sequence[CacheKey]) -> bool:
    """Return True if a conversation begins with these items, of which there is at least one."""
    return bool(prefix) and _common_prefix(prefix, items) == len(prefix)


def _common_prefix(held: Sequence[CacheKey], wanted: Sequence[CacheKey]) -> int:
    """Return the length of the longest common prefix."""
    return next(
        (i for i, (a, b) in enumerate(zip(held, wanted, strict=False)) if a != b),
        min(len(held), len(wanted)),
    )
