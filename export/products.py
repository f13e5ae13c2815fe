"""The matrix products of a vision graph, and what they read on photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.tape import Tape

from edgevlm.export.attention import fuse_attention
from edgevlm.export.half_weights import stored_weight
from edgevlm.export.onnx_file import open_model
from edgevlm.export.vision import INPUT_NAME


@dataclass(frozen=True)
class Product:
    """A product of an activation ``[..., K]`` and a weight ``[K, N]``, with its bias if there is one."""

    nodes: tuple[onnx_ir.Node, ...]
    """The node of the product, and that of the bias."""
    activation: onnx_ir.Value
    weight: onnx_ir.Value
    transposed: bool
    """True if the weight is stored as ``[N, K]``."""
    bias: onnx_ir.Value | None

    @property
    def output(self) -> onnx_ir.Value:
        """The result, with the bias."""
        return self.nodes[-1].outputs[0]

    @property
    def shape(self) -> tuple[int, int]:
        """K and N."""
        assert self.weight.const_value is not None
        first, second = self.weight.const_value.shape.numpy()
        return (second, first) if self.transposed else (first, second)

    def matrix(self) -> NDArray[np.float32]:
        """Return the weight, ``[K, N]``."""
        matrix = _constant(self.weight)
        return matrix.T if self.transposed else matrix

    def bias_vector(self) -> NDArray[np.float32]:
        """Return the bias, ``[N]``; zeros if there is none."""
        if self.bias is None:
            return np.zeros(self.shape[1], np.float32)
        return _constant(self.bias)


@dataclass(frozen=True)
class Activation:
    """Statistics of the input of matrix products: rows of K channels, one row for each token."""

    rows: float
    """Rows of one tile."""
    mean: NDArray[np.float32]
    """Mean of each channel, ``[K]``."""
    lowest: NDArray[np.float32]
    """Smallest value of each channel, ``[K]``."""
    highest: NDArray[np.float32]
    """Largest value of each channel, ``[K]``."""

    def centered(self) -> Activation:
        """Return the statistics after the mean of each channel was subtracted."""
        return dataclasses.replace(
            self,
            mean=np.zeros_like(self.mean),
            lowest=self.lowest - self.mean,
            highest=self.highest - self.mean,
        )


def find_products(graph: onnx_ir.Graph) -> list[Product]:
    """Return the products of an activation and a weight matrix, in the order of the graph."""
    products = []
    for node in graph:
        if node.op_type not in ("MatMul", "Gemm") or node.domain:
            continue
        activation, weight = node.inputs[0], stored_weight(node.inputs[1])
        if activation is None or weight is None or weight.const_value is None:
            continue
        if weight.const_value.shape.rank() != 2:
            continue
        if node.op_type == "Gemm":
            settings = {name: node.attributes[name].value for name in node.attributes}
            if {settings.pop(name, 1) for name in ("alpha", "beta")} != {1} or settings.pop(
                "transA", 0
            ):
                continue
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            products.append(
                Product((node,), activation, weight, bool(settings.get("transB")), bias)
            )
            continue
        products.append(_with_bias(node, activation, weight))
    return products


def _with_bias(node: onnx_ir.Node, activation: onnx_ir.Value, weight: onnx_ir.Value) -> Product:
    """Return the product of a ``MatMul``, and the ``Add`` of a bias after it if that is its only use."""
    output = node.outputs[0]
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output() and uses[0].node.op_type == "Add":
        add = uses[0].node
        bias = add.inputs[1 - uses[0].idx]
        columns = Product((node,), activation, weight, False, None).shape[1:]
        values = bias.const_value if bias is not None else None
        if values is not None and values.shape.numpy() == columns:
            return Product((node, add), activation, weight, False, bias)
    return Product((node,), activation, weight, False, None)


def _constant(value: onnx_ir.Value) -> NDArray[np.float32]:
    assert value.const_value is not None
    return value.const_value.numpy().astype(np.float32, copy=False)


def measure_activations(
    source: Path,
    tiles: Iterable[NDArray[np.uint8]],
    question: Mapping[str, NDArray[np.int64]] | None = None,
) -> dict[str, Activation]:
    """Run the float32 graph and return the statistics of each activation of `find_products`, by its name.

    Args:
        source: the float32 graph. A graph with more outputs, which takes its weights from this file, is
            written beside it and removed.
        tiles: photographs, uint8 ``[1, height, width, 3]``.
        question: the graph's input for the question, if it has one, and the tokens of one.
    """
    model = open_model(source)
    fuse_attention(model)  # its scores would take gigabytes
    graph = model.graph
    activations = {product.activation.name: product.activation for product in find_products(graph)}
    channels = {product.activation.name: product.shape[0] for product in find_products(graph)}
    tape = Tape(graph)
    for activation in activations.values():
        graph.outputs.extend(_add_statistics(tape, activation))
    watched = source.with_name(f"{source.stem}.watched.onnx")
    onnx_ir.save(model, watched)
    options = onnxruntime.SessionOptions()
    # Weights in another order would be a second copy of the tower.
    options.add_session_config_entry("session.disable_prepacking", "1")
    # Statistics at once, or all activations stay until the end.
    options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    try:
        session = onnxruntime.InferenceSession(watched, options, providers=["CPUExecutionProvider"])
        outputs = [entry.name for entry in session.get_outputs()][1:]
        total: dict[str, NDArray[np.float32]] = {}
        count = 0
        for batch in tiles:
            count += 1
            inputs = {INPUT_NAME: batch, **(question or {})}
            for output, value in zip(outputs, session.run(outputs, inputs), strict=True):
                merge = {"lowest": np.minimum, "highest": np.maximum}.get(_kind(output), np.add)
                total[output] = merge(total[output], value) if output in total else value
    finally:
        watched.unlink()
    found = {}
    for name, width in channels.items():
        found[name or ""] = Activation(
            rows=float(total[f"{name}.size"]) / width / count,
            mean=(total[f"{name}.mean"] / count).astype(np.float32),
            lowest=total[f"{name}.lowest"],
            highest=total[f"{name}.highest"],
        )
    return found


def _kind(output: str) -> str:
    return output.rpartition(".")[2]


def _add_statistics(tape: Tape, activation: onnx_ir.Value) -> list[onnx_ir.Value]:
    """Add nodes for the number of elements and the statistics of an activation."""
    float32 = {"to": onnx_ir.DataType.FLOAT}
    channels = tape.op("Shape", [activation], attributes={"start": -1})
    shape = tape.op("Concat", [_integers(tape, [-1]), channels], attributes={"axis": 0})
    rows = tape.op("Reshape", [activation, shape])
    found = {"size": tape.op("Cast", [tape.op("Size", [activation])], attributes=float32)}
    reductions = {"mean": "ReduceMean", "lowest": "ReduceMin", "highest": "ReduceMax"}
    for kind, operator in reductions.items():
        inputs = [rows, _integers(tape, [0])]
        found[kind] = tape.op(operator, inputs, attributes={"keepdims": 0})
    for kind, value in found.items():
        value.name = f"{activation.name}.{kind}"
        value.dtype = onnx_ir.DataType.FLOAT
        value.shape = onnx_ir.Shape([] if kind == "size" else ["channels"])
    return list(found.values())


def _integers(tape: Tape, values: list[int]) -> onnx_ir.Value:
    attribute = onnx_ir.AttrInt64s("value_ints", values)
    return tape.op("Constant", [], attributes={"value_ints": attribute})
