"""Spans: which embeddings of an image's tiles stand in the prompt, and in which order.

A packing is a linear map over the rows that the vision graph returns for the tiles: mostly a choice of rows,
sometimes a mean of four. So the engine needs no rule of any model family.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import TiledPacking, VisionSpec


@dataclass(frozen=True, eq=False)
class SpanPlan:
    """How one span is made of the rows of its tiles."""

    tiles: range
    """Indices of the tiles in the image."""
    length: int
    """Number of embeddings."""
    rows: NDArray[np.int32] | None = None
    """Indices into the rows of all these tiles, one tile after the other: int32 ``[length]``, or
    ``[length, k]`` for weighted sums of k rows. None: the embeddings of the only tile."""
    weights: NDArray[np.float32] | None = None
    """Float32 ``[length, k]``; None: each embedding is one row."""

    def pack(self, tiles: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the embeddings of the span, float32 ``[length, width]``.

        Args:
            tiles: for each tile, the rows that the vision graph returns, ``[rows, width]``.
        """
        if self.rows is None:
            return tiles[0][: self.length]
        rows = np.concatenate(tiles)
        if self.weights is None:
            return rows[self.rows]
        packed: NDArray[np.float32] = np.einsum("nk,nkw->nw", self.weights, rows[self.rows])
        return packed

    def tokens_of_tiles(self, rows_per_tile: int) -> list[int]:
        """Return how many embeddings of the span come from each of its tiles.

        A weighted sum counts for the tile of its first row.
        """
        if self.rows is None:
            return [self.length]
        first = self.rows if self.rows.ndim == 1 else self.rows[:, 0]
        counts = np.bincount(first // rows_per_tile, minlength=len(self.tiles))
        return [int(count) for count in counts]


def plan_spans(layout: Layout, vision: VisionSpec) -> tuple[SpanPlan, ...]:
    """Return the spans of an image in the order of the prompt."""
    if isinstance(vision.packing, TiledPacking):
        return tuple(
            SpanPlan(range(tile, tile + 1), vision.tokens_per_tile) for tile in range(layout.tiles)
        )
    raise NotImplementedError


def max_tokens_per_tile(vision: VisionSpec) -> int:
    """Return the most positions that one tile takes in a prompt."""
    return vision.tokens_per_tile
