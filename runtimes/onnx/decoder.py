"""The decoder in ONNX Runtime.

Keys and values of an entry are in a cell of the graph's memory, and a mask says which cells an entry sees. So
sequences share cells, a cut frees them, and an entry may see later ones of its image. No value moves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import ClosedError, InferenceError, InputError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.branches import Branches
from edgevlm.runtimes.cache_positions import CachePositions
from edgevlm.runtimes.constraints import Constraints
from edgevlm.runtimes.forks import check_not_forked, mark_started
from edgevlm.runtimes.onnx.cache_copy import CacheParts, split_copy
from edgevlm.runtimes.onnx.cell_table import HELD
from edgevlm.runtimes.onnx.decoder_graph import DecoderGraph
from edgevlm.runtimes.onnx.embedding_tables import EmbeddingTables
from edgevlm.runtimes.onnx.execution_providers import CPU_PROVIDER, Provider
from edgevlm.runtimes.onnx.sequences import Sequences
from edgevlm.runtimes.onnx.session import SessionOpener
from edgevlm.runtimes.onnx.vocabulary import Vocabulary
from edgevlm.runtimes.protocols import CrossStates, Place, Sampling
from edgevlm.runtimes.sampler import NumpySampler
from edgevlm.runtimes.text_checks import check_embeddings, check_tokens
from edgevlm.validation import check_integer


class OnnxDecoder:
    """A decoder in ONNX Runtime with its KV cache; implements `DecoderRuntime`.

    Args:
        path: the graph, as of `edgevlm.runtimes.onnx.decoder_graph`.
        tokenizer: the tokenizer file, as of `Vocabulary`.
        embeddings: the embedding table, a ``.npy`` file of floats ``[vocabulary, width]``. A graph that
            reads several features from one embedding is wider; the table is padded with zeros.
        layer_embeddings: the table of a graph whose layers add embeddings of their own, a ``.npy`` file of
            floats ``[vocabulary + 1, layer width]``, whose last row is that of entries that are no tokens;
            None for other graphs.
        context_length: entries that the KV cache holds.
        window: entries that layers with a sliding window see; None without such layers.
        device: ``auto`` (CUDA, else CPU) or one of `ONNX_DEVICES`.
        providers: ONNX Runtime's providers in order of preference, instead of `device`.
        threads: CPU threads; None takes one per physical core that this process may use.

    Raises:
        InputError: an argument has the wrong type or is outside its range.
        LoadError: a file is damaged or not of this decoder, a provider is not available, or memory is short.
        ClosedError: this process was forked from one that had used a model.
        MissingDependencyError: ONNX Runtime or tokenizers is not installed.
    """

    BATCH_SIZE = 256
    """Entries of one run. The scores of attention take ``heads * BATCH_SIZE * cells * 4`` bytes."""

    max_logits = 16
    max_branches = 16
    can_shift = False
    independent_branches = True
    exact_batch_length = 1
    """Matrices of several rows are multiplied in another order than those of one."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        tokenizer: Path,
        embeddings: Path,
        layer_embeddings: Path | None = None,
        context_length: int,
        window: int | None = None,
        device: str = "auto",
        providers: Sequence[Provider] | None = None,
        threads: int | None = None,
    ) -> None:
        check_not_forked()
        self._graph: DecoderGraph | None = None
        self._path = Path(path)
        self.context_length = check_integer("context_length", context_length, 1, 2**31 - 1)
        self._window = window
        opener = SessionOpener(device, providers, threads)
        self._vocabulary = Vocabulary(tokenizer)
        self._tables = EmbeddingTables(embeddings, layer_embeddings)
        mark_started(self, "_graph")
        graph = DecoderGraph(self._path, opener)
        self.device = graph.device
        self.on_cpu = graph.device == CPU_PROVIDER
        self.width, self.vocabulary_size = graph.width, graph.vocabulary_size
        self.grid_positions = graph.grid_positions
        self.cross_attention = graph.images is not None
        self.batch_length = self.BATCH_SIZE
        self.max_removable = self.context_length
        self.copy_format = f"ONNX Runtime, {graph.dtype}"
        self._check(graph)
        self._constraints = Constraints(
            self.vocabulary_size, self._vocabulary.piece, self._vocabulary.tokenize
        )
        self._held = CachePositions(self.context_length, mrope=self.grid_positions)
        self._branches = Branches(self.max_branches)
        self._sequences = Sequences(graph, window)
        self._logits: NDArray[np.float32] | None = None
        """Of the last decoding, if it asked for them."""
        self._graph = graph

    def _check(self, graph: DecoderGraph) -> None:
        """Check that the files belong together, and that the context fits into memory.

        Raises:
            LoadError: they do not, or it does not.
        """
        rows, width = self._tables.vocabulary_size, self._tables.width
        if rows < self.vocabulary_size or self.width % width or self._vocabulary.size != rows:
            raise LoadError(
                f"{self._path} has {self.vocabulary_size} tokens and embeddings of {self.width} numbers, the "
                f"embedding table {rows} and {width}, the tokenizer {self._vocabulary.size} tokens; they are "
                f"not of one bundle, get it again"
            )
        layers = None if graph.layer_width is None else (rows + 1, graph.layer_width)
        if self._tables.layer_shape != layers:
            raise LoadError(
                f"{self._path} needs a table of the embeddings of its layers of shape {layers}, the bundle's "
                f"is {self._tables.layer_shape}; they are not of one bundle, get it again"
            )
        if ("window_mask" in graph.masks) != (self._window is not None):
            raise LoadError(
                f"{self._path} takes the masks {', '.join(graph.masks)}, and the manifest says that a "
                f"sliding window is {self._window}; get the bundle again"
            )
        needed, available = (
            graph.entries.cell_bytes * self.context_length,
            system.available_memory(),
        )
        if self.on_cpu and available is not None and needed > available:
            raise LoadError(
                f"context_length {self.context_length} needs {needed / 2**30:.1f} GiB of memory, "
                f"{available / 2**30:.1f} GiB are available; use a shorter context"
            )

    def tokenize(self, text: str) -> list[int]:
        """Tokenize as `Vocabulary.tokenize` does."""
        return self._vocabulary.tokenize(text)

    def piece(self, token: int) -> bytes:
        """Return a token's bytes as `Vocabulary.piece` does."""
        return self._vocabulary.piece(token)

    def embed(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Return rows float32 ``[n, width]`` of the embedding table; see `DecoderRuntime.embed`."""
        size = self._tables.vocabulary_size  # some tokens are never answered
        return self._tables.rows(check_tokens(token_ids, size), self.width)

    def decode_tokens(
        self,
        token_ids: Sequence[int],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        cancel: CancelSignal | None = None,
    ) -> None:
        """Decode tokens into the KV cache; see `DecoderRuntime.decode_tokens`."""
        self._open_graph()
        rows = self.embed(token_ids)
        self._decode(rows, positions, token_ids, outputs=int(logits), cancel=cancel)

    def decode_draft(
        self,
        token_ids: Sequence[int],
        positions: NDArray[np.int32],
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode at most `max_logits` tokens; see `DecoderRuntime.decode_draft`."""
        self._open_graph()
        rows = self.embed(token_ids)
        if len(rows) > self.max_logits:
            raise InputError(
                f"a draft may have up to {self.max_logits} tokens, has {len(rows)}; use decode_tokens"
            )
        self._decode(rows, positions, token_ids, outputs=len(rows), cancel=cancel)
        assert self._logits is not None
        return self._logits

    def decode_embeddings(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int32],
        *,
        logits: bool,
        bidirectional: bool = False,
        cancel: CancelSignal | None = None,
    ) -> None:
        """Decode embeddings into the KV cache; see `DecoderRuntime.decode_embeddings`."""
        self._open_graph()
        check_embeddings(embeddings, self.width)
        self._decode(
            np.ascontiguousarray(embeddings),
            positions,
            None,
            outputs=int(logits),
            bidirectional=bidirectional,
            cancel=cancel,
        )

    def set_images(
        self, images: Sequence[CrossStates], *, cancel: CancelSignal | None = None
    ) -> None:
        """Replace what cross-attention sees; see `DecoderRuntime.set_images`."""
        graph = self._open_graph()
        if graph.images is None:
            raise InputError(f"{self._path.name} has no cross-attention; images are its embeddings")
        if self._held.place.entries:
            raise InputError(
                f"the KV cache has {self._held.place.entries} entries, which have seen other images; "
                f"truncate it first"
            )
        for image in images:
            check_embeddings(image.states, self.width)
            check_integer("seen", image.seen, 1, len(image.states))
        self._logits = None
        self._sequences.set_images(images, cancel or CancelSignal())

    def _decode(
        self,
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        token_ids: Sequence[int] | None,
        *,
        outputs: int,
        bidirectional: bool = False,
        cancel: CancelSignal | None,
    ) -> None:
        """Decode embeddings in batches.

        Args:
            rows: float32 ``[n, width]``, C-contiguous.
            positions: as of `decode_embeddings`.
            token_ids: the tokens whose embeddings these are; None: they are no tokens.
            outputs: number of the last entries that get logits.
            bidirectional: as of `decode_embeddings`.
            cancel: as of `decode_embeddings`.
        """
        count = len(rows)
        positions = self._held.check(
            positions, count, embeddings=token_ids is None, taken=self._count_taken()
        )
        signal = cancel or CancelSignal()
        self._logits = None
        size = count if bidirectional else self.BATCH_SIZE
        try:
            for first in range(0, count, size):
                last = min(first + size, count)
                wanted = np.arange(max(0, count - outputs - first), last - first)
                ids = None if token_ids is None else token_ids[first:last]
                logits = self._sequences.run(
                    [HELD] * (last - first),
                    rows[first:last],
                    positions[..., first:last],
                    wanted if last == count else wanted[:0],
                    signal,
                    layer_rows=self._tables.layer_rows(ids, last - first),
                    bidirectional=bidirectional,
                )
            self._held.extend(positions)
            if outputs:
                self._logits = logits
        except BaseException:
            times = positions if positions.ndim == 1 else positions[0]
            self._held.cut(int(times[0]))
            self._sequences.cut(HELD, self._held.place.entries)
            raise

    def _count_taken(self) -> int:
        return self._branches.count_entries(self._held.serials)

    def branch(self, source: int | None = None) -> int:
        """Open a branch; see `DecoderRuntime.branch`."""
        self._open_graph()
        held = self._held.serials, self._held.place
        branch = self._branches.add(*(held if source is None else self._branches.share(source)))
        self._sequences.branch(branch, HELD if source is None else source)
        return branch

    def branch_of_copy(self, copy: NDArray[np.uint8], place: Place) -> int:
        """Open a branch with a copy; see `DecoderRuntime.branch_of_copy`."""
        self._open_graph()
        entries = check_integer("entries", place.entries, 0, self.context_length)
        self._held.check_fits(entries, self._count_taken())
        parts = self._split_copy(copy, place)
        branch = self._branches.add(self._held.new_serials(entries), place)
        self._sequences.write(branch, entries, parts)
        return branch

    def is_exact(self, branch: int, tokens: int) -> bool:
        """Return False, as rounding depends on the batch; see `DecoderRuntime.is_exact`."""
        self._open_graph()
        self._branches.place(branch)
        return False

    def decode_branches(
        self,
        branches: Sequence[int],
        token_ids: Sequence[int],
        logits: NDArray[np.bool_] | None = None,
        *,
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Decode tokens of several branches in one batch; see `DecoderRuntime.decode_branches`."""
        self._open_graph()
        rows = self.embed(token_ids)
        wanted = self._branches.check_batch(
            branches,
            len(rows),
            logits,
            max_tokens=self.batch_length,
            max_logits=self.max_logits,
        )
        positions = self._branches.next_positions(branches)
        self._held.check_fits(len(rows), self._count_taken())
        self._logits = None
        found = self._sequences.run(
            branches,
            rows,
            positions,
            np.flatnonzero(wanted),
            cancel or CancelSignal(),
            layer_rows=self._tables.layer_rows(token_ids, len(rows)),
        )
        self._branches.extend(branches)
        if len(found):
            self._logits = found
        return found

    def cut_branch(self, branch: int, tokens: int) -> None:
        """Remove the last tokens of a branch; see `DecoderRuntime.cut_branch`."""
        self._open_graph()
        self._branches.cut(branch, tokens)
        self._sequences.cut(branch, self._branches.place(branch).entries)

    def drop(self, branch: int) -> None:
        """Close a branch; see `DecoderRuntime.drop`."""
        self._open_graph()
        self._branches.drop(branch, keep=False)
        self._sequences.drop(branch)

    def room(self, entries: int) -> int:
        """Return the free entries after a cut; see `DecoderRuntime.room`."""
        held = self._held.serials[: check_integer("entries", entries, 0, 2**31 - 1)]
        return self.context_length - self._branches.count_entries(held)

    def truncate(self, place: Place) -> bool:
        """Remove everything from `place` on; see `DecoderRuntime.truncate`."""
        self._open_graph()
        if not self._held.reaches(place):
            return False
        if place != self._held.place:
            self._held.cut(place.position)
            self._sequences.cut(HELD, place.entries)
        return True

    def remove(self, start: Place, end: Place) -> None:
        """Raise an error, since the positions in the keys stay; see `DecoderRuntime.remove`.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"entries of {self._path.name} cannot be removed from the middle of the KV cache"
        )

    def save(self) -> NDArray[np.uint8]:
        """Return a copy of what the KV cache holds, uint8 ``[bytes]``; see `DecoderRuntime.save`."""
        self._open_graph()
        return self._sequences.copy(self._held.numbers())

    def restore(self, copy: NDArray[np.uint8], place: Place) -> None:
        """Replace the content of the KV cache with a copy; see `DecoderRuntime.restore`.

        Raises:
            InputError: `place` is outside the context.
            InferenceError: it is no copy of this decoder; the KV cache is empty then.
        """
        self._open_graph()
        entries = check_integer("entries", place.entries, 0, self.context_length)
        check_integer("position", place.position, 0, entries)
        self._held.place, self._logits = Place(), None
        self._sequences.clear()
        parts = self._split_copy(copy, place)
        self._sequences.write(HELD, entries, parts)
        self._held.restore(parts.numbers, place)

    def _split_copy(self, copy: NDArray[np.uint8], place: Place) -> CacheParts:
        """Return the parts of a copy.

        Raises:
            InferenceError: it is no copy that was made at `place`.
        """
        parts = split_copy(copy, self._open_graph(), place)
        if parts is None:
            raise InferenceError(
                f"the KV cache of {self._path.name} could not be restored from {copy.nbytes} bytes, which "
                f"are no copy of {place.entries} entries of it"
            )
        return parts

    def logits(self) -> NDArray[np.float32]:
        """Return a copy of the logits of the last position; see `DecoderRuntime.logits`."""
        return self._last_logits().copy()

    def _last_logits(self) -> NDArray[np.float32]:
        self._open_graph()
        if self._logits is None:
            raise InputError("there are no logits: decode the last position with logits=True first")
        last: NDArray[np.float32] = self._logits[-1]
        return last

    def schema_checker(self, end_tokens: Collection[int]) -> Callable[[Mapping[str, Any]], object]:
        """Return a check of JSON schemas; see `DecoderRuntime.schema_checker`."""
        self._open_graph()
        return self._constraints.find(end_tokens).check

    def sampler(self, sampling: Sampling, end_tokens: Collection[int] = ()) -> NumpySampler:
        """Return a new sampler; see `DecoderRuntime.sampler`."""
        self._open_graph()
        matcher = self._constraints.matcher(sampling, end_tokens)
        return NumpySampler(self.vocabulary_size, sampling, self._last_logits, matcher)

    def close(self) -> None:
        """Free the decoder. A second call does nothing; every other later call raises ClosedError."""
        self._graph = None
        self._logits = None
        self._constraints.close()

    def _open_graph(self) -> DecoderGraph:
        check_not_forked()
        if self._graph is None:
            raise ClosedError(f"the decoder of {self._path} is closed; create a new one")
        return self._graph
