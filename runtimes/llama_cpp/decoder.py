"""The decoder in llama.cpp, through llama-cpp-python's low-level API.

llama.cpp aborts the process when a precondition fails. So this module checks arguments first and raises
errors: ids, positions, shapes, batch sizes, use after `close`. `edgevlm.runtimes.llama_cpp.context` creates
the context and computes batches.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import InferenceError, InputError
from edgevlm.runtimes.branches import Branches
from edgevlm.runtimes.cache_positions import CachePositions, belong_together
from edgevlm.runtimes.constraints import Constraints
from edgevlm.runtimes.llama_cpp.batch_rounding import (
    MAX_ROWS,
    MAX_UNSPLIT_ENTRIES,
    rounds_alike,
)
from edgevlm.runtimes.llama_cpp.cache_copy import copy_cache, split_copy
from edgevlm.runtimes.llama_cpp.context import BLOCK_SIZES, LlamaCppContext
from edgevlm.runtimes.llama_cpp.library import (
    failure_reason,
    recent_errors,
)
from edgevlm.runtimes.llama_cpp.sampler import LlamaCppSampler
from edgevlm.runtimes.protocols import CrossStates, Place, Sampling
from edgevlm.runtimes.text_checks import check_embeddings, check_tokens
from edgevlm.validation import check_integer


class LlamaCppDecoder(LlamaCppContext):
    """A GGUF decoder with its KV cache; implements `DecoderRuntime`.

    The sequence that it holds is llama.cpp's sequence 0, and its branches are the following ones. All are in
    one unified cache, so that a branch shares the entries before it. Arguments and errors as of
    `LlamaCppContext`.
    """

    cross_attention = False
    exact_batch_length = MAX_ROWS

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        context_length: int,
        threads: int | None = None,
        gpu_layers: int = 0,
        bidirectional: int = 0,
        kv: str = "f16",
        splits_text: bool = True,
        try_file: bool = True,
    ) -> None:
        super().__init__(
            path,
            context_length=context_length,
            threads=threads,
            gpu_layers=gpu_layers,
            bidirectional=bidirectional,
            kv=kv,
            splits_text=splits_text,
            try_file=try_file,
        )
        self._held = CachePositions(self.context_length, mrope=self._model.mrope)
        self._branches = Branches(self.max_branches)
        self._constraints = Constraints(
            self.vocabulary_size, self._model.piece, self._model.tokenize
        )
        self._has_logits = False
        self._logits_address = 0
        self._ordered = self._held_ordered = True
        """The cells of all branches, and of the held sequence, are in the order of their entries."""
        self._rounds_alike: bool | None = None

    def tokenize(self, text: str) -> list[int]:
        """Tokenize as `LlamaCppModel.tokenize` does."""
        return self._model.tokenize(text)

    def piece(self, token: int) -> bytes:
        """Return a token's bytes as `LlamaCppModel.piece` does."""
        return self._model.piece(token)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return embeddings as `LlamaCppModel.embed` does."""
        return self._model.embed(token_ids)

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
            cancel: stops this call from another thread: on the CPU between two nodes of the graph, on a GPU
                between two batches; None: nothing does.

        Raises:
            InputError: ids or positions have the wrong type, shape or range.
            ContextError: the entries do not fit into the context.
            ClosedError: the decoder is closed.
            CancelledError: `cancel` stopped it; the KV cache holds nothing of this call. That of a hybrid may
                be empty then.
            InferenceError: llama.cpp failed; the KV cache is as after a CancelledError.
        """
        self._check_open()
        ids = check_tokens(token_ids, self.vocabulary_size)
        self._decode(ids, positions, outputs=int(logits), cancel=cancel)

    def decode_draft(
        self,
        token_ids: Sequence[int],
        positions: NDArray[np.int32],
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode at most `max_logits` tokens; arguments and errors as of `decode_tokens`.

        Returns:
            float32 ``[n, vocabulary]``: a view of llama.cpp's logits after each token, valid until the next
            decoding.
        """
        self._check_open()
        ids = check_tokens(token_ids, self.vocabulary_size)
        if len(ids) > self.max_logits:
            raise InputError(
                f"a draft may have up to {self.max_logits} tokens, has {len(ids)}; use decode_tokens"
            )
        self._decode(ids, positions, outputs=len(ids), cancel=cancel)
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(len(ids), self.vocabulary_size))

    def decode_embeddings(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        bidirectional: bool = False,
        cancel: CancelSignal | None = None,
    ) -> None:
        """Decode embeddings into the KV cache; errors as of `decode_tokens`.

        An image may come in several calls, and if one of them fails, the KV cache holds nothing of the image.

        Args:
            embeddings: float32 ``[n, width]``, n >= 1.
            positions: int32, the next positions of the KV cache: ``[n]``, or ``[3, n]`` for an M-RoPE model,
                with the time, line and column of each entry. ``[n]`` means three equal numbers.
            logits: compute the logits of the last entry.
            bidirectional: each entry of this call attends to all others of this call and to all before it.
            cancel: as of `decode_tokens`.
        """
        self._check_open()
        check_embeddings(embeddings, self.width)
        if bidirectional and len(embeddings) > self.bidirectional:
            raise InputError(
                f"{len(embeddings)} embeddings cannot attend to each other: this decoder was created with "
                f"bidirectional={self.bidirectional}; create it with more"
            )
        rows = np.ascontiguousarray(embeddings)
        self._decode(
            rows, positions, outputs=int(logits), bidirectional=bidirectional, cancel=cancel
        )

    def _decode(
        self,
        entries: NDArray[Any],
        positions: NDArray[np.int32],
        *,
        outputs: int,
        bidirectional: bool = False,
        cancel: CancelSignal | None,
    ) -> None:
        """Decode entries in batches.

        Args:
            entries: token ids int32 ``[n]`` or embeddings float32 ``[n, width]``, C-contiguous.
            positions: as of `decode_embeddings`.
            outputs: number of the last entries that get logits.
            bidirectional: as of `decode_embeddings`.
            cancel: as of `decode_tokens`.
        """
        count, embeddings = len(entries), entries.ndim == 2
        taken = self._count_taken(count)
        positions = self._held.check(positions, count, embeddings=embeddings, taken=taken)
        self._held_ordered &= not self._branches
        self._ordered &= not self._branches
        times = positions if positions.ndim == 1 else positions[0]
        self._has_logits = False
        llama = self._llama
        with self._interruptible(cancel) as signal:
            try:
                if bidirectional:
                    llama.llama_set_causal_attn(self._context, False)
                for first in range(0, count, self.batch_length):
                    last = min(first + self.batch_length, count)
                    self._batch.write(
                        entries[first:last],
                        positions[..., first:last],
                        slice(max(0, count - outputs - first), None),
                    )
                    self._decode_batch(times[first:last], signal)
                self._held.extend(positions)
                self._has_logits = outputs > 0
            except BaseException:
                self._undo(int(times[0]))
                raise
            finally:
                if bidirectional:
                    llama.llama_set_causal_attn(self._context, True)

    def _undo(self, time: int) -> None:
        """Remove everything from a time on, after a call that failed; all if the memory cannot go back."""
        seq_rm = self._llama.llama_memory_seq_rm
        if not seq_rm(self._memory, 0, time, -1):
            seq_rm(self._memory, 0, -1, -1)
            time = 0
        self._held.cut(time)

    def set_images(
        self, images: Sequence[CrossStates], *, cancel: CancelSignal | None = None
    ) -> None:
        """Raise an error, since llama.cpp has no such decoder; see `DecoderRuntime.set_images`.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self._path.name} has no cross-attention; images are its embeddings")

    def branch(self, source: int | None = None) -> int:
        """Open a branch; see `DecoderRuntime.branch`."""
        self._check_open()
        held = self._held.serials, self._held.place
        branch = self._branches.add(*(held if source is None else self._branches.share(source)))
        self._ordered &= self._held_ordered
        self._llama.llama_memory_seq_cp(self._memory, source or 0, branch, -1, -1)
        return branch

    def branch_of_copy(self, copy: NDArray[np.uint8], place: Place) -> int:
        """Open a branch with a copy; see `DecoderRuntime.branch_of_copy`."""
        self._check_open()
        if not self.independent_branches:
            raise InputError(f"the memory of {self._path.name} holds branches of one sequence only")
        entries = check_integer("entries", place.entries, 0, self.context_length)
        self._held.check_fits(entries, self._count_taken(entries))
        branch = self._branches.add(self._held.new_serials(entries), place)
        try:
            self._read_copy(copy, place, branch)
        except BaseException:
            self.drop(branch)
            raise
        return branch

    def is_exact(self, branch: int, tokens: int) -> bool:
        """Return True if a branch is computed as alone; see `DecoderRuntime.is_exact`."""
        self._check_open()
        entries = self._branches.place(branch).entries + tokens
        if not (self._ordered and self._flash and self.on_cpu and self.independent_branches):
            return False
        # Attention over quantized keys is not split.
        if self._threads > 1 and self.kv not in BLOCK_SIZES and entries > MAX_UNSPLIT_ENTRIES:
            return False
        if self._rounds_alike is None:
            free = self.context_length - self._branches.count_all(self._held.serials)
            if free <= MAX_ROWS:
                return False
            try:
                self._rounds_alike = rounds_alike(self._decode_spare, self.vocabulary_size)
            finally:
                for sequence in self._spare:
                    self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
        return self._rounds_alike

    def _decode_spare(
        self, sequences: Sequence[int], ids: Sequence[int], positions: Sequence[int], wanted: int
    ) -> NDArray[np.float32]:
        """Decode tokens of sequences that are no branches, for `rounds_alike`."""
        self._has_logits = False
        numbers = [self._spare[sequence] for sequence in sequences]
        for number in set(numbers):
            first = min(at for at, one in zip(positions, numbers, strict=True) if one == number)
            self._llama.llama_memory_seq_rm(self._memory, number, first, -1)
        entries, places = np.array(ids, np.int32), np.array(positions, np.int32)
        outputs = np.arange(len(entries)) == wanted
        self._batch.write(entries, places, outputs, numbers)
        with self._interruptible(None) as signal:
            self._decode_batch(places, signal)
        pointer = self._llama.llama_get_logits(self._context)
        logits: NDArray[np.float32] = np.ctypeslib.as_array(pointer, (self.vocabulary_size,))
        return logits

    def _count_taken(self, count: int) -> int:
        """Return how many entries are taken; free those of dropped branches if `count` more need it."""
        taken = self._branches.count_all(self._held.serials)
        if taken + count > self.context_length and self._branches.free_dropped():
            self._llama.llama_memory_seq_rm(self._memory, self._dropped, -1, -1)
            self._ordered = False
            return self._branches.count_entries(self._held.serials)
        return taken

    def decode_branches(
        self,
        branches: Sequence[int],
        token_ids: Sequence[int],
        logits: NDArray[np.bool_] | None = None,
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode tokens of several branches in one batch; see `DecoderRuntime.decode_branches`."""
        self._check_open()
        ids = check_tokens(token_ids, self.vocabulary_size)
        size = len(ids)
        wanted = self._branches.check_batch(
            branches, size, logits, max_tokens=self.batch_length, max_logits=self.max_logits
        )
        rows = int(wanted.sum())
        positions = self._branches.next_positions(branches)
        self._held.check_fits(size, self._count_taken(size))
        self._has_logits = False
        # Alone in a batch, attention of a token would be split between threads.
        padded = size == 1 and self._threads > 1 and self.independent_branches
        if padded and self._count_taken(2) + 2 <= self.context_length:
            self._batch.write(
                np.append(ids, ids),
                np.append(positions, np.int32(0)),
                np.append(wanted, False),
                [branches[0], self._spare[0]],
            )
        else:
            self._batch.write(ids, positions, wanted, branches)
        with self._interruptible(cancel) as signal:
            try:
                self._decode_batch(positions, signal)
            except BaseException:
                for branch in set(branches):
                    self._remove_from_branch(branch, self._branches.place(branch).position)
                raise
            finally:
                if padded:
                    self._llama.llama_memory_seq_rm(self._memory, self._spare[0], -1, -1)
        self._branches.extend(branches)
        if not rows:
            return np.empty((0, self.vocabulary_size), np.float32)
        self._has_logits = True
        pointer = self._llama.llama_get_logits(self._context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary_size))

    def _remove_from_branch(self, branch: int, position: int) -> None:
        """Remove everything from a position on; all if the memory cannot go back."""
        seq_rm = self._llama.llama_memory_seq_rm
        if not seq_rm(self._memory, branch, position, -1):
            seq_rm(self._memory, branch, -1, -1)
            self._branches.empty(branch)

    def cut_branch(self, branch: int, tokens: int) -> None:
        """Remove the last tokens of a branch; see `DecoderRuntime.cut_branch`."""
        self._check_open()
        if not self.independent_branches:
            raise InputError(f"the memory of {self._path.name} cannot cut a branch back")
        self._branches.cut(branch, tokens)
        self._ordered = False
        self._remove_from_branch(branch, self._branches.place(branch).position)

    def drop(self, branch: int) -> None:
        """Close a branch; see `DecoderRuntime.drop`."""
        self._check_open()
        keep = self.independent_branches and len(self._branches) > 1
        self._branches.drop(branch, keep=keep)
        if keep:
            self._llama.llama_memory_seq_cp(self._memory, branch, self._dropped, -1, -1)
        self._llama.llama_memory_seq_rm(self._memory, branch, -1, -1)
        if not self._branches:
            if self._branches.free_dropped():
                self._llama.llama_memory_seq_rm(self._memory, self._dropped, -1, -1)
            self._ordered = True

    def room(self, entries: int) -> int:
        """Return the free entries after a cut; see `DecoderRuntime.room`."""
        held = self._held.serials[: check_integer("entries", entries, 0, 2**31 - 1)]
        return self.context_length - self._branches.count_entries(held)

    def truncate(self, place: Place) -> bool:
        """Remove everything from `place` on from the KV cache.

        Returns:
            True if the KV cache ends at `place` now; else False, and nothing has changed.

        Raises:
            InputError: the numbers are negative or no integers, or `place` is inside an image.
        """
        self._check_open()
        if not self._held.reaches(place):
            return False
        if place != self._held.place:
            if not self._llama.llama_memory_seq_rm(self._memory, 0, place.position, -1):
                return False
            self._held.cut(place.position)
        self._held_ordered |= place.entries == 0
        return True

    def remove(self, start: Place, end: Place) -> None:
        """Remove entries from the middle; see `DecoderRuntime.remove`.

        llama.cpp turns the keys of the moved entries with the next decoding.
        """
        self._check_open()
        if not self.can_shift or self._branches:
            reason = "while branches are open" if self.can_shift else f"of {self._path.name}"
            raise InputError(f"entries {reason} cannot be removed from the middle of the KV cache")
        if (
            not (self._held.reaches(start) and self._held.reaches(end))
            or end.entries < start.entries
        ):
            raise InputError(
                f"the KV cache of {self._held.place.entries} entries has no entries from {start.entries} to "
                f"{end.entries}"
            )
        if start == end:
            return
        llama, memory = self._llama, self._memory
        llama.llama_memory_seq_rm(memory, 0, start.position, end.position)
        llama.llama_memory_seq_add(memory, 0, end.position, -1, start.position - end.position)
        self._held.remove(start, end)
        self._has_logits = self._held_ordered = False

    def save(self) -> NDArray[np.uint8]:
        """Return a copy of what the KV cache holds, uint8 ``[bytes]``, for `restore` of the same decoder.

        Raises:
            InferenceError: llama.cpp failed.
        """
        self._check_open()
        if self._slides and self._branches:
            raise InferenceError(
                "this KV cache cannot be copied while it has branches; drop them first"
            )
        return copy_cache(
            self._context,
            self._held.numbers(),
            slides=self._slides,
        )

    def restore(self, copy: NDArray[np.uint8], place: Place) -> None:
        """Replace the content of the KV cache with a copy that `save` made.

        Args:
            copy: the copy, uint8 ``[bytes]``.
            place: how far the sequence was when the copy was made.

        Raises:
            InputError: `place` is outside the context.
            InferenceError: llama.cpp cannot read the copy; the KV cache is empty then.
        """
        self._check_open()
        entries = check_integer("entries", place.entries, 0, self.context_length)
        position = check_integer("position", place.position, 0, entries)
        llama = self._llama
        llama.llama_memory_seq_rm(self._memory, 0, -1, -1)
        self._held.place, self._has_logits = Place(), False
        self._ordered &= not self._branches
        self._held_ordered = not self._branches
        self._count_taken(entries)
        self._held.restore(self._read_copy(copy, Place(entries, position), 0), place)

    def _read_copy(self, copy: NDArray[np.uint8], place: Place, sequence: int) -> NDArray[np.int32]:
        """Let a sequence be what a copy holds, and return the numbers in it; see `CachePositions.numbers`.

        Raises:
            InferenceError: llama.cpp cannot read the copy; the sequence is empty then.
        """
        state, numbers = split_copy(copy, place.entries + 1)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        recent_errors.clear()
        read = self._llama.llama_state_seq_set_data(self._context, pointer, state.nbytes, sequence)
        last = self._llama.llama_memory_seq_pos_max(self._memory, sequence)
        if read != state.nbytes or not belong_together(numbers, place, last):
            self._llama.llama_memory_seq_rm(self._memory, sequence, -1, -1)
            raise InferenceError(
                f"llama.cpp could not restore its KV cache from {copy.nbytes} bytes"
                f"{failure_reason()}"
            )
        return numbers

    def logits(self) -> NDArray[np.float32]:
        """Return a copy, float32 ``[vocabulary]``, of the logits of the last decoded position.

        Raises:
            InputError: the last decoding did not ask for logits.
        """
        return self._last_logits().copy()

    def _last_logits(self) -> NDArray[np.float32]:
        """Return a view of llama.cpp's logits, valid until the next decoding."""
        self._check_open()
        if not self._has_logits:
            raise InputError("there are no logits: decode the last position with logits=True first")
        pointer = self._llama.llama_get_logits_ith(self._context, -1)
        address = ctypes.addressof(pointer.contents)
        if address != self._logits_address:  # llama.cpp rarely moves its buffer
            self._logits_address = address
            self._logits = np.ctypeslib.as_array(pointer, shape=(self.vocabulary_size,))
        return self._logits

    def schema_checker(self, end_tokens: Collection[int]) -> Callable[[Mapping[str, Any]], object]:
        """Return a check of JSON schemas; see `DecoderRuntime.schema_checker`."""
        self._check_open()
        return self._constraints.find(end_tokens).check

    def sampler(self, sampling: Sampling, end_tokens: Collection[int] = ()) -> LlamaCppSampler:
        """Return a new sampler; see `DecoderRuntime.sampler`."""
        self._check_open()
        matcher = self._constraints.matcher(sampling, end_tokens)
        return LlamaCppSampler(
            self._context, self.vocabulary_size, sampling, self._last_logits, matcher
        )

    def close(self) -> None:
        """Free the decoder. A second call does nothing; every other later call raises ClosedError."""
        super().close()
        if hasattr(self, "_constraints"):  # it was created
            self._constraints.close()
