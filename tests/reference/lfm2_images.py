"""Write the tiles of transformers' LFM2-VL image processor, which needs torchvision, into a file.

``python lfm2_images.py IMAGES.npz OUT.npz SETTINGS`` reads uint8 images ``[height, width, 3]``. It runs in a
process of its own with torchvision in its path. SETTINGS are JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image

# The compiled part of torchvision needs the PyTorch that it was built with. Resizing does not need it.
operators = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers.models.lfm2_vl.image_processing_lfm2_vl import (  # noqa: E402
    Lfm2VlImageProcessor,
)


def main() -> None:
    """Read, split and write."""
    images_file, out, settings = sys.argv[1:]
    processor = Lfm2VlImageProcessor(**json.loads(settings), do_rescale=False, do_normalize=False)
    side = processor.encoder_patch_size
    found: dict[str, Any] = {}
    with np.load(images_file) as images:
        for name in images.files:
            result = processor(
                images=[Image.fromarray(images[name])],
                return_tensors="np",
                return_row_col_info=True,
            )
            found[f"{name} grid"] = np.array([result["image_rows"][0], result["image_cols"][0]])
            pairs = zip(result["pixel_values"], result["spatial_shapes"], strict=True)
            for index, (values, (lines, columns)) in enumerate(pairs):
                grid = values[: lines * columns].reshape(lines, columns, side, side, 3)
                tile = grid.transpose(0, 2, 1, 3, 4).reshape(lines * side, columns * side, 3)
                found[f"{name} {index}"] = tile
    np.savez(out, **found)


if __name__ == "__main__":
    main()
