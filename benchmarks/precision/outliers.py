"""Plant massive activations: ``python -m benchmarks.precision.outliers CHECKPOINT OUT``.

CHECKPOINT is a folder with a SigLIP or CLIP tower in random weights, such as ``python -m
tests.support.checkpoints smolvlm_256m CHECKPOINT`` writes. OUT gets a copy whose tower behaves as trained
ones do: from a layer on, a few tokens of the photographs carry values hundreds of times larger than the rest
in two channels. `tests.support.outliers` says how. The largest value goes to stdout.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.pipeline import write_vision
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.products import measure_activations
from tests.support.outliers import plant_outliers


def write_graph(checkpoint: Path, folder: Path) -> Path:
    """Write the fp32 graph of a checkpoint into a folder."""
    plan = make_plan(Checkpoint.open(checkpoint))
    images = CalibrationImages.open()
    return write_vision(plan, folder, ["fp32"], images, progress=False)["fp32"]


def largest_value(graph: Path, tiles: list[NDArray[np.uint8]]) -> float:
    """Return the largest value that a matrix product of the graph reads."""
    activations = measure_activations(graph, tiles).values()
    return max(float(max(found.highest.max(), -found.lowest.min())) for found in activations)


def main() -> None:
    """Copy, plant and print."""
    parser = argparse.ArgumentParser(description="Plant massive activations in a vision tower.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--layer", type=int, default=4, help="of the tower, from 0 (default: 4)")
    arguments = parser.parse_args()
    out: Path = arguments.out
    shutil.copytree(arguments.checkpoint, out)
    tiling = make_plan(Checkpoint.open(out)).image.tiling
    tiles = CalibrationImages.open().tiles(tiling)
    mlp = f"layers.{arguments.layer}.mlp"
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        graph = write_graph(out, Path(scratch))
        before = largest_value(graph, tiles)
        plant_outliers(out, f"{mlp}.fc1", f"{mlp}.fc2", graph, tiles)
        after = largest_value(write_graph(out, Path(scratch)), tiles)
    print(f"largest value that a matrix product reads: {before:.0f} before, {after:.0f} now")


if __name__ == "__main__":
    main()
