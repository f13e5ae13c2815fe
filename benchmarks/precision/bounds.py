"""What quantized files and damaged files make of answers: the measurement behind `edgevlm.export.bounds`.

    python -m benchmarks.precision.bounds OUT NAME=CHECKPOINT [NAME=CHECKPOINT ...]

For each checkpoint the exact pair, vision graphs and decoders of several precisions, and damaged ones are
written into a temporary folder and compared as an export does. OUT/bounds.json gets the figures and
OUT/bounds.md a table: the divergence of the worst image, as a share of what a total loss causes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgevlm.export import answers
from edgevlm.export.bounds import MIN_CONTEXT_KL, VISION_BOUNDS, Scale, decoder_bound
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.pipeline import (
    build_manifest,
    quantize_decoders,
    write_unquantized,
    write_vision,
)
from edgevlm.export.plan import make_plan, quiet_transformers
from edgevlm.export.stored_vision import StoredVision

VISION = ("fp32", "fp16", "int8")
DECODERS = ("f16", "q8_0", "q4_k_m", "q4_0")
CLIP = 3.0
"""Largest input of a matrix product after "inputs clipped"."""


def round_to_bits(weights: NDArray[Any], bits: int, axis: int) -> NDArray[Any]:
    """Round to signed integers of a few bits, with one scale along `axis`."""
    largest = 2 ** (bits - 1) - 1
    scale = np.maximum(np.abs(weights).max(axis=axis, keepdims=True) / largest, 1e-12)
    rounded: NDArray[Any] = (np.round(weights / scale) * scale).astype(weights.dtype)
    return rounded


def replace_weights(
    model: onnx.ModelProto, names: set[str], change: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Change initializers of a graph in place."""
    for tensor in model.graph.initializer:
        if tensor.name in names:
            changed = change(numpy_helper.to_array(tensor))
            tensor.CopyFrom(numpy_helper.from_array(changed, tensor.name))


def drop_norm(model: onnx.ModelProto) -> None:
    """Turn the layer norm in the middle of the graph into nothing."""
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    norm = norms[len(norms) // 2]
    norm.op_type = "Identity"
    del norm.input[1:], norm.attribute[:], norm.output[1:]


def products(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the matrix products with weights."""
    names = {tensor.name for tensor in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in names
    ]


def round_layer(model: onnx.ModelProto) -> None:
    """Round the weights of six products in the middle, those of one layer, to 3 bits."""
    nodes = products(model)
    middle = nodes[len(nodes) // 2 - 3 : len(nodes) // 2 + 3]
    names = {node.input[1] for node in middle}
    replace_weights(model, names, lambda weights: round_to_bits(weights, 3, 0))


def round_all(model: onnx.ModelProto) -> None:
    """Round the weights of all products to 4 bits, with one scale for each column."""
    names = {node.input[1] for node in products(model)}
    replace_weights(model, names, lambda weights: round_to_bits(weights, 4, 0))


def clip_inputs(model: onnx.ModelProto) -> None:
    """Clip the inputs of all products, as scales do that were fixed without the outliers."""
    changed = []
    outputs = {node.output[0] for node in products(model)}
    for node in list(model.graph.node):
        if node.output[0] in outputs:
            clipped = f"{node.output[0]}_clipped"
            inputs = [node.input[0], "clip_low", "clip_high"]
            changed.append(onnx.helper.make_node("Clip", inputs, [clipped]))
            node.input[0] = clipped
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        changed.append(copied)
    del model.graph.node[:]
    model.graph.node.extend(changed)
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(-CLIP, np.float32), "clip_low"),
            numpy_helper.from_array(np.array(CLIP, np.float32), "clip_high"),
        ]
    )


def zero_norm(name: str, values: NDArray[Any], layer: int) -> None:
    """Switch the attention of one layer off."""
    if name == f"blk.{layer}.attn_norm.weight":
        values[:] = 0


def shift_norm(name: str, values: NDArray[Any], layer: int) -> None:
    """Add an offset of one to a norm, as some families have it and others do not."""
    if name == f"blk.{layer}.attn_norm.weight":
        values[:] += 1


def round_block(name: str, values: NDArray[Any], layer: int) -> None:
    """Round the matrices of one layer to 3 bits."""
    if name.startswith(f"blk.{layer}.") and values.ndim > 1:
        values[:] = round_to_bits(values.astype(np.float32), 3, 1)


DAMAGED_VISION: dict[str, Callable[[onnx.ModelProto], None]] = {
    "one norm dropped": drop_norm,
    "one layer in 3 bits": round_layer,
    "all layers in 4 bits, by column": round_all,
    f"inputs clipped at {CLIP:g}": clip_inputs,
}
DAMAGED_DECODERS: dict[str, Callable[[str, NDArray[Any], int], None]] = {
    "one norm zero": zero_norm,
    "one norm shifted": shift_norm,
    "one layer in 3 bits": round_block,
}


def damage_vision(source: Path, path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    """Write a changed vision graph."""
    model = onnx.load(source)
    change(model)
    onnx.save(model, path)
    return path


def damage_decoder(
    source: Path, path: Path, change: Callable[[str, NDArray[Any], int], None]
) -> Path:
    """Write a changed f16 decoder."""
    path.write_bytes(source.read_bytes())
    tensors = gguf.GGUFReader(path, "r+").tensors
    layers = {tensor.name.split(".")[1] for tensor in tensors if tensor.name.startswith("blk.")}
    for tensor in tensors:
        change(tensor.name, tensor.data, len(layers) // 2)
    return path


def measure(name: str, checkpoint: str, folder: Path, step: int) -> dict[str, Any]:
    """Return the figures of one checkpoint, over every `step`-th image of the report."""
    with quiet_transformers():
        plan = make_plan(Checkpoint.open(checkpoint))
        decoders = write_unquantized(plan, folder, DECODERS, progress=False)
        quantize_decoders(decoders, DECODERS, {}, progress=False)
        images = CalibrationImages.open()
        graphs = write_vision(plan, folder, VISION, images, progress=False)
        manifest = build_manifest(plan, name, graphs, decoders)
    scenes = answers.make_scenes(manifest)[::step]
    processed = [scene.image for scene in scenes]
    stored = StoredVision(manifest, graphs["fp32"], processed)
    with closing(answers.load_engine(manifest, stored, decoders["f16"], scenes)) as engine:
        exact = [answers.answer_exactly(engine, scene) for scene in scenes]
        image = answers.image_scale(engine, scenes, exact)
    context = answers.context_scale(exact)

    def compare(vision: StoredVision, decoder: Path, pair: tuple[str, str]) -> dict[str, float]:
        with closing(answers.load_engine(manifest, vision, decoder, scenes)) as engine:
            found = answers.force(engine, scenes, exact)
        drift = answers.answer_drift(exact, found, pair, image, context)
        worst = max(drift.kl_by_image)
        return {
            "kl": drift.kl,
            "worst_kl": worst,
            "image_share": worst / image.kl,
            "context_share": worst / max(context.kl, MIN_CONTEXT_KL),
            "top1_agreement": drift.top1_agreement,
        }

    vision = {}
    for key in (*VISION[1:], *DAMAGED_VISION):
        path = graphs.get(key) or damage_vision(
            graphs["fp32"], folder / "damaged.onnx", DAMAGED_VISION[key]
        )
        graph = StoredVision(manifest, path, processed)
        error = answers.vision_drift(scenes, graph, stored).centered_error
        figures = compare(graph, decoders["f16"], ("int8", "f16"))
        vision[key] = {"centered_error": error, **figures}
    decoder = {}
    for key in (*DECODERS[1:], *DAMAGED_DECODERS):
        path = decoders.get(key) or damage_decoder(
            decoders["f16"], folder / "damaged.gguf", DAMAGED_DECODERS[key]
        )
        decoder[key] = compare(stored, path, ("fp32", "q8_0"))
    return {
        "image": vars(image),
        "context": vars(context),
        "positions": sum(len(answer.tokens) for answer in exact),
        "vision": vision,
        "decoder": decoder,
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Return the shares as Markdown, a column for each checkpoint."""
    lines = [
        f"| part | file | allowed | {' | '.join(results)} |",
        "|---" * (3 + len(results)) + "|",
    ]
    for part, share, known in (
        ("vision", "image_share", lambda key: VISION_BOUNDS.get(key, VISION_BOUNDS["int8"])),
        (
            "decoder",
            "context_share",
            lambda key: decoder_bound(key if key in DECODERS else "q8_0"),
        ),
    ):
        for key in next(iter(results.values()))[part]:
            figures = [f"{result[part][key][share]:.2g}" for result in results.values()]
            lines.append(f"| {part} | {key} | {known(key) ** 2:.2g} | {' | '.join(figures)} |")
    for label, scale in (("KL of another image", "image"), ("KL of the mean", "context")):
        figures = [f"{Scale(**result[scale]).kl:.2g}" for result in results.values()]
        lines.append(f"| | {label}, nats | | {' | '.join(figures)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure all checkpoints and write the figures."""
    parser = argparse.ArgumentParser(description="Measure the shares that bounds are derived from.")
    parser.add_argument("out", type=Path)
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument(
        "--step", type=int, default=1, help="use every so many images of the report (default: 1)"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Any]] = {}
    for named in arguments.checkpoints:
        name, _, checkpoint = named.partition("=")
        with tempfile.TemporaryDirectory() as folder:
            results[name] = measure(name, checkpoint, Path(folder), arguments.step)
        text = json.dumps(results, indent=2) + "\n"
        (arguments.out / "bounds.json").write_text(text, encoding="utf-8")
        (arguments.out / "bounds.md").write_text(table(results), encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
