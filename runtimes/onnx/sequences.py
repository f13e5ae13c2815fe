"""The sequences of a decoder in ONNX Runtime: their cells in the memory of the graph, and runs for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.runtimes.onnx.cache_copy import CacheParts, copy_cache
from edgevlm.runtimes.onnx.cell_table import BLANK, HELD, CellTable
from edgevlm.runtimes.onnx.cross_table import CrossTable, HeldImage
from edgevlm.runtimes.onnx.decoder_graph import CrossInputs, DecoderGraph
from edgevlm.runtimes.protocols import CrossStates


class Sequences:
    """The held sequence and the branches. They may share cells; a cell that none has is free.

    Args:
        graph: the graph with its memory.
        window: entries that layers with a sliding window see; None without such layers.
    """

    def __init__(self, graph: DecoderGraph, window: int | None) -> None:
        self._graph = graph
        self._window = window
        self._cells = CellTable(has_blank=graph.before > 0)
        self._cross = CrossTable()

    def entries(self, sequence: int) -> int:
        """Return the number of entries of a sequence."""
        return len(self._cells.cells(sequence))

    def branch(self, branch: int, source: int) -> None:
        """Let a new sequence have what another one has."""
        self._cells.set(branch, self._cells.cells(source))
        self._cross.set(branch, self._cross.images(source))

    def cut(self, sequence: int, entries: int) -> None:
        """Let a sequence have its first entries only. Its images stay."""
        self._cells.set(sequence, self._cells.cells(sequence)[:entries])

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        self._cells.drop(sequence)
        self._cross.drop(sequence)

    def clear(self) -> None:
        """Let the held sequence have no entries and no images."""
        self.cut(HELD, 0)
        self._cross.set(HELD, ())

    def copy(self, numbers: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Return a copy of the held sequence, as of `copy_cache`."""
        return copy_cache(self._graph, self._cells.cells(HELD), numbers, self._cross.images(HELD))

    def write(self, sequence: int, entries: int, parts: CacheParts) -> None:
        """Let a sequence have the entries and images of a copy."""
        cells = self._new_cells(entries)
        if entries:
            self._graph.entries.write(cells, parts.entries)
        self._cells.set(sequence, cells)
        self._cross.set(sequence, ())
        for image in parts.images:
            assert self._graph.images is not None
            new = self._new_image_cells(len(image.data) // self._graph.images.cell_bytes)
            self._graph.images.write(new, image.data)
            held = HeldImage(image.entry, new, image.seen)
            self._cross.set(sequence, (*self._cross.images(sequence), held))

    def set_images(self, images: Sequence[CrossStates], cancel: CancelSignal) -> None:
        """Replace the images of the held sequence; errors as of `DecoderGraph.run`."""
        self._cross.set(HELD, ())
        for image in images:
            cells = self._new_image_cells(len(image.states))
            self._write_states(np.ascontiguousarray(image.states), cells, cancel)
            held = HeldImage(image.entry, cells, image.seen)
            self._cross.set(HELD, (*self._cross.images(HELD), held))

    def _write_states(
        self, states: NDArray[np.float32], cells: NDArray[np.int64], cancel: CancelSignal
    ) -> None:
        """Write keys and values of an image to cells, by a run with an entry that no sequence gets."""
        graph = self._graph
        assert graph.images is not None
        entry = self._new_cells(1)
        own, seen = (
            np.zeros((1, memory.cells), np.bool_) for memory in (graph.entries, graph.images)
        )
        own[0, entry], seen[0, cells] = True, True
        width = graph.layer_width
        graph.run(
            np.zeros((1, graph.width), np.float32),
            np.zeros((3, 1) if graph.grid_positions else 1, np.int64),
            dict.fromkeys(graph.masks, own),
            entry,
            np.full((1, graph.before), BLANK, np.int64),
            np.empty(0, np.int64),
            cancel,
            CrossInputs(states, cells, seen, np.ones(1, np.bool_)),
            None if width is None else np.zeros((1, width), np.float32),
        )

    def run(
        self,
        sequences: Sequence[int],
        rows: NDArray[np.float32],
        positions: NDArray[np.int32],
        wanted: NDArray[np.intp],
        cancel: CancelSignal,
        *,
        layer_rows: NDArray[np.float32] | None = None,
        bidirectional: bool = False,
    ) -> NDArray[np.float32]:
        """Decode entries of sequences in one run, and add their cells to the sequences.

        Args:
            sequences: ``[n]``, the sequence of each entry.
            rows: embeddings, ``[n, width]``, C-contiguous.
            positions: ``[n]``, or ``[3, n]`` for M-RoPE.
            wanted: the entries, by their index, whose logits are returned.
            cancel: stops the call; errors as of `DecoderGraph.run`.
            layer_rows: the embeddings of the layers, as of `DecoderGraph.run`.
            bidirectional: the entries, all of one sequence, see each other, also later ones.

        Returns:
            float32 ``[wanted, vocabulary]``.
        """
        graph = self._graph
        new = self._new_cells(len(rows))
        masks = {
            name: self._cells.mask(
                sequences,
                new,
                graph.entries.cells,
                window=self._window if name == "window_mask" else None,
                bidirectional=bidirectional,
            )
            for name in graph.masks
        }
        if graph.grid_positions and positions.ndim == 1:
            positions = np.broadcast_to(positions, (3, len(rows)))
        logits = graph.run(
            rows,
            np.ascontiguousarray(positions, np.int64),
            masks,
            new,
            self._cells.before(sequences, new, graph.before),
            wanted.astype(np.int64),
            cancel,
            self._cross_inputs(sequences),
            layer_rows,
        )
        for sequence in dict.fromkeys(sequences):
            own = new[np.asarray(sequences) == sequence]
            self._cells.set(sequence, np.concatenate([self._cells.cells(sequence), own]))
        return logits

    def _cross_inputs(self, sequences: Sequence[int]) -> CrossInputs | None:
        """Return what the next entries of sequences see of images; None without cross-attention."""
        memory = self._graph.images
        if memory is None:
            return None
        memory.resize(self._cross.end)
        following = {one: self.entries(one) for one in sequences}
        numbers = []
        for sequence in sequences:
            numbers.append(following[sequence])
            following[sequence] += 1
        mask, rows = self._cross.mask(sequences, numbers, memory.cells)
        nothing = np.empty((0, self._graph.width), np.float32), np.empty(0, np.int64)
        return CrossInputs(*nothing, mask, rows)

    def _new_cells(self, count: int) -> NDArray[np.int64]:
        """Return free cells for entries, and let the memory be as large as needed."""
        cells = self._cells.free(count)
        if count:
            self._graph.entries.resize(max(self._cells.end, int(cells.max()) + 1))
        return cells

    def _new_image_cells(self, count: int) -> NDArray[np.int64]:
        """Return free cells for the features of an image, and let the memory be as large as needed."""
        assert self._graph.images is not None
        cells = self._cross.free(count)
        self._graph.images.resize(max(self._cross.end, int(cells.max()) + 1))
        return cells
