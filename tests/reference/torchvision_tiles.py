"""Tiles of transformers' image processors that need torchvision.

``python torchvision_tiles.py FAMILY IMAGES.npz OUT.npz SETTINGS`` reads uint8 images ``[height, width, 3]``
and writes their tiles. It runs in a process of its own with torchvision in its path. SETTINGS are JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

TORCHVISION = Path(sys.prefix) / "torchvision"
GRAY_LEVELS = {"do_rescale": False, "do_normalize": False}
needs_torchvision = pytest.mark.skipif(
    not TORCHVISION.is_dir(), reason="needs `make test`'s torchvision"
)


def noise(height: int, width: int) -> NDArray[np.uint8]:
    """White noise; the same for the same size."""
    rng = np.random.default_rng(height * 10_000 + width)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def torchvision_tiles(
    family: str, images: Mapping[str, NDArray[np.uint8]], settings: dict[str, Any], folder: Path
) -> dict[str, list[NDArray[Any]]]:
    """Return the gray levels of the tiles of each image, by its name.

    Args:
        family: a key of `PROCESSORS`.
        folder: for temporary files.
    """
    np.savez(folder / "images.npz", **images)  # type: ignore[arg-type]  # names, no options
    files = [str(folder / "images.npz"), str(folder / "tiles.npz")]
    subprocess.run(
        [sys.executable, __file__, family, *files, json.dumps(settings)],
        env={**os.environ, "PYTHONPATH": str(TORCHVISION)},
        check=True,
        capture_output=True,
    )
    with np.load(folder / "tiles.npz") as found:
        return {
            name: [found[f"{name} {index}"] for index in range(int(found[f"{name} tiles"]))]
            for name in images
        }


def assert_close(
    ours: Mapping[str, Sequence[NDArray[Any]]], theirs: Mapping[str, Sequence[NDArray[Any]]]
) -> None:
    """Numbers and sizes of tiles are equal. Few gray levels differ, by one, in noise hardly ever by two."""
    levels: Counter[int] = Counter()
    for name, expected in theirs.items():
        assert [tile.shape for tile in ours[name]] == [tile.shape for tile in expected], name
        for tile, reference in zip(ours[name], expected, strict=True):
            levels.update(np.abs(tile.astype(int) - reference).astype(int).ravel().tolist())
    total = sum(levels.values())
    assert max(levels) <= 2 and levels[1] <= 0.02 * total and levels[2] <= 1e-5 * total, levels


def lfm2_vl(image: Image.Image, settings: dict[str, Any]) -> list[NDArray[Any]]:
    """Return the tiles of ``Lfm2VlImageProcessor``, which returns patches."""
    from transformers.models.lfm2_vl.image_processing_lfm2_vl import Lfm2VlImageProcessor

    processor = Lfm2VlImageProcessor(**settings, **GRAY_LEVELS)
    side = processor.encoder_patch_size
    result = processor(images=[image], return_tensors="np", return_row_col_info=True)
    tiles = []
    for values, (lines, columns) in zip(
        result["pixel_values"], result["spatial_shapes"], strict=True
    ):
        grid = values[: lines * columns].reshape(lines, columns, side, side, 3)
        tiles.append(grid.transpose(0, 2, 1, 3, 4).reshape(lines * side, columns * side, 3))
    return tiles


def cohere2_vision(image: Image.Image, settings: dict[str, Any]) -> list[NDArray[Any]]:
    """Return the tiles of ``Cohere2VisionImageProcessor``."""
    from transformers.models.cohere2_vision.image_processing_cohere2_vision import (
        Cohere2VisionImageProcessor,
    )

    processor = Cohere2VisionImageProcessor(**settings, **GRAY_LEVELS)
    result = processor(images=[image], return_tensors="np")
    return list(np.moveaxis(np.asarray(result["pixel_values"]), 1, -1))


PROCESSORS = {"lfm2_vl": lfm2_vl, "cohere2_vision": cohere2_vision}


def main() -> None:
    """Read, split and write."""
    import torch

    # The compiled part of torchvision needs the PyTorch that it was built with. Resizing does not need it.
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    family, images_file, out, settings = sys.argv[1:]
    found: dict[str, Any] = {}
    with np.load(images_file) as images:
        for name in images.files:
            tiles = PROCESSORS[family](Image.fromarray(images[name]), json.loads(settings))
            found[f"{name} tiles"] = np.array(len(tiles))
            found |= {f"{name} {index}": tile for index, tile in enumerate(tiles)}
    np.savez(out, **found)


if __name__ == "__main__":
    main()
