"""How the error of int8 depends on its calibration images.

    python -m benchmarks.calibration CHECKPOINT PHOTOGRAPHS [FOLDER ...]

PHOTOGRAPHS is a folder of photographs that no calibration uses. The graph is calibrated on the photographs
that come with edgevlm, then on each FOLDER. Printed is its relative error to the float32 graph on the first
and the last tile of each of PHOTOGRAPHS. Centred: the mean over
all tokens is subtracted first, so that a large constant part of the embeddings does not hide the error.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.export import vision
from edgevlm.export.calibration import CalibrationImages, find_images
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int8
from edgevlm.inputs.images import load_image
from edgevlm.inputs.tiling import split_image
from edgevlm.runtimes.onnx.vision import OnnxVision


def encode(graph: Path, tiles: list[NDArray[np.uint8]]) -> NDArray[np.float32]:
    """Return the embeddings of all tiles, ``[tiles, tokens, width]``."""
    runtime = OnnxVision(
        graph, input_name=vision.INPUT_NAME, output_name=vision.OUTPUT_NAME, device="cpu"
    )
    embeddings = [runtime.encode(tile[None]) for batch in tiles for tile in batch]
    runtime.close()
    return np.concatenate(embeddings)


def print_row(name: str, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Print the error of all tiles together, that of the worst tile, and the centred error."""
    mean = expected.mean(axis=(0, 1))
    worst = max(relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    centred = relative_error(found - mean, expected - mean)
    print(
        f"{name:44} {relative_error(found, expected):8.4f} {worst:8.4f} {centred:8.4f}", flush=True
    )


def main() -> None:
    """Export the graphs into a temporary folder and compare them."""
    parser = argparse.ArgumentParser(description="Compare calibration images.")
    parser.add_argument("checkpoint")
    parser.add_argument("photographs", type=Path)
    parser.add_argument("folders", type=Path, nargs="*")
    arguments = parser.parse_args()
    sets = [CalibrationImages.open(folder) for folder in (None, *arguments.folders)]
    plan = make_plan(Checkpoint.open(arguments.checkpoint))
    photographs = [load_image(file) for file in find_images(arguments.photographs)]
    tiles = [
        np.stack(split_image(photograph, plan.image.tiling).pixels)[[0, -1]]
        for photograph in photographs
    ]
    with tempfile.TemporaryDirectory() as scratch:
        fp32, quantized = Path(scratch) / "fp32.onnx", Path(scratch) / "quantized.onnx"
        vision.export_fp32(plan.checkpoint, plan.family, plan.image, fp32)
        expected = encode(fp32, tiles)
        print(f"{'calibration':44} {'error':>8} {'worst':>8} {'centred':>8}")
        for images in sets:
            shown = images.tiles(plan.image.tiling)
            convert_int8(fp32, quantized, measure_activations(fp32, shown))
            print_row(images.description, encode(quantized, tiles), expected)


if __name__ == "__main__":
    main()
