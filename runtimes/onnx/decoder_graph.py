"""The graph of a decoder in ONNX Runtime, and the memory of its keys and values.

One graph serves prompts and answers. It has no batch dimension:

- input ``embeddings``: float32 ``[n, width]``;
- ``layer_embeddings``: float32 ``[n, layer width]``, what each layer adds to an entry by its token, if the
  layers have such embeddings;
- ``positions``: int64 ``[n]``, or ``[3, n]`` for M-RoPE;
- ``mask``: float ``[n, cells]``, added to the scores: 0 for a cell that an entry sees, -inf for others;
- ``window_mask``: the same for layers with a sliding window, if there are such layers. Then ``mask`` is there
  only if there are others, too;
- ``cells``: int64 ``[n]``, the cells that the entries are written to;
- if layers have short convolutions, ``before``: int64 ``[n, count]``, the cells of so many entries before
  each one in its sequence, the nearest last; they may be among ``cells``. In place of entries that are not
  there stands a cell that is zero;
- ``wanted``: int64 ``[m]``, the entries, by their index, whose logits are computed; m may be 0;
- ``past_keys.0``, ``past_values.0``, and so on for each layer with attention: float ``[heads, cells, size]``;
- ``past_inputs.1`` and so on for each layer with a short convolution: float ``[1, cells, width]``, what it
  convolves;
- if layers have cross-attention to images, ``cross_states``: float32 ``[s, width]``, features of images that
  are new; s may be 0. ``cross_cells``: int64 ``[s]``, the cells that they are written to; these layers have
  cells of their own, so their memory is ``[heads, cross cells, size]``. ``cross_mask``: float
  ``[n, cross cells]``, as ``mask``. ``cross_rows``: float ``[n]``, factor of the feed-forward part of these
  layers, 0 for entries that follow no image;
- output ``logits``: float32 ``[m, vocabulary]``;
- ``keys.0``, ``values.0``, ``inputs.1`` and so on: the inputs, with the entries in their cells.

Input and output of a layer are bound to the same memory. ONNX Runtime then writes the new cells in place, so
a token costs the same whatever the cache holds, but for the attention itself.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import InferenceError, LoadError
from edgevlm.runtimes.onnx.cell_memory import CellMemory
from edgevlm.runtimes.onnx.session import SessionOpener, load_onnxruntime

MASKS = ("mask", "window_mask")
"""Names of the masks."""

LAYER_EMBEDDINGS = "layer_embeddings"
"""Name of the input with the embeddings of the layers themselves."""

CROSS_INPUTS = ("cross_states", "cross_cells", "cross_mask", "cross_rows")
"""Names of the inputs of layers with cross-attention."""

_FLOATS: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


@dataclass(frozen=True)
class CrossInputs:
    """What layers with cross-attention need for one run."""

    states: NDArray[np.float32]
    """``[s, width]``, features that are written; s may be 0."""
    cells: NDArray[np.int64]
    """``[s]``, the cells that they are written to."""
    mask: NDArray[np.bool_]
    """``[n, cells]``, True for cells that an entry sees; at least one."""
    rows: NDArray[np.bool_]
    """``[n]``, True for entries that follow an image."""


class DecoderGraph:
    """An open graph with its cells.

    Args:
        path: the ONNX file.
        opener: opens it.

    Raises:
        LoadError: the file is no such graph, or cannot be opened.
    """

    def __init__(self, path: Path, opener: SessionOpener) -> None:
        self._path = path
        self._session: Any = opener.open(path)
        self.device: str = self._session.get_providers()[0]
        """ONNX Runtime's name of the provider."""
        inputs = {one.name: one for one in self._session.get_inputs()}
        outputs = {one.name: one for one in self._session.get_outputs()}
        past = [name for name in inputs if name.startswith("past_")]
        self.masks = [name for name in MASKS if name in inputs]
        """Names of the masks of this graph."""
        crosses = CROSS_INPUTS[0] in inputs
        needed = {"embeddings", "positions", "cells", "wanted", *past, *self.masks}
        needed |= {*CROSS_INPUTS} if crosses else set()
        needed |= {"before", LAYER_EMBEDDINGS} & inputs.keys()
        shapes = {name: one.shape for name, one in (inputs | outputs).items()}
        if (
            needed != inputs.keys()
            or {"logits", *(name.removeprefix("past_") for name in past)} != outputs.keys()
            or not (past and self.masks)
            or any(len(shapes[name]) != 3 for name in past)
            or not isinstance(shapes.get("before", [0])[-1], int)
            or any(inputs[name].type not in _FLOATS for name in (*past, *self.masks))
        ):
            raise LoadError(
                f"{path} is no decoder graph of edgevlm: its inputs are {', '.join(inputs)}, its outputs "
                f"{', '.join(outputs)}; get the bundle again"
            )
        self.width: int = shapes["embeddings"][1]
        """Width of an embedding."""
        self.layer_width: int | None = shapes.get(LAYER_EMBEDDINGS, (0, None))[1]
        """Width of a row of the layers' own embeddings; None: they have none."""
        self.vocabulary_size: int = shapes["logits"][1]
        """Number of tokens."""
        self.grid_positions = len(shapes["positions"]) == 2
        """True if a position has three numbers."""
        self.before: int = shapes.get("before", [0])[-1]
        """Entries before each one that layers read by their cells."""
        self.dtype = _FLOATS[inputs[past[0]].type]
        """Type of keys and values."""
        self._binding = self._session.io_binding()

        def memory(names: list[str]) -> CellMemory:
            sizes = [(shapes[name][0], shapes[name][2]) for name in names]
            device = "cuda" if self.device.startswith("CUDA") else "cpu"
            return CellMemory(self._binding, names, sizes, self.dtype, device)

        crossed = [name for name in past if crosses and shapes[name][1] == shapes["cross_mask"][1]]
        self.entries = memory([name for name in past if name not in crossed])
        """Keys and values of entries, and inputs of short convolutions."""
        self.images = memory(crossed) if crosses else None
        """Keys and values of images in layers with cross-attention; None: there are no such layers."""

    def run(
        self,
        embeddings: NDArray[np.float32],
        positions: NDArray[np.int64],
        masks: Mapping[str, NDArray[np.bool_]],
        cells: NDArray[np.int64],
        before: NDArray[np.int64],
        wanted: NDArray[np.int64],
        cancel: CancelSignal,
        cross: CrossInputs | None = None,
        layer_embeddings: NDArray[np.float32] | None = None,
    ) -> NDArray[np.float32]:
        """Decode entries into cells.

        Args:
            embeddings: ``[n, width]``, C-contiguous.
            positions: ``[n]``, or ``[3, n]`` if `grid_positions`.
            masks: bool ``[n, cells]`` for each of `masks`, True for cells that an entry sees; its own is one.
            cells: ``[n]``.
            before: ``[n, before]``, as of `CellTable.before`.
            wanted: ``[m]``.
            cancel: stops this call between two nodes of the graph. The content of `cells` is undefined then.
            cross: for a graph with `images`, and only then.
            layer_embeddings: ``[n, layer_width]``, C-contiguous, for a graph with `layer_width` only.

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
        if self.before:
            inputs["before"] = before
        hidden, seen = self.dtype.type(-np.inf), self.dtype.type(0)
        inputs |= {name: np.where(mask, seen, hidden) for name, mask in masks.items()}
        if layer_embeddings is not None:
            inputs[LAYER_EMBEDDINGS] = layer_embeddings
        if cross is not None:
            mask = np.where(cross.mask, seen, hidden)
            crossed = (cross.states, cross.cells, mask, cross.rows.astype(self.dtype))
            inputs |= dict(zip(CROSS_INPUTS, crossed, strict=True))
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
