"""Statistics of what the matrix products of a vision graph read, from photographs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper

from edgevlm.export.vision import INPUT_NAME


@dataclass(frozen=True)
class Activation:
    """The input of matrix products: rows of K channels, one row for each token."""

    rows: float
    """Rows of one tile."""
    mean: NDArray[np.float32]
    """Mean of each channel, ``[K]``."""
    low: float
    """Mean of the smallest value of each row."""
    high: float
    """Mean of the largest value of each row."""


def matrix_products(model: onnx.ModelProto) -> list[NodeProto]:
    """Return the products of an activation and a weight matrix, in the order of the graph."""
    matrices = {entry.name for entry in model.graph.initializer if len(entry.dims) == 2}
    return [
        node
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices
    ]


def measure_activations(
    source: Path, scratch: Path, tiles: Iterable[NDArray[np.uint8]]
) -> dict[str, Activation]:
    """Run the float32 graph and return the statistics of each input of a matrix product, by its name.

    Args:
        source: the float32 graph.
        scratch: a file for the graph with more outputs; it is removed.
        tiles: batches of photographs, uint8 ``[n, height, width, 3]``.
    """
    model = onnx.load(source)
    names = list(dict.fromkeys(node.input[0] for node in matrix_products(model)))
    outputs = [output for name in names for output in _watch(model, name)]
    onnx.save(model, scratch)
    del model
    found: list[Sequence[NDArray[np.float32]]] = []
    counts = []
    try:
        session = onnxruntime.InferenceSession(scratch, providers=["CPUExecutionProvider"])
        for batch in tiles:
            found.append(session.run(outputs, {INPUT_NAME: batch}))
            counts.append(len(batch))
    finally:
        scratch.unlink()
    activations = {}
    for number, name in enumerate(names):
        size, mean, low, high = (
            np.average([run[4 * number + i] for run in found], axis=0, weights=counts)
            for i in range(4)
        )
        rows = float(size) / len(mean) / float(np.average(counts, weights=counts))
        activations[name] = Activation(rows, mean.astype(np.float32), float(low), float(high))
    return activations


def _watch(model: onnx.ModelProto, name: str) -> list[str]:
    """Add the statistics of a value to the outputs of the graph, and return their names."""
    axes = helper.make_tensor("last_axis", onnx.TensorProto.INT64, [1], [-1])
    if all(entry.name != axes.name for entry in model.graph.initializer):
        model.graph.initializer.append(axes)
    size, mean, low, high = outputs = [f"{name}.{what}" for what in ("size", "mean", "low", "high")]
    model.graph.node.extend(
        [
            helper.make_node("Size", [name], [f"{name}.elements"]),
            helper.make_node("Cast", [f"{name}.elements"], [size], to=onnx.TensorProto.FLOAT),
            helper.make_node("Shape", [name], [f"{name}.channels"], start=-1),
            helper.make_node("Concat", ["every", f"{name}.channels"], [f"{name}.shape"], axis=0),
            helper.make_node("Reshape", [name, f"{name}.shape"], [f"{name}.rows"]),
            helper.make_node("ReduceMean", [f"{name}.rows", "first_axis"], [mean], keepdims=0),
            helper.make_node("ReduceMin", [name, axes.name], [f"{name}.lows"]),
            helper.make_node("ReduceMean", [f"{name}.lows"], [low], keepdims=0),
            helper.make_node("ReduceMax", [name, axes.name], [f"{name}.highs"]),
            helper.make_node("ReduceMean", [f"{name}.highs"], [high], keepdims=0),
        ]
    )
    model.graph.output.extend(helper.make_empty_tensor_value_info(output) for output in outputs)
    return outputs
