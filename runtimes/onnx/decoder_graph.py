"""The graph of a decoder in ONNX Runtime, and the memory of its keys and values.

One graph serves prompts and answers. It has no batch dimension:

- input ``embeddings``: float32 ``[n, width]``;
- ``positions``: int64 ``[n]``, or ``[3, n]`` for M-RoPE;
- ``mask``: float ``[n, cells]``, added to the scores: 0 for a cell that an entry sees, -inf for others;
- ``window_mask``: the same for layers with a sliding window, if there are such layers. Then ``mask`` is there
  only if there are others, too;
- ``cells``: int64 ``[n]``, the cells that the entries are written to;
- ``wanted``: int64 ``[m]``, the entries, by their index, whose logits are computed; m may be 0;
- ``past_keys.0``, ``past_values.0``, and so on for each layer: float ``[heads, cells, size]``;
- output ``logits``: float32 ``[m, vocabulary]``;
- ``keys.0``, ``values.0``, and so on: the inputs, with the entries in their cells.

Input and output of a layer are bound to the same memory. ONNX Runtime then writes the new cells in place, so
a token costs the same whatever the cache holds, but for the attention itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import InferenceError, LoadError
from edgevlm.runtimes.onnx.session import SessionOpener, load_onnxruntime

MASKS = ("mask", "window_mask")
"""Names of the masks."""

_FLOATS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


class DecoderGraph:
    """An open graph with its cells.

    Args:
        path: the ONNX file.
        opener: opens it.

    Raises:
        LoadError: the file is no such graph, or cannot be opened.
    """

    STEP = 256
    """The number of cells is a multiple of it."""

    def __init__(self, path: Path, opener: SessionOpener) -> None:
        self._path = path
        self._session: Any = opener.open(path)
        self.device: str = self._session.get_providers()[0]
        """ONNX Runtime's name of the provider."""
        self._memory = "cuda" if self.device.startswith("CUDA") else "cpu"
        inputs = {one.name: one for one in self._session.get_inputs()}
        outputs = {one.name: one for one in self._session.get_outputs()}
        self._past = [name for name in inputs if name.startswith("past_")]
        self._present = [name.removeprefix("past_") for name in self._past]
        self.masks = [name for name in MASKS if name in inputs]
        """Names of the masks of this graph."""
        needed = {"embeddings", "positions", "cells", "wanted", *self._past, *self.masks}
        shapes = {name: one.shape for name, one in (inputs | outputs).items()}
        if (
            needed != inputs.keys()
            or {"logits", *self._present} != outputs.keys()
            or not (self._past and self.masks)
            or any(len(shapes[name]) != 3 for name in self._past)
            or any(inputs[name].type not in _FLOATS for name in (*self._past, *self.masks))
        ):
            raise LoadError(
                f"{path} is no decoder graph of edgevlm: its inputs are {', '.join(inputs)}, its outputs "
                f"{', '.join(outputs)}; get the bundle again"
            )
        self.width: int = shapes["embeddings"][1]
        """Width of an embedding."""
        self.vocabulary_size: int = shapes["logits"][1]
        """Number of tokens."""
        self.grid_positions = len(shapes["positions"]) == 2
        """True if a position has three numbers."""
        self.dtype = _FLOATS[inputs[self._past[0]].type]
        """Type of keys and values."""
        self._shapes = [(shapes[name][0], shapes[name][2]) for name in self._past]
        self.cell_bytes = sum(heads * size for heads, size in self._shapes) * self.dtype.itemsize
        """Memory that a cell takes."""
        self.cells = 0
        """Number of cells."""
        self._values: list[Any] = []
        self._arrays: list[NDArray[Any]] = []
        self._binding = self._session.io_binding()
        self.resize(self.STEP)

    def resize(self, cells: int) -> None:
        """Let there be at least so many cells, and not many more. The content of the first ones stays.

        Args:
            cells: positive.
        """
        cells = -(-cells // self.STEP) * self.STEP
        if cells == self.cells:
            return
        held = min(cells, self.cells)
        arrays = [np.zeros((heads, cells, size), self.dtype) for heads, size in self._shapes]
        for new, old in zip(arrays, self._read(), strict=False):
            new[:, :held] = old[:, :held]
        self.cells = cells
        self._bind(arrays)

    def read(self, cells: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Return copies of keys and values of some cells, float ``[heads, n, size]`` for each input."""
        return [array[:, cells] for array in self._read()]

    def write(self, cells: NDArray[np.int64], arrays: list[NDArray[Any]]) -> None:
        """Write keys and values, as `read` returned them, to other cells."""
        memory = self._read()
        for array, new in zip(memory, arrays, strict=True):
            array[:, cells] = new
        if self._memory != "cpu":
            self._bind(memory)

    def shapes(self, cells: int) -> list[tuple[int, int, int]]:
        """Return the shapes of what `read` returns for so many cells."""
        return [(heads, cells, size) for heads, size in self._shapes]

    def _read(self) -> list[NDArray[Any]]:
        """Return all cells; on the CPU the memory itself."""
        return self._arrays if self._memory == "cpu" else [value.numpy() for value in self._values]

    def _bind(self, arrays: list[NDArray[Any]]) -> None:
        """Let arrays be the memory of the cells; other devices get a copy."""
        create = load_onnxruntime().OrtValue.ortvalue_from_numpy
        self._values = [create(array, self._memory, 0) for array in arrays]
        self._arrays = arrays if self._memory == "cpu" else []
        for past, present, value in zip(self._past, self._present, self._values, strict=True):
            self._binding.bind_ortvalue_input(past, value)
            self._binding.bind_ortvalue_output(present, value)

    def run(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int64],
        masks: Mapping[str, NDArray[np.bool_]],
        cells: NDArray[np.int64],
        wanted: NDArray[np.int64],
        cancel: CancelSignal,
    ) -> NDArray[np.float32]:
        """Decode entries into cells.

        Args:
            embeddings: ``[n, width]``, C-contiguous.
            positions: ``[n]``, or ``[3, n]`` if `grid_positions`.
            masks: bool ``[n, cells]`` for each of `masks`, True for cells that an entry sees; its own is one.
            cells: ``[n]``.
            wanted: ``[m]``.
            cancel: stops this call between two nodes of the graph. The content of `cells` is undefined then.

        Returns:
            float32 ``[m, vocabulary]``.

        Raises:
            CancelledError: `cancel` stopped it.
            InferenceError: ONNX Runtime failed.
        """
        onnxruntime = load_onnxruntime()
        create = onnxruntime.OrtValue.ortvalue_from_numpy
        logits = np.empty((len(wanted), self.vocabulary_size), np.float32)
        inputs: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "positions": positions,
            "cells": cells,
            "wanted": wanted,
        }
        hidden, seen = self.dtype.type(-np.inf), self.dtype.type(0)
        inputs |= {name: np.where(mask, seen, hidden) for name, mask in masks.items()}
        # ONNX Runtime uses the memory of the arrays, so they live until the end of the run.
        values = {name: create(array) for name, array in inputs.items()}
        output = create(logits)
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output("logits", output)
        options = onnxruntime.RunOptions()
        with cancel.interrupting(functools.partial(setattr, options, "terminate", True)):
            try:
                self._session.run_with_iobinding(self._binding, options)
            except Exception as error:  # ONNX Runtime's exceptions share no other base
                cancel.check()
                raise InferenceError(f"ONNX Runtime failed in {self._path}: {error}") from error
        return logits
