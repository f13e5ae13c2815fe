"""Compare the precisions of a vision graph: ``python -m benchmarks.precision.vision CHECKPOINT OUT``.

OUT gets the figures as JSON; a table goes to stdout. Beside the precisions of the exporter stands int8 with
one scale for each activation, as ONNX Runtime's ``quantize_dynamic`` makes it: what edgevlm exported before.
Errors are those of what varies: without the mean of all embeddings. The photographs are those that come with
edgevlm: some of them calibrate, and the others are measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic

from benchmarks.files import environment
from edgevlm.export import vision
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.plan import make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int4, convert_int8

THREADS = 2
PRECISIONS = ("fp32", "fp16", "one scale", "int8", "int4")


def convert_one_scale(source: Path, path: Path) -> None:
    """Quantize as edgevlm did before: a dynamic scale for each activation, one for each output channel."""
    with vision.quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def session(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def encode(
    graph: onnxruntime.InferenceSession, tiles: list[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Return the embeddings of all tiles, float32 ``[tiles, rows, width]``."""
    return np.concatenate([graph.run(None, {vision.INPUT_NAME: tile})[0] for tile in tiles])


def seconds(
    graphs: dict[str, onnxruntime.InferenceSession], tile: NDArray[np.uint8], rounds: int
) -> dict[str, float]:
    """Return the median time of a tile for each graph, measured in turns."""
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            begun = time.perf_counter()
            graph.run(None, {vision.INPUT_NAME: tile})
            times[name].append(time.perf_counter() - begun)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Convert, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT", type=Path, help="a JSON file")
    parser.add_argument(
        "--measure",
        metavar="NAMES",
        default="astronaut,cat,coffee,dogs,room",
        help="photographs that are measured; the others calibrate (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    arguments = parser.parse_args()
    plan = make_plan(Checkpoint.open(arguments.checkpoint))
    images = CalibrationImages.open()
    tiles = images.tiles(plan.image.tiling)
    names = arguments.measure.split(",")
    stems = [file.stem for file in images.files]
    measured = [tiles[stems.index(name)] for name in names]
    others = [tile for stem, tile in zip(stems, tiles, strict=True) if stem not in names]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        paths = {name: folder / f"{name}.onnx" for name in PRECISIONS}
        vision.export_fp32(plan.checkpoint, plan.family, plan.image, paths["fp32"])
        activations = measure_activations(paths["fp32"], others)
        convert: dict[str, Callable[[Path, Path], None]] = {
            "fp16": vision.convert_fp16,
            "one scale": convert_one_scale,
            "int8": lambda source, path: convert_int8(source, path, activations),
            "int4": lambda source, path: convert_int4(source, path, activations),
        }
        for name, function in convert.items():
            function(paths["fp32"], paths[name])
        graphs = {name: session(path) for name, path in paths.items()}
        found = {name: encode(graph, measured) for name, graph in graphs.items()}
        times = seconds(graphs, measured[0], arguments.rounds)
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    mean = found["fp32"].mean(axis=(0, 1))
    precisions: dict[str, Any] = {}
    print(
        "| precision | error without the mean | worst photograph | to the median | s a tile | MB |"
    )
    print("|---|---|---|---|---|---|")
    for name, embeddings in found.items():
        difference = np.square(embeddings - found["fp32"]).sum(axis=(1, 2))
        varying = np.square(found["fp32"] - mean).sum(axis=(1, 2))
        by_image = np.sqrt(difference / varying)
        whole = float(np.sqrt(difference.sum() / varying.sum()))
        worst = int(by_image.argmax())
        ratio = float(by_image.max() / max(np.median(by_image), 1e-12))
        precisions[name] = {
            "centered_error": whole,
            "by_photograph": by_image.tolist(),
            "seconds": times[name],
            "bytes": sizes[name],
        }
        print(
            f"| {name} | {whole:.4f} | {by_image.max():.4f} ({names[worst]}) | {ratio:.2f} | "
            f"{times[name]:.3f} | {sizes[name] / 1e6:.1f} |",
            flush=True,
        )
    result = {
        **environment(arguments.rounds),
        "checkpoint": plan.checkpoint.repository,
        "photographs": names,
        "precisions": precisions,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
