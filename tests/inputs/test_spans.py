"""How spans are made of the rows of tiles."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.inputs.image_processor import ImageProcessor, ProcessedImage
from edgevlm.inputs.packing import SpanPlan, plan_spans
from edgevlm.inputs.tiling import ImageBudget, Layout, Tiles
from edgevlm.manifest import ImageSpec, Normalization, StretchTiling, TiledPacking, VisionSpec
from tests.support.tiling import GRID

WIDTH = 3
VISION = VisionSpec("tiles", "embeddings", 4, 2, WIDTH, TiledPacking(), {})
"""Each tile has four embeddings and two learned rows."""
NORMALIZATION = Normalization((0.5,) * 3, (0.5,) * 3, 1 / 255)


def rows(tile: int, count: int = 6) -> NDArray[np.float32]:
    """Return the rows of a tile: each value tells its tile and row."""
    values = 100 * tile + np.arange(count, dtype=np.float32)
    return np.repeat(values[:, None], WIDTH, axis=1)


def test_a_plan_without_rows_takes_the_embeddings_of_its_tile() -> None:
    plan = SpanPlan(range(2, 3), 4)
    np.testing.assert_array_equal(plan.pack([rows(2)])[:, 0], [200, 201, 202, 203])
    assert plan.tokens_of_tiles(6) == [4]


def test_a_plan_of_rows_takes_them_in_their_order() -> None:
    chosen = np.array([7, 0, 0, 11, 6, 17], np.int32)
    plan = SpanPlan(range(3), 6, chosen)
    packed = plan.pack([rows(0), rows(1), rows(2)])
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed[:, 0], [101, 0, 0, 105, 100, 205])
    assert plan.tokens_of_tiles(6) == [2, 3, 1]


def test_a_plan_with_weights_takes_sums() -> None:
    chosen = np.array([[0, 1], [6, 11], [12, 12]], np.int32)
    weights = np.array([[0.5, 0.5], [1, 0], [0.25, 0.5]], np.float32)
    plan = SpanPlan(range(3), 3, chosen, weights)
    packed = plan.pack([rows(0), rows(1), rows(2)])
    assert packed.dtype == np.float32
    np.testing.assert_array_equal(packed[:, 0], [0.5, 100, 150])
    assert plan.tokens_of_tiles(6) == [1, 1, 1]


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 4), st.data())
def test_weighted_sums_are_a_matrix_product(
    tiles: int, length: int, terms: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    held = [rng.standard_normal((6, WIDTH)).astype(np.float32) for _ in range(tiles)]
    chosen = rng.integers(0, 6 * tiles, (length, terms)).astype(np.int32)
    weights = rng.standard_normal((length, terms)).astype(np.float32)
    plan = SpanPlan(range(tiles), length, chosen, weights)
    matrix = np.zeros((length, 6 * tiles))
    for entry in range(length):
        np.add.at(matrix[entry], chosen[entry], weights[entry])
    np.testing.assert_allclose(plan.pack(held), matrix @ np.concatenate(held), atol=1e-5)
    counts = plan.tokens_of_tiles(6)
    assert len(counts) == tiles and sum(counts) == length


@pytest.mark.parametrize("tiles", [1, 13])
def test_tiles_one_by_one_leave_out_the_learned_rows(tiles: int) -> None:
    layout = Layout(64, 64) if tiles == 1 else Layout(200, 150, 4, 3, 12)
    plans = plan_spans(layout, VISION, "sequential")
    assert [plan.tiles for plan in plans] == [range(tile, tile + 1) for tile in range(tiles)]
    for plan in plans:
        assert plan.length == 4
        np.testing.assert_array_equal(plan.pack([rows(1)])[:, 0], [100, 101, 102, 103])


def test_a_span_of_one_tile_has_its_key() -> None:
    processor = ImageProcessor(ImageSpec(GRID, NORMALIZATION), VISION, "sequential")
    pixels = np.random.default_rng(0).integers(0, 256, (200, 150, 3), np.uint8)
    image = processor.process(pixels, ImageBudget())
    assert [span.key for span in image.spans] == list(image.keys)
    assert [span.length for span in image.spans] == [4] * 13
    assert [span.tiles for span in image.spans] == [(tile,) for tile in image.tiles]
    assert image.spans is image.spans


def test_an_image_is_freed_without_a_search_for_cycles() -> None:
    """Otherwise the pixels of a camera's frames would stay in memory until Python has a reason to search."""
    processor = ImageProcessor(ImageSpec(GRID, NORMALIZATION), VISION, "sequential")
    image = processor.process(np.zeros((200, 150, 3), np.uint8), ImageBudget())
    (tile, *_), _ = image.tiles, image.spans
    gc.disable()
    try:
        freed = weakref.ref(image)
        del image
        assert freed() is None
        assert tile.pixels.shape[2] == 3  # of which a tile needs no image
    finally:
        gc.enable()


def processed(keys: tuple[bytes, ...], *plans: SpanPlan) -> ProcessedImage:
    def split() -> Tiles:
        pytest.fail("the key of a span needs no pixels")

    return ProcessedImage(keys, Layout(64, 64, 1, len(keys)), plans, split)


def test_the_key_of_a_span_follows_from_tiles_rows_and_weights() -> None:
    keys = (b"a" * 16, b"b" * 16)
    chosen = np.array([[0, 1], [2, 3]], np.int32)
    weights = np.full((2, 2), 0.5, np.float32)
    plans = [
        SpanPlan(range(2), 2, chosen, weights),
        SpanPlan(range(2), 2, chosen + 1, weights),
        SpanPlan(range(2), 2, chosen, weights * 2),
        SpanPlan(range(2), 2, chosen[:, 0]),
        SpanPlan(range(1), 2, chosen[:, 0]),
        SpanPlan(range(1, 2), 2, chosen[:, 0]),
    ]
    found = [span.key for span in processed(keys, *plans).spans]
    assert len(set(found)) == len(plans)
    assert [span.key for span in processed(keys, *plans).spans] == found
    swapped = [span.key for span in processed(keys[::-1], *plans).spans]
    assert not set(swapped[:4]) & set(found)
    assert swapped[4:] == [found[5], found[4]]  # the same rows of the same tile


@pytest.mark.parametrize(
    ("layout", "tiles", "places"),
    [
        (Layout(9, 9), 1, [None]),
        (Layout(9, 9, 1, 2), 2, [(0, 0), (0, 1)]),
        (Layout(9, 9, 2, 1, overview=2), 3, [(0, 0), (1, 0), None]),
        (Layout(9, 9, 1, 2, overview=0), 3, [None, (0, 0), (0, 1)]),
        (Layout(9, 9, 1, 1, overview=0), 2, [None, (0, 0)]),
    ],
)
def test_places_of_tiles(layout: Layout, tiles: int, places: list[tuple[int, int] | None]) -> None:
    assert layout.tiles == tiles
    assert [layout.place(tile) for tile in range(tiles)] == places


def test_an_image_of_one_tile_is_processed_as_one_span() -> None:
    spec = ImageSpec(StretchTiling((8, 8), "bicubic"), NORMALIZATION)
    image = ImageProcessor(spec, VISION, "sequential").process(
        np.zeros((5, 9, 3), np.uint8), ImageBudget()
    )
    assert image.layout == Layout(5, 9, tile_sizes=((8, 8),))
    assert [span.length for span in image.spans] == [4]
