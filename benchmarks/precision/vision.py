"""Compare precisions of a vision graph: ``python -m benchmarks.precision.vision CHECKPOINT OUT.json``.

OUT gets the figures; a table goes to stdout. Beside the exporter's precisions stand those of
`benchmarks.precision.variants`. The images are those of the parity report: the photographs that come with
edgevlm, and two drawings. No image is measured with a graph that was fitted to it: there are three graphs of
each precision, each fitted to two thirds of the photographs and measured with the other images.

Errors are those of what varies: of the embeddings without the mean of all embeddings. The divergence is that
of the f16 decoder's next-token distributions, as in the parity report. Times are processor seconds of one
thread, medians over the images, so that other programs on the machine change them little. On a busy machine
run it on one core (``taskset -c 0``): threads of llama.cpp wait for each other.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
from numpy.typing import NDArray

from benchmarks.files import environment
from benchmarks.precision import variants
from edgevlm.divergence import divergence
from edgevlm.export import answers, vision
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.pipeline import build_manifest, write_unquantized
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.products import Activation, measure_activations
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.inputs.image_processor import ProcessedImage

THREADS = 1
FOLDS = 3
"""Graphs of each precision, fitted to other photographs each."""


Convert = Callable[[Path, Path, Mapping[str, Activation]], object]
"""Write a precision of the float32 graph, fitted to statistics of photographs."""

PRECISIONS: dict[str, Convert] = {
    "fp16": lambda source, path, _: vision.convert_fp16(source, path),
    "int8": convert_int8,
    "int4": convert_int4,
    "int8, one scale": lambda source, path, _: variants.convert_one_scale(source, path),
    "int8, fixed scales": variants.convert_static,
    "int8 blocks": variants.convert_weight_blocks,
    "int8, some floats": variants.convert_middle_floats,
    "int8, smoothed": variants.convert_smoothed,
}


class Rows:
    """A `VisionRuntime` that returns rows which were computed before.

    Args:
        rows: float32 ``[rows, width]`` of each tile, by the bytes of the tile.
    """

    device = "cpu"
    on_cpu = True

    def __init__(self, rows: Mapping[bytes, NDArray[np.float32]]) -> None:
        self._rows = rows

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the rows of uint8 tiles ``[n, height, width, 3]``, float32 ``[n, rows, width]``."""
        return np.stack([self._rows[tile.tobytes()] for tile in tiles])

    def close(self) -> None:
        """Do nothing."""


Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def load(path: Path, runtime: str) -> Run:
    """Load a graph on the CPU.

    Args:
        runtime: ``ONNX Runtime``, or ``OpenVINO`` with the precision of its floats.
    """
    if runtime == "ONNX Runtime":
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = THREADS
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda tile: session.run(None, {vision.INPUT_NAME: tile})[0]
    core = openvino.Core()
    graph = core.read_model(path)
    graph.reshape([1, *(side.get_length() for side in graph.input().partial_shape[1:])])
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": THREADS,
        "INFERENCE_PRECISION_HINT": runtime.rpartition(" ")[2],
    }
    compiled = core.compile_model(graph, "CPU", settings)
    return lambda tile: compiled([tile])[0].copy()


def runtimes() -> list[str]:
    """Return the runtimes of this machine."""
    has_bf16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return ["ONNX Runtime", "OpenVINO f32", *["OpenVINO bf16"] * has_bf16]


def tiles_of(images: Sequence[ProcessedImage]) -> dict[bytes, NDArray[np.uint8]]:
    """Return each tile once, uint8 ``[1, height, width, 3]``, by its bytes."""
    return {tile.tobytes(): tile[None] for image in images for tile in image.pixels}


def encode(
    run: Run, images: Sequence[ProcessedImage], times: list[float]
) -> dict[bytes, NDArray[np.float32]]:
    """Return the rows of each tile of the images, and add the time of each but the first tile to `times`."""
    rows = {}
    for number, (key, tile) in enumerate(tiles_of(images).items()):
        begun = time.process_time()
        rows[key] = run(tile)[0]
        if number:
            times.append(time.process_time() - begun)
    return rows


def errors(
    found: Mapping[bytes, NDArray[np.float32]],
    exact: Mapping[bytes, NDArray[np.float32]],
    images: Sequence[ProcessedImage],
) -> list[float]:
    """Return the error of each image that `found` has, without the mean of all rows of all images."""
    mean = np.concatenate(list(exact.values())).mean(axis=0)
    result = []
    for image in images:
        keys = [tile.tobytes() for tile in image.pixels]
        if not set(keys) <= found.keys():
            continue
        difference = sum(np.square(found[key] - exact[key]).sum() for key in keys)
        varying = sum(np.square(exact[key] - mean).sum() for key in keys)
        result.append(float(np.sqrt(difference / varying)))
    return result


def measure(checkpoint: str, folder: Path) -> dict[str, Any]:
    """Convert, encode and answer.

    Args:
        folder: an empty folder for the graphs and the decoder.
    """
    plan = make_plan(Checkpoint.open(checkpoint))
    source = folder / "vision.fp32.onnx"
    with quiet_transformers():
        decoder = write_unquantized(plan, folder, ["f16"], progress=False)["f16"]
        vision.export_fp32(plan.checkpoint, plan.family, plan.image, source)
    manifest = build_manifest(plan, "model", {"fp32": source}, {"f16": decoder})
    scenes = answers.make_scenes(manifest)
    images = [scene.image for scene in scenes]
    photographs = CalibrationImages.open().tiles(plan.image.tiling)
    drawings = len(scenes) - len(photographs)  # the first scenes
    folds = [range(first, len(scenes), FOLDS) for first in range(FOLDS)]
    statistics_of_folds = []
    for fold in folds:
        tiles = [
            tile for number, tile in enumerate(photographs, start=drawings) if number not in fold
        ]
        statistics_of_folds.append(measure_activations(source, tiles))
    names = runtimes()
    paths = {"fp32": source} | {name: folder / f"{name}.onnx" for name in PRECISIONS}
    rows: dict[str, Any] = {name: {runtime: {} for runtime in names} for name in paths}
    times: dict[str, Any] = {name: {runtime: [] for runtime in names} for name in paths}
    for fold, activations in zip(folds, statistics_of_folds, strict=True):
        for name, path in paths.items():
            if path != source:
                PRECISIONS[name](source, path, activations)
            for runtime in names if fold is folds[0] else names[:1]:
                shown = [images[number] for number in fold]
                try:
                    run = load(path, runtime)
                except RuntimeError as error:
                    print(f"{runtime} cannot load {name}: {str(error)[:300]}", flush=True)
                    continue
                found = encode(
                    run, shown[: None if runtime == names[0] else 3], times[name][runtime]
                )
                rows[name][runtime] |= found
                print(
                    f"images {fold.start}, {fold.start + FOLDS}, ...: {name}, {runtime}", flush=True
                )

    def engine(name: str) -> Any:
        stored: Any = Rows(rows[name]["ONNX Runtime"])
        return closing(answers.load_engine(manifest, stored, decoder, scenes))

    with engine("fp32") as exact_engine:
        exact = [answers.answer_exactly(exact_engine, scene) for scene in scenes]
        another = answers.image_scale(exact_engine, scenes, exact)
    precisions: dict[str, Any] = {}
    for name, found in rows.items():
        with engine(name) as quantized:
            logits = answers.force(quantized, scenes, exact)
        parts = [divergence(a.logits, b) for a, b in zip(exact, logits, strict=True)]
        every = answers.join(parts)
        precisions[name] = {
            "errors": {
                runtime: errors(part, rows["fp32"][names[0]], images)
                for runtime, part in found.items()
                if part
            },
            "kl": float(every.kl.mean()),
            "kl_by_image": [float(part.kl.mean()) for part in parts],
            "same_top": float(every.same_top.mean()),
            "seconds": {
                runtime: statistics.median(found) for runtime, found in times[name].items() if found
            },
            "bytes": paths[name].stat().st_size,
        }
    return {
        **environment(FOLDS),
        "threads": THREADS,
        "checkpoint": plan.checkpoint.repository,
        "images": [scene.name for scene in scenes],
        "photographs_from": drawings,
        "image_kl": another.kl,
        "image_agreement": another.agreement,
        "precisions": precisions,
    }


def table(result: Mapping[str, Any]) -> str:
    """Return the figures as a table in Markdown."""
    start = result["photographs_from"]
    names = list(result["precisions"]["fp32"]["seconds"])
    heads = ["precision", "median photograph", "worst", "ratio", "worst drawing", "KL, nats"]
    heads += [f"s, {name}" for name in names] + ["MB"]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for name, figures in result["precisions"].items():
        found = figures["errors"][names[0]]
        middle, worst = statistics.median(found[start:]), max(found[start:])
        worst_name = result["images"][found.index(worst)]
        times = [figures["seconds"].get(runtime) for runtime in names]
        cells = [name, f"{middle:.4f}", f"{worst:.4f} ({worst_name})"]
        cells += [f"{worst / middle:.2f}" if middle else "", f"{max(found[:start], default=0):.4f}"]
        cells += [f"{figures['kl']:.2g}", *("no" if t is None else f"{t:.3g}" for t in times)]
        lines.append(" | ".join([*cells, f"{figures['bytes'] / 1e6:.3g}"]))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure a checkpoint, and print and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("out", metavar="OUT.json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = measure(arguments.checkpoint, Path(scratch))
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))
    print(f"KL of another image: {result['image_kl']:.3g} nats")


if __name__ == "__main__":
    main()
