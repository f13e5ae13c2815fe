"""Tiles of LFM2-VL are those of transformers and torchvision, up to one gray level."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.export.lfm2_images import Lfm2VlImageProcessorPil
from edgevlm.export.preparations import read_tiling
from edgevlm.inputs.tiling import split_image

TORCHVISION = Path(sys.prefix) / "torchvision"
SMALL = {
    "encoder_patch_size": 4,
    "min_image_tokens": 4,
    "max_image_tokens": 16,
    "tile_size": 32,
    "max_tiles": 6,
}
SIZES = [(height, width) for height in range(3, 90, 11) for width in range(5, 90, 7)]
PUBLISHED: list[tuple[int, int]] = [(480, 640), (1080, 1920), (300, 200), (64, 900), (2000, 700)]


def noise(height: int, width: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(height * 10_000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.skipif(not TORCHVISION.is_dir(), reason="needs `make test`'s torchvision")
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
    """The grid and the sizes are equal. Few gray levels differ, by one, in white noise once by two."""
    processor = Lfm2VlImageProcessorPil(**settings)
    tiling = read_tiling(processor)
    images = {f"{height} {width}": noise(height, width) for height, width in sizes}
    np.savez(tmp_path / "images.npz", **images)  # type: ignore[arg-type]  # names, no options
    script = Path(__file__).with_name("lfm2_images.py")
    files = [str(tmp_path / "images.npz"), str(tmp_path / "tiles.npz")]
    subprocess.run(
        [sys.executable, str(script), *files, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(TORCHVISION)},
        check=True,
        capture_output=True,
    )
    levels: Counter[int] = Counter()
    with np.load(tmp_path / "tiles.npz") as expected:
        for name, image in images.items():
            tiles = split_image(image, tiling)
            rows, columns = expected[f"{name} grid"]
            assert (max(1, tiles.layout.rows), max(1, tiles.layout.columns)) == (rows, columns)
            assert len(tiles) == sum(key.startswith(f"{name} ") for key in expected) - 1, name
            for index, tile in enumerate(tiles.pixels):
                theirs = expected[f"{name} {index}"]
                assert tile.shape == theirs.shape, (name, index)
                difference = np.abs(tile.astype(int) - theirs)
                levels.update(difference.ravel().tolist())
    total = sum(levels.values())
    assert max(levels) <= 2 and levels[1] <= 0.02 * total and levels[2] <= 1e-5 * total
