"""Spans of packed tiles; `tests/reference/test_tilings.py` compares them with transformers'."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.errors import BundleError
from edgevlm.inputs.packing import max_image_tokens, max_tokens_per_tile, plan_spans
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import (
    AnyResolutionTiling,
    CoveringGridTiling,
    FramePacking,
    ImageSpec,
    Manifest,
    Normalization,
    Packing,
    TiledPacking,
    Tiling,
    UnpadPacking,
    VisionSpec,
)
from tests.support.tiling import GRID, STRETCH

NORMALIZATION = Normalization((0, 0, 0), (1, 1, 1), 1 / 255)
RESOLUTIONS = tuple((4 * a, 4 * b) for a in range(1, 7) for b in range(1, 7))


def vision(packing: Packing, tokens: int = 4) -> VisionSpec:
    return VisionSpec("tiles", "rows", tokens, packing.learned_rows, 3, packing, {})


def tile_rows(tiles: int, rows: int) -> list[np.ndarray]:
    values = np.arange(tiles * rows, dtype=np.float32).reshape(tiles, rows, 1)
    return list(np.repeat(values, 3, axis=2))


def test_tiles_are_spans_of_all_their_embeddings() -> None:
    spans = plan_spans(Layout(10, 20, 1, 2, overview=2), vision(TiledPacking()), "sequential")
    assert [(span.tiles, span.length) for span in spans] == [
        (range(tile, tile + 1), 4) for tile in range(3)
    ]
    (rows,) = tile_rows(1, 4)
    np.testing.assert_array_equal(spans[1].pack([rows]), rows)


def test_lines_run_across_tiles_and_end_with_the_newline() -> None:
    """Of tiles of 2 x 2 embeddings and a newline, rows 0 to 4 are the overview's, 5 to 14 the grid's."""
    (span,) = plan_spans(Layout(100, 200, 1, 2, overview=0), vision(UnpadPacking()), "sequential")
    packed = span.pack(tile_rows(3, 5))[:, 0]
    np.testing.assert_array_equal(packed, [0, 1, 2, 3, 5, 6, 10, 11, 4, 7, 8, 12, 13, 4])
    assert span.tiles == range(3)
    assert span.tokens_of_tiles(5) == [6, 4, 4]


def test_embeddings_of_padding_are_left_out() -> None:
    """A square image in 2 x 4 embeddings leaves the two columns in the middle."""
    (span,) = plan_spans(Layout(100, 100, 1, 2, overview=0), vision(UnpadPacking()), "sequential")
    packed = span.pack(tile_rows(3, 5))[:, 0]
    np.testing.assert_array_equal(packed, [0, 1, 2, 3, 6, 10, 4, 8, 12, 4])
    (span,) = plan_spans(Layout(10, 1000, 2, 2, overview=0), vision(UnpadPacking()), "sequential")
    assert span.length == 4, "the image has no line of its own in a square grid"


def test_one_tile_is_followed_by_the_newline() -> None:
    (span,) = plan_spans(Layout(100, 100), vision(UnpadPacking()), "sequential")
    np.testing.assert_array_equal(span.pack(tile_rows(1, 5))[:, 0], [0, 1, 2, 3, 4])
    assert span.tokens_of_tiles(5) == [5]


def test_learned_rows_stand_around_and_between_tiles() -> None:
    """Tiles of 2 embeddings, and the rows start, grid, column, line and end: 7 rows of each tile."""
    layout = Layout(100, 100, 2, 2, overview=0)
    (span,) = plan_spans(layout, vision(FramePacking(), 2), "sequential")
    packed = span.pack([rows % 7 + tile * 10 for tile, rows in enumerate(tile_rows(5, 7))])[:, 0]
    start, grid, column, line, end = 2, 3, 4, 5, 6
    overview = [start, 0, 1, grid]
    lines = [10, 11, 10 + column, 20, 21, 20 + line, 30, 31, 30 + column, 40, 41, 40 + end]
    np.testing.assert_array_equal(packed, [*overview, *lines])
    assert span.tokens_of_tiles(7) == [4, 3, 3, 3, 3]
    (span,) = plan_spans(Layout(100, 100), vision(FramePacking(), 2), "sequential")
    np.testing.assert_array_equal(span.pack(tile_rows(1, 7))[:, 0], [start, 0, 1, grid, end])
    assert max_tokens_per_tile(vision(FramePacking(), 2)) == span.length


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (3, 4), (12, 1), (1, 12)])
def test_a_frame_stays_in_its_bounds(rows: int, columns: int) -> None:
    spec = vision(FramePacking())
    layout = Layout(100, 100, rows, columns, overview=0)
    (span,) = plan_spans(layout, spec, "sequential")
    bound = max_image_tokens(
        ImageSpec(CoveringGridTiling((8, 8), "bicubic", 12), NORMALIZATION), spec
    )
    assert bound is not None
    assert span.length <= layout.tiles * max_tokens_per_tile(spec) <= bound


def test_a_large_grid_is_shrunk() -> None:
    """8 x 8 embeddings become the area of one tile, 2 x 2: each is a mean in the middle of its quarter."""
    layout = Layout(100, 100, 4, 4, overview=0)
    (span,) = plan_spans(layout, vision(UnpadPacking(max_tiles=1)), "sequential")
    assert span.length == 4 + 2 * 3
    rows = [np.zeros((5, 3), np.float32) for _ in range(17)]
    for tile, values in enumerate(rows[1:]):
        y, x = np.divmod(np.arange(4), 2)
        values[:4, 0] = tile // 4 * 2 + y
        values[:4, 1] = tile % 4 * 2 + x
    rows[0][4] = 9
    packed = span.pack(rows)[4:]
    np.testing.assert_allclose(packed[:, 0], [1.5, 1.5, 9, 5.5, 5.5, 9])
    np.testing.assert_allclose(packed[:, 1], [1.5, 5.5, 9, 1.5, 5.5, 9])
    assert sum(span.tokens_of_tiles(5)) == span.length


@given(
    st.sampled_from([1, 4, 9]),
    st.integers(1, 200),
    st.integers(1, 200),
    st.sampled_from(RESOLUTIONS),
    st.sampled_from([None, 1, 2, 9]),
)
def test_lengths_stay_in_bounds(
    tokens: int, height: int, width: int, resolution: tuple[int, int], max_tiles: int | None
) -> None:
    spec = vision(UnpadPacking(max_tiles), tokens)
    layout = Layout(height, width, resolution[0] // 4, resolution[1] // 4, overview=0)
    (span,) = plan_spans(layout, spec, "sequential")
    tiling = AnyResolutionTiling((4, 4), "bicubic", (resolution,))
    bound = max_image_tokens(ImageSpec(tiling, NORMALIZATION), spec)
    assert bound is not None
    assert span.length <= bound <= layout.tiles * max_tokens_per_tile(spec)
    packed = span.pack([np.ones((tokens + 1, 3), np.float32)] * layout.tiles)
    assert packed.shape == (span.length, 3)
    np.testing.assert_allclose(packed, 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("tiling", "packing", "tokens", "most"),
    [
        (STRETCH, TiledPacking(), 576, 576),
        (GRID, TiledPacking(), 64, 17 * 64),
        (type(GRID)((64, 64), "lanczos"), TiledPacking(), 64, None),
        (
            AnyResolutionTiling((336, 336), "bicubic", ((336, 1008), (672, 672))),
            UnpadPacking(),
            576,
            576 + 48 * 49,
        ),
    ],
)
def test_positions_of_the_largest_image(
    tiling: Tiling, packing: Packing, tokens: int, most: int | None
) -> None:
    assert max_image_tokens(ImageSpec(tiling, NORMALIZATION), vision(packing, tokens)) == most


@pytest.mark.parametrize(
    ("kind", "learned_rows", "tilings"),
    [("unpad", 1, '"any-resolution"'), ("frame", 5, '"covering-grid" or "stretch"')],
)
def test_a_packing_needs_its_tiling(kind: str, learned_rows: int, tilings: str) -> None:
    path = Path(__file__).parents[1] / "bundles" / "smolvlm" / "manifest.json"
    manifest: Any = json.loads(Manifest.from_json(path.read_text(encoding="utf-8")).to_json())
    manifest["vision"].update(learned_rows=learned_rows, packing={"kind": kind})
    message = f'vision.packing: can be "{kind}" only if image.tiling is {tilings}'
    with pytest.raises(BundleError, match=message):
        Manifest.from_dict(manifest)
