"""Tiles of Command A Vision are those of transformers and torchvision, up to one gray level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgevlm.export.cohere2_images import Cohere2VisionImageProcessorPil
from edgevlm.export.preparations import read_tiling
from edgevlm.inputs.tiling import split_image
from tests.reference.torchvision_tiles import (
    assert_close,
    needs_torchvision,
    noise,
    torchvision_tiles,
)

SMALL = {"size": {"height": 8, "width": 8}}
SIZES = [(height, width) for height in range(1, 90, 7) for width in range(1, 90, 5)]
PUBLISHED: list[tuple[int, int]] = [(480, 640), (1080, 1920), (300, 200), (64, 900), (2000, 700)]


@needs_torchvision
@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        (SMALL, SIZES),
        ({**SMALL, "max_patches": 5, "min_patches": 3}, SIZES[::3]),
        ({**SMALL, "max_patches": 1}, SIZES[::5]),
        ({**SMALL, "crop_to_patches": False}, SIZES[::5]),
        ({**SMALL, "resample": 2}, SIZES[::5]),
        ({}, PUBLISHED),
    ],
    ids=["small", "fewer", "one", "no split", "bilinear", "published"],
)
def test_tiles(settings: dict[str, Any], sizes: list[tuple[int, int]], tmp_path: Path) -> None:
    tiling = read_tiling(Cohere2VisionImageProcessorPil(**settings))
    images = {f"{height} {width}": noise(height, width) for height, width in sizes}
    ours = {name: split_image(image, tiling).pixels for name, image in images.items()}
    assert_close(ours, torchvision_tiles("cohere2_vision", images, settings, tmp_path))
