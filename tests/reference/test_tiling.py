"""Grids and stretched tiles have the pixels that transformers computes, whatever the mode of the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.inputs.images import load_image
from edgevlm.inputs.tiling import Detail, Tiles, split_image
from edgevlm.manifest import Tiling
from tests.support.tiling import GRID, STRETCH, WHOLE, random_image

IDEFICS3 = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}
REFERENCES: dict[str, tuple[Tiling, Any]] = {
    "smolvlm split": (GRID, SmolVLMImageProcessorPil(**IDEFICS3)),
    "smolvlm whole": (WHOLE, SmolVLMImageProcessorPil(**IDEFICS3, do_image_splitting=False)),
    "idefics3 split": (GRID, Idefics3ImageProcessorPil(**IDEFICS3)),
    "siglip": (
        STRETCH,
        SiglipImageProcessorPil(
            size={"height": 56, "width": 56},
            resample=3,
            image_mean=(0.5, 0.5, 0.5),
            image_std=(0.5, 0.5, 0.5),
            do_convert_rgb=True,
        ),
    ),
}
SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 1),
    (1, 300),
    (300, 1),
    (2, 999),
    (999, 3),
    (63, 64),
    (64, 64),
    (64, 65),
    (65, 64),
    (127, 129),
    (255, 256),
    (256, 255),
    (257, 256),
    (100, 33),
    (33, 100),
    (640, 480),
    (480, 640),
    (641, 479),
    (97, 389),
    (512, 512),
    (513, 512),
    (320, 200),
    (1000, 250),
    (250, 1001),
    (31, 57),
    (190, 191),
    (1500, 7),
]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"]


def reference_pixels(processor: Any, image: Image.Image) -> tuple[np.ndarray, int, int]:
    """transformers' pixel_values ``[n, 3, height, width]``, rows and columns."""
    if isinstance(processor, SiglipImageProcessorPil):
        return np.asarray(processor(image, return_tensors="np")["pixel_values"]), 0, 0
    output = processor([[image]], return_row_col_info=True, return_tensors="np")
    return np.asarray(output["pixel_values"][0]), output["rows"][0][0], output["cols"][0][0]


def assert_same(ours: Tiles, theirs: tuple[np.ndarray, int, int]) -> None:
    pixel_values, rows, columns = theirs
    assert (ours.layout.rows, ours.layout.columns) == (rows, columns)
    as_bytes = np.rint((pixel_values * 0.5 + 0.5) * 255)
    assert np.abs((pixel_values * 0.5 + 0.5) * 255 - as_bytes).max() < 1e-3
    np.testing.assert_array_equal(
        np.stack(ours.pixels).transpose(0, 3, 1, 2), as_bytes.astype(np.uint8)
    )


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_as_transformers(name: str, size: tuple[int, int]) -> None:
    tiling, processor = REFERENCES[name]
    image = random_image(*size)
    assert_same(split_image(load_image(image), tiling), reference_pixels(processor, image))


def edge_of(size: tuple[int, int], detail: str | None) -> int:
    """The longest edge, in tiles of 64, that stands for a detail."""
    own = max(1, min(4, max(size) // 64))
    return 64 * {"low": 1, "high": 4, "auto": own, None: 4}[detail]


@pytest.mark.parametrize("detail", [None, "low", "high", "auto"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_detail_is_a_longest_edge_of_transformers(
    detail: Detail | None, size: tuple[int, int]
) -> None:
    image = random_image(*size)
    edge = {"longest_edge": edge_of(size, detail)}
    processor = SmolVLMImageProcessorPil(size=edge, max_image_size={"longest_edge": 64})
    ours = split_image(load_image(image), GRID, detail)
    assert_same(ours, reference_pixels(processor, image))
    if detail == "low":
        assert len(ours) == 1


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_as_transformers(name: str, mode: str) -> None:
    tiling, processor = REFERENCES[name]
    image = random_image(90, 71, mode)
    assert image.mode == mode
    assert_same(split_image(load_image(image), tiling), reference_pixels(processor, image))


@pytest.mark.parametrize("transparency", [0, 7])
def test_palette_with_a_transparent_colour_as_transformers(
    tmp_path: Path, transparency: int
) -> None:
    random_image(40, 30, "P").save(tmp_path / "p.png", transparency=transparency)
    tiling, processor = REFERENCES["smolvlm split"]
    image = Image.open(tmp_path / "p.png")
    assert image.info["transparency"] == transparency
    assert_same(
        split_image(load_image(tmp_path / "p.png"), tiling), reference_pixels(processor, image)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["smolvlm split", "siglip"]))
def test_any_size_as_transformers(width: int, height: int, name: str) -> None:
    tiling, processor = REFERENCES[name]
    image = random_image(width, height)
    assert_same(split_image(load_image(image), tiling), reference_pixels(processor, image))
