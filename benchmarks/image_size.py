"""Measure a graph for images of one size beside that for any size: ``python -m benchmarks.image_size SIZE``.

The checkpoint is a real shape of `tests.families.real_shapes` with random weights. Both graphs encode the
same image of SIZE. Each runs in a process of its own, and each round measures both; the medians count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.files import THREADS, environment
from benchmarks.worker import Worker
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.parity import relative_error
from edgevlm.export.pipeline import write_vision
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.sizes import parse_image_size
from edgevlm.runtimes.onnx.session import load_onnxruntime
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.openvino import OpenVinoVision, load_openvino
from tests.families.real_shapes import SHAPES, build

ROUNDS = 7
DEFAULT_SHAPE = "LFM2-VL 450M"
PRECISIONS = ("fp32", "int8")
RUNTIMES: dict[str, tuple[Any, Any]] = {
    "ONNX Runtime": (OnnxVision, load_onnxruntime),
    "OpenVINO": (OpenVinoVision, load_openvino),
}
"""The class of each runtime, and what imports its library."""
SHAPE_OPERATORS = ("Shape", "Size", "Range", "ConstantOfShape", "Expand", "Gather", "Where")
"""Operators that compute with shapes, or for which a compiler needs to know them."""
HEAD = (
    "| runtime, precision | nodes | of which compute shapes | load, s | one image, s | peak memory, MB | "
    "difference |\n|---|---|---|---|---|---|---|"
)


class Graph(peers.Memory):
    """A vision graph in a process of its own."""

    def __init__(self, runtime: str, path: Path, cache: Path) -> None:
        options: dict[str, Any] = {"cache": cache} if runtime == "OpenVINO" else {"device": "cpu"}
        kind, load_library = RUNTIMES[runtime]
        load_library()
        start = time.perf_counter()
        self._graph = kind(
            path, input_name="tiles", output_name="embeddings", threads=THREADS, **options
        )
        self._load_seconds = time.perf_counter() - start

    def load_seconds(self) -> float:
        """Return the seconds that the load took, the file in the page cache."""
        return self._load_seconds

    def encode(self, tiles: NDArray[np.uint8]) -> tuple[float, NDArray[np.float32]]:
        """Return the seconds, and the embeddings."""
        start = time.perf_counter()
        rows = self._graph.encode(tiles)
        return time.perf_counter() - start, rows


def measure(runtime: str, paths: dict[str, Path], tiles: NDArray[np.uint8], cache: Path) -> None:
    """Print a row for the graph of any size, and one for that of a fixed size."""
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    rows, loads, memory = {}, {}, {}
    workers = {}
    for name, path in paths.items():
        path.read_bytes()  # into the page cache
        workers[name] = Worker(Graph, runtime=runtime, path=path, cache=cache / name)
        loads[name] = workers[name].call("load_seconds")
    for _ in range(ROUNDS + 1):
        for name, worker in workers.items():
            taken, rows[name] = worker.call("encode", tiles)
            seconds[name].append(taken)
    for name, worker in workers.items():
        memory[name] = worker.call("peak_memory") / 1e6
        worker.close()
    for name, path in paths.items():
        operators = [node.op_type for node in onnx.load(path).graph.node]
        shapes = sum(operator in SHAPE_OPERATORS for operator in operators)
        error = relative_error(rows[name], rows["any"])
        print(
            f"| {runtime}, {path.stem.rpartition('.')[2]}, {name} size | {len(operators)} | {shapes} | "
            f"{loads[name]:.2f} | {median(seconds[name][1:]):.3f} | {memory[name]:.0f} | {error:.0e} |",
            flush=True,
        )


def main() -> None:
    """Export the graphs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("size", type=parse_image_size, metavar="WIDTHxHEIGHT")
    parser.add_argument("--shape", choices=SHAPES, default=DEFAULT_SHAPE)
    arguments = parser.parse_args()
    width, height = arguments.size
    tiles = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    with tempfile.TemporaryDirectory() as scratch, quiet_transformers():
        folder = Path(scratch)
        checkpoint = Checkpoint.open(build(SHAPES[arguments.shape], folder))
        files = {}
        for name, size in (("any", None), ("one", arguments.size)):
            (folder / name).mkdir()
            plan = make_plan(checkpoint, size)
            images = CalibrationImages.open()
            files[name] = write_vision(plan, folder / name, PRECISIONS, images, progress=False)
        print(f"{arguments.shape}, {width} x {height} pixels, {environment(ROUNDS)}\n\n{HEAD}")
        for runtime in RUNTIMES:
            for precision in PRECISIONS:
                paths = {name: found[precision] for name, found in files.items()}
                measure(runtime, paths, tiles, folder / "cache")


if __name__ == "__main__":
    main()
