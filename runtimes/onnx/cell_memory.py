"""The memory of the keys and values of some layers, in cells that a graph reads and writes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.onnx.session import load_onnxruntime


class CellMemory:
    """Arrays ``[heads, cells, size]``, each bound to an input of a graph and to the output that follows it.

    Args:
        binding: the graph's ``IOBinding``.
        inputs: names of the inputs, ``past_`` and the name of an output.
        shapes: heads and size of each array.
        dtype: type of all arrays.
        device: ``cpu`` or ``cuda``.
    """

    STEP = 256
    """The number of cells is a multiple of it."""

    def __init__(
        self,
        binding: Any,
        inputs: list[str],
        shapes: list[tuple[int, int]],
        dtype: np.dtype[Any],
        device: str,
    ) -> None:
        self._binding = binding
        self._inputs = inputs
        self._shapes = shapes
        self._dtype = dtype
        self._device = device
        self.cell_bytes = sum(heads * size for heads, size in shapes) * dtype.itemsize
        """Memory that a cell takes."""
        self.cells = 0
        """Number of cells."""
        self._values: list[Any] = []
        self._arrays: list[NDArray[Any]] = []
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
        arrays = [np.zeros((heads, cells, size), self._dtype) for heads, size in self._shapes]
        for new, old in zip(arrays, self._read(), strict=False):
            new[:, :held] = old[:, :held]
        self.cells = cells
        self._bind(arrays)

    def read(self, cells: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return a copy of keys and values of some cells, uint8 ``[bytes]``."""
        parts = [np.ascontiguousarray(array[:, cells]) for array in self._read()]
        return np.concatenate([part.view(np.uint8).ravel() for part in parts])

    def write(self, cells: NDArray[np.int64], copy: NDArray[np.uint8]) -> None:
        """Write keys and values, as `read` returned them, to as many other cells."""
        memory = self._read()
        start = 0
        for array, (heads, size) in zip(memory, self._shapes, strict=True):
            end = start + heads * len(cells) * size * self._dtype.itemsize
            values = np.frombuffer(copy[start:end].tobytes(), self._dtype)
            array[:, cells] = values.reshape(heads, len(cells), size)
            start = end
        if self._device != "cpu":
            self._bind(memory)

    def _read(self) -> list[NDArray[Any]]:
        """Return all cells; on the CPU the memory itself."""
        return self._arrays if self._device == "cpu" else [one.numpy() for one in self._values]

    def _bind(self, arrays: list[NDArray[Any]]) -> None:
        """Let arrays be the memory of the cells; other devices get a copy."""
        create = load_onnxruntime().OrtValue.ortvalue_from_numpy
        self._values = [create(array, self._device, 0) for array in arrays]
        self._arrays = arrays if self._device == "cpu" else []
        for name, value in zip(self._inputs, self._values, strict=True):
            self._binding.bind_ortvalue_input(name, value)
            self._binding.bind_ortvalue_output(name.removeprefix("past_"), value)
