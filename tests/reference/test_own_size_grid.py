"""Tiles of LFM2-VL are those of transformers and torchvision, up to one gray level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm.export.lfm2_images import Lfm2VlImageProcessorPil
from edgevlm.export.preparations import read_tiling
from edgevlm.inputs.tiling import split_image
from tests.reference.torchvision_tiles import (
    assert_close,
    needs_torchvision,
    noise,
    torchvision_tiles,
)

SMALL = {
    "encoder_patch_size": 4,
    "min_image_tokens": 4,
    "max_image_tokens": 16,
    "tile_size": 32,
    "max_tiles": 6,
}
SIZES = [(height, width) for height in range(3, 90, 11) for width in range(5, 90, 7)]
PUBLISHED: list[tuple[int, int]] = [(480, 640), (1080, 1920), (300, 200), (64, 900), (2000, 700)]


@needs_torchvision
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SMALL, SIZES),
        ({**SMALL, "use_thumbnail": False, "min_tiles": 3}, SIZES[::3]),
        ({**SMALL, "do_image_splitting": False}, SIZES[::3]),
        ({}, PUBLISHED),
    ],
    ids=["small", "no thumbnail", "no split", "published"],
)
def test_tiles(settings: dict[str, Any], sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    tiling = read_tiling(Lfm2VlImageProcessorPil(**settings))
    images = {f"{height} {width}": noise(height, width) for height, width in sizes}
    ours = {name: split_image(image, tiling).pixels for name, image in images.items()}
    assert_close(ours, torchvision_tiles("lfm2_vl", images, settings, tmp_path))
