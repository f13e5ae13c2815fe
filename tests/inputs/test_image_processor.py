"""An image that was split before is not split again, and the result is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm import VLM
from edgevlm.inputs import image_processor
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.tiling import ImageBudget, Layout, Tiles, split_image
from edgevlm.manifest import ImageSpec, Normalization, TiledPacking, VisionSpec
from tests.conftest import picture
from tests.support.tiling import GRID

IMAGE = ImageSpec(GRID, Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255))
VISION = VisionSpec("tiles", "rows", 4, 0, 8, TiledPacking(), {})
WHOLE = ImageBudget()


def image(seed: int = 0, height: int = 200, width: int = 150) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def processor() -> ImageProcessor:
    return ImageProcessor(IMAGE, VISION, "sequential")


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the images that were really split."""
    split: list[tuple[int, ...]] = []

    def record(image: NDArray[np.uint8], **named: Any) -> Tiles:
        split.append(image.shape)
        return split_image(image, **named)

    monkeypatch.setattr(image_processor, "split_image", record)
    return split


def test_split_once_and_again_only_for_its_pixels(
    processor: ImageProcessor, splits: list[tuple[int, ...]]
) -> None:
    first, second = processor.process(image(), WHOLE), processor.process(image(), WHOLE)
    assert (second.keys, second.layout) == (first.keys, first.layout)
    assert len(splits) == 1
    expected = split_image(image(), GRID)
    for found in (first, second):
        assert found.layout == expected.layout == Layout(200, 150, 4, 3, overview=12)
        np.testing.assert_array_equal(found.pixels, expected.pixels)
        for tile, pixels in zip(found.tiles, expected.pixels, strict=True):
            np.testing.assert_array_equal(tile.pixels, pixels)
    assert len(splits) == 2


def test_later_changes_of_the_array_do_not_matter(processor: ImageProcessor) -> None:
    for _ in range(2):
        frame = image()
        found = processor.process(frame, WHOLE)
        frame[:] = 0
        np.testing.assert_array_equal(found.pixels, split_image(image(), GRID).pixels)


def test_other_images_shapes_and_budgets_are_split_anew(
    processor: ImageProcessor, splits: list[tuple[int, ...]]
) -> None:
    black = np.zeros((100, 300, 3), np.uint8)
    ways = [
        (image(0), WHOLE),
        (image(1), WHOLE),
        (black, WHOLE),
        (black.reshape(300, 100, 3), WHOLE),  # the same bytes
        (black, ImageBudget("low")),
        (black, ImageBudget(max_tokens=12)),
    ]
    layouts = [processor.process(*way).layout for way in ways]
    assert len(splits) == len(ways)
    assert [processor.process(*way).layout for way in ways] == layouts
    assert len(splits) == len(ways)
    grids = [(layout.rows, layout.columns) for layout in layouts]
    assert grids == [(4, 3), (4, 3), (2, 4), (4, 2), (0, 0), (1, 2)]


def test_the_last_ones_are_remembered(
    splits: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_processor, "MAX_REMEMBERED", 2)
    processor = ImageProcessor(IMAGE, VISION, "sequential")
    for seed in (0, 1, 0, 2, 0, 1):  # 1 is the least recently used when 2 comes
        processor.process(image(seed), WHOLE)
    assert len(splits) == 4


def test_a_known_image_is_neither_split_nor_kept_as_pixels(
    fresh: Callable[..., VLM], splits: list[tuple[int, ...]]
) -> None:
    vlm = fresh()
    splits.clear()
    seen = picture(3, width=256, height=256)
    expected = vlm.ask(seen, "What?", max_tokens=8).text
    assert len(splits) == 1
    assert vlm.ask(seen, "What?", max_tokens=8).text == expected
    assert len(splits) == 1
    vlm._engine._encoder.cache.clear()
    vlm._engine._kv_cache.reset()
    again = vlm.ask(seen, "What?", max_tokens=8)
    assert (again.text, again.stats.encoded_tiles) == (expected, 17)
    assert len(splits) == 2
