"""The cache of a language model as inputs and outputs of a graph, in which an entry has a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from onnxscript import opset20
from transformers.cache_utils import DynamicCache


@torch.library.custom_op("edgevlm::write_cells", mutates_args=())
def write_cells(past: torch.Tensor, places: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return `past` ``[heads, cells, size]`` with rows replaced.

    Args:
        past: the cache.
        places: head and cell of each row, int64 ``[heads, n, 2]``.
        new: rows ``[heads, n, size]``.
    """
    written = past.clone()
    written[places[..., 0], places[..., 1]] = new
    return written


@write_cells.register_fake
def _(past: torch.Tensor, places: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(past)


def scatter(past: Any, places: Any, new: Any) -> Any:
    """Translate `write_cells` to ONNX: a node that can write in place."""
    return opset20.ScatterND(past, places, new)


class Cells(DynamicCache):
    """A cache for transformers whose parts are inputs and outputs of the graph.

    Args:
        past: the parts by the names of their outputs, each ``[heads, cells, size]``.
        cells: cells of the new entries, int64 ``[n]``.
        before: cells of the entries before each of them, int64 ``[n, length]``; None: no layer reads them.
        cross: cells of new features of images for layers with cross-attention, int64 ``[s]``.
    """

    def __init__(
        self,
        past: Mapping[str, torch.Tensor],
        cells: torch.Tensor,
        before: torch.Tensor | None,
        cross: Mapping[int, torch.Tensor],
    ) -> None:
        super().__init__()
        self.written = dict(past)
        self._cells = cells
        # An entry before may be a new one, too. So all are read from what is written.
        self._read = None if before is None else torch.cat([before, cells.unsqueeze(1)], dim=1)
        self._cross = cross
        self._places: dict[tuple[bool, int], torch.Tensor] = {}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0: positions are given."""
        return 0

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values ``[1, heads, n, size]``; return all, ``[heads, cells, size]``."""
        cross = self._cross.get(layer_idx)
        keys, values = (
            self._write(name, new.squeeze(0), cross)
            for name, new in zip(
                key_value_names(layer_idx), (key_states, value_states), strict=True
            )
        )
        return keys, values

    def update_inputs(self, new: torch.Tensor, layer: int) -> torch.Tensor:
        """Write the inputs of a short convolution; return what it reads for each entry.

        Args:
            new: inputs of the new entries, ``[n, width]``.
            layer: number of the layer.

        Returns:
            ``[n, length, width]``: inputs of the entries before each one, and its own.
        """
        assert self._read is not None
        written = self._write(inputs_name(layer), new[None], None).squeeze(0)
        return torch.nn.functional.embedding(self._read, written)

    def _write(self, name: str, new: torch.Tensor, cross: torch.Tensor | None) -> torch.Tensor:
        """Write rows ``[heads, n, size]``, and return all."""
        past = self.written[name]
        self.written[name] = write_cells(past, self._places_of(past.shape[0], cross), new)
        return self.written[name]

    def _places_of(self, heads: int, cross: torch.Tensor | None) -> torch.Tensor:
        name = cross is not None, heads
        if name not in self._places:
            cells = self._cells if cross is None else cross
            numbers = torch.arange(heads)[:, None].expand(-1, cells.shape[0])
            self._places[name] = torch.stack([numbers, cells.expand(heads, -1)], dim=-1)
        return self._places[name]


def key_value_names(layer: int) -> tuple[str, str]:
    """Return the names of the keys and values of a layer."""
    return f"keys.{layer}", f"values.{layer}"


def inputs_name(layer: int) -> str:
    """Return the name of the inputs of a short convolution."""
    return f"inputs.{layer}"
