"""Spans: which embeddings of an image's tiles stand in the prompt, and in which order.

A packing is a linear map over the rows that the vision graph returns for the tiles: mostly a choice of rows,
sometimes a mean of four. So the engine needs no rule of any model family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.tiling import Layout, count_max_tiles, slices
from edgevlm.manifest import (
    AnyResolutionTiling,
    CanvasTiling,
    CrossPacking,
    FramePacking,
    ImageSpec,
    LinesPacking,
    LongestEdgeTiling,
    OwnSizeGridTiling,
    OwnSizeTiling,
    SliceTiling,
    TiledPacking,
    UnpadPacking,
    VideoSpec,
    VisionSpec,
)

SHRINK_FROM = 1.1
"""A grid is shrunk if its sides would be divided by more than this."""


@dataclass(frozen=True, eq=False)
class SpanPlan:
    """How one span is made of the rows of its tiles."""

    tiles: range
    """Indices of the tiles in the image."""
    length: int
    """Number of embeddings."""
    rows: NDArray[np.int32] | None = None
    """Indices into the rows of all these tiles, one tile after the other: int32 ``[length]``, or
    ``[length, k]`` for weighted sums of k rows. None: the first rows of the only tile."""
    weights: NDArray[np.float32] | None = None
    """Float32 ``[length, k]``; None: each embedding is one row."""
    offsets: NDArray[np.int32] | None = None
    """Time, line and column of each embedding, counted from the first position of the span: int32
    ``[3, length]``. None: positions are sequential."""

    states: int | None = None
    """The first rows of the only tile that show the image, for cross-attention; the span then is the image
    token, of length 1. None: the rows are the embeddings of the span."""

    @property
    def positions(self) -> int:
        """Number of positions that the span takes, which is its length if positions are sequential."""
        return self.length if self.offsets is None else int(self.offsets.max()) + 1

    def pack(self, tiles: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the embeddings of the span, float32 ``[length, width]``; with `states` these rows.

        Args:
            tiles: for each tile, the rows that the vision graph returns, ``[rows, width]``.
        """
        if self.rows is None:
            return tiles[0][: self.states or self.length]
        rows = np.concatenate(tiles)
        if self.weights is None:
            return rows[self.rows]
        # One term after the other, since all terms at once take k times the memory of the span.
        packed = rows[self.rows[:, 0]] * self.weights[:, :1]
        for term in range(1, self.rows.shape[1]):
            packed += rows[self.rows[:, term]] * self.weights[:, term : term + 1]
        return packed

    def tokens_of_tiles(self, rows_per_tile: int) -> list[int]:
        """Return how many embeddings of the span come from each of its tiles.

        A weighted sum counts for the tile of its first row.
        """
        if len(self.tiles) == 1:
            return [self.length]
        assert self.rows is not None
        if not rows_per_tile:  # a video, whose tiles have one size
            return [self.length // len(self.tiles)] * len(self.tiles)
        first = self.rows if self.rows.ndim == 1 else self.rows[:, 0]
        counts = np.bincount(first // rows_per_tile, minlength=len(self.tiles))
        return [int(count) for count in counts]


def plan_spans(
    layout: Layout, vision: VisionSpec, positions: Literal["sequential", "grid"]
) -> tuple[SpanPlan, ...]:
    """Return the spans of an image in the order of the prompt.

    Args:
        positions: the numbering of `edgevlm.manifest.DecoderSpec`.
    """
    if vision.pixels_per_token is not None:
        assert layout.tile_sizes is not None
        grids = [vision.grid_size(size) for size in layout.tile_sizes]
        if isinstance(vision.packing, CrossPacking):
            per_square = vision.packing.rows_per_square
            return tuple(
                SpanPlan(range(tile, tile + 1), 1, states=per_square * math.prod(grid))
                for tile, grid in enumerate(grids)
            )
        if isinstance(vision.packing, LinesPacking):
            return tuple(
                span for tile, grid in enumerate(grids) for span in _plan_lines(tile, grid)
            )
        return tuple(_plan_tile(tile, grid, positions) for tile, grid in enumerate(grids))
    tokens = vision.tokens_per_tile
    assert tokens is not None and not isinstance(vision.packing, LinesPacking | CrossPacking)
    if isinstance(vision.packing, TiledPacking):
        return tuple(SpanPlan(range(tile, tile + 1), tokens) for tile in range(layout.tiles))
    if isinstance(vision.packing, FramePacking):
        return (_plan_frame(layout, tokens),)
    if not layout.rows:
        return (SpanPlan(range(1), tokens + 1),)
    side = math.isqrt(tokens)
    grid = _unpad(_grid_rows(layout, side), layout)
    height, width = grid.shape
    first_tile = np.arange(tokens, dtype=np.int32)
    newline = np.array(tokens, np.int32)
    shrunk = _shrunk_size(height, width, tokens, vision.packing.max_tiles)
    if shrunk is None:
        rows, weights = _join(first_tile, grid, newline), None
    else:
        corners, shares = _interpolate(grid, *shrunk)
        one_row = np.array([1, 0, 0, 0], np.float32)
        rows = _join(np.tile(first_tile[:, None], 4), corners, np.tile(newline, 4))
        weights = _join(np.tile(one_row, (tokens, 1)), shares, one_row)
    return (SpanPlan(range(layout.tiles), len(rows), rows, weights),)


def plan_video_spans(
    tiles: int,
    size: tuple[int, int] | None,
    vision: VisionSpec,
    spec: VideoSpec,
    fps: float,
) -> tuple[SpanPlan, ...]:
    """Return the spans of a video in the order of the prompt.

    Args:
        tiles: number of tiles.
        size: height and width of a tile in pixels; None: tiles have the size of the manifest.
        fps: frames that the model sees in a second, on average.
    """
    if size is None:
        assert vision.tokens_per_tile is not None
        return tuple(SpanPlan(range(i, i + 1), vision.tokens_per_tile) for i in range(tiles))
    height, width = vision.grid_size(size)
    if spec.spans == "tiles":
        return tuple(_plan_tile(tile, (height, width), "grid") for tile in range(tiles))
    length = tiles * height * width
    # In float32, as get_rope_index of Qwen2.5-VL computes it.
    step = np.float32(1)
    if spec.positions_per_second is not None:
        step = np.float32(spec.positions_per_second) * np.float32(spec.frames_per_tile / fps)
    times = (np.arange(tiles, dtype=np.float32) * step).astype(np.int32)
    offsets = np.tile(grid_offsets(height, width), tiles)
    offsets[0] = np.repeat(times, height * width)
    return (SpanPlan(range(tiles), length, np.arange(length, dtype=np.int32), offsets=offsets),)


def _plan_tile(
    tile: int, grid: tuple[int, int], positions: Literal["sequential", "grid"]
) -> SpanPlan:
    """Return the span of a tile that has so many lines and columns of embeddings."""
    height, width = grid
    offsets = grid_offsets(height, width) if positions == "grid" else None
    return SpanPlan(range(tile, tile + 1), height * width, offsets=offsets)


def _plan_lines(tile: int, grid: tuple[int, int]) -> list[SpanPlan]:
    """Return a span for each line of a tile that has so many lines and columns of embeddings."""
    lines = np.arange(math.prod(grid), dtype=np.int32).reshape(grid)
    return [SpanPlan(range(tile, tile + 1), len(rows), rows) for rows in lines]


def _plan_frame(layout: Layout, tokens: int) -> SpanPlan:
    """Return the span of an overview and a grid, with learned rows as of `edgevlm.manifest.FramePacking`.

    Each learned row is that of the tile before it, the first one that of the overview.
    """
    rows_per_tile = tokens + FramePacking.learned_rows
    by_tile = np.arange(layout.tiles * rows_per_tile).reshape(layout.tiles, rows_per_tile)
    start, grid, column, line, end = range(tokens, tokens + FramePacking.learned_rows)
    order = [by_tile[0, start], *by_tile[0, :tokens], by_tile[0, grid]]
    for tile in range(1, layout.tiles):
        if tile > 1:
            order.append(by_tile[tile - 1, line if (tile - 1) % layout.columns == 0 else column])
        order.extend(by_tile[tile, :tokens])
    order.append(by_tile[-1, end])
    rows = np.array(order, np.int32)
    return SpanPlan(range(layout.tiles), len(rows), rows)


def grid_offsets(height: int, width: int) -> NDArray[np.int32]:
    """Return time, line and column of the embeddings of an image, int32 ``[3, height * width]``.

    An image is one moment (``get_rope_index`` of Qwen2-VL).
    """
    lines, columns = np.divmod(np.arange(height * width, dtype=np.int32), np.int32(width))
    return np.stack([np.zeros_like(lines), lines, columns])


def max_tokens_per_tile(vision: VisionSpec) -> int:
    """Return the most positions that one tile of a fixed size takes in a prompt.

    An image of n tiles never takes more than n times this number.
    """
    assert vision.tokens_per_tile is not None
    if isinstance(vision.packing, FramePacking):
        return vision.tokens_per_tile + 3  # one tile stands between three learned rows
    if not isinstance(vision.packing, UnpadPacking):
        return vision.tokens_per_tile
    return vision.tokens_per_tile + math.isqrt(vision.tokens_per_tile)


def max_image_tokens(image: ImageSpec, vision: VisionSpec) -> int | None:
    """Return the most entries that one image takes in a prompt; None: there is no bound.

    Where tiles differ in size it is the default limit.
    """
    tiling = image.tiling
    if isinstance(tiling, CanvasTiling):
        return 1
    if isinstance(tiling, OwnSizeTiling):
        if isinstance(tiling, LongestEdgeTiling):
            by_tiling = math.ceil(tiling.longest_edge / tiling.factor) ** 2
        elif isinstance(tiling, SliceTiling):
            by_tiling = (count_max_tiles(tiling) or 1) * slices.max_tokens_per_tile(tiling)
        else:
            by_tiling = tiling.max_pixels // tiling.factor**2
        if isinstance(tiling, OwnSizeGridTiling) and tiling.max_tiles > 1:
            by_tiling += tiling.max_tiles * (tiling.tile_side // tiling.factor) ** 2
        return min(by_tiling, image.default_max_tokens or by_tiling)
    assert vision.tokens_per_tile is not None
    if not isinstance(vision.packing, UnpadPacking) or not isinstance(tiling, AnyResolutionTiling):
        tiles = count_max_tiles(tiling)
        return None if tiles is None else tiles * max_tokens_per_tile(vision)
    side = math.isqrt(vision.tokens_per_tile)
    lengths = []
    for tall, wide in tiling.resolutions:
        rows, columns = tall // tiling.tile_size[0] * side, wide // tiling.tile_size[1] * side
        # All grids that unpadding can leave.
        sizes = [(rows - 2 * cut, columns) for cut in range(rows // 2 + 1)]
        sizes += [(rows, columns - 2 * cut) for cut in range(columns // 2 + 1)]
        for size in sizes:
            shrunk = _shrunk_size(*size, vision.tokens_per_tile, vision.packing.max_tiles)
            height, width = shrunk or size
            lengths.append(vision.tokens_per_tile + height * (width + 1))
    return max(lengths)


def _grid_rows(layout: Layout, side: int) -> NDArray[np.int32]:
    """Return the row of each embedding of the grid, int32 ``[rows * side, columns * side]``."""
    rows, columns, tokens = layout.rows, layout.columns, side * side
    all_rows = np.arange(layout.tiles * (tokens + 1), dtype=np.int32)
    by_tile = all_rows.reshape(layout.tiles, tokens + 1)[1:, :tokens]
    by_tile = by_tile.reshape(rows, columns, side, side)
    return by_tile.transpose(0, 2, 1, 3).reshape(rows * side, columns * side)


def _unpad(grid: NDArray[np.int32], layout: Layout) -> NDArray[np.int32]:
    """Leave out the embeddings of padding, with the rounding of ``unpad_image``."""
    height, width = grid.shape
    if layout.width / layout.height > width / height:
        filled = int(round(layout.height * (width / layout.width), 7))
        cut = (height - filled) // 2
        return grid[cut : height - cut]
    filled = int(round(layout.width * (height / layout.height), 7))
    cut = (width - filled) // 2
    return grid[:, cut : width - cut]


def _join(first_tile: NDArray[Any], lines: NDArray[Any], newline: NDArray[Any]) -> NDArray[Any]:
    """Return the values of the first tile, and then each line of the grid with the newline at its end.

    Args:
        first_tile: ``[tokens, ...]``.
        lines: ``[height, width, ...]``.
        newline: ``[...]``.
    """
    ends = np.broadcast_to(newline, (len(lines), 1, *lines.shape[2:]))
    return np.concatenate(
        [first_tile, np.concatenate([lines, ends], axis=1).reshape(-1, *lines.shape[2:])]
    )


def _shrunk_size(
    height: int, width: int, tokens_per_tile: int, max_tiles: int | None
) -> tuple[int, int] | None:
    """Return the sides that a grid of embeddings is shrunk to; None: it is not."""
    if max_tiles is None:
        return None
    ratio = math.sqrt(height * width / (max_tiles * tokens_per_tile))
    if ratio <= SHRINK_FROM:
        return None
    return max(1, int(height // ratio)), max(1, int(width // ratio))


def _interpolate(
    grid: NDArray[np.int32], height: int, width: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Interpolate a grid as PyTorch's ``interpolate`` with ``mode="bilinear"``.

    Returns:
        The rows and the weights of the four neighbors of each new embedding, int32 and float32
        ``[height, width, 4]``.
    """
    top, bottom, down = _neighbors(grid.shape[0], height)
    left, right, across = _neighbors(grid.shape[1], width)
    corners = [grid[np.ix_(y, x)] for y in (top, bottom) for x in (left, right)]
    weights = [np.outer(y, x) for y in (1 - down, down) for x in (1 - across, across)]
    return np.stack(corners, axis=-1), np.stack(weights, axis=-1)


def _neighbors(
    old: int, new: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the two neighbors of each new position along a side, and the weight of the second, ``[new]``."""
    # Float64 until the end rounds once, as PyTorch's fused multiply-add does on most CPUs.
    scale = np.float64(np.float32(old / new))
    positions = np.maximum((np.arange(new) + 0.5) * scale - 0.5, 0).astype(np.float32)
    first = np.minimum(positions.astype(np.intp), old - 1)
    return first, np.minimum(first + 1, old - 1), positions - first.astype(np.float32)
