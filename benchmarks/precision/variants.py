"""Other ways to quantize a vision graph, which `benchmarks.precision.vision` measures beside the exporter's.

None is part of the exporter: docs/precision.md has the measurement.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape
from onnxruntime.quantization import QuantType, quantize_dynamic

from edgevlm.export.onnx_file import open_model, write_model
from edgevlm.export.products import Activation, Product, find_products
from edgevlm.export.vision import quiet
from edgevlm.export.vision_quantization import (
    BLOCK_LENGTH,
    DOMAIN,
    LEVELS,
    Int8Products,
    Quantized,
    constant,
    convert_int8,
    multiply_floats,
    replace_products,
    round_columns,
)

SMOOTHING = 0.5
"""SmoothQuant's alpha: the part of the range of an activation that moves into the weights."""


def convert_one_scale(source: Path, path: Path) -> None:
    """Quantize as edgevlm did before: a dynamic scale for each activation, one for each output channel."""
    with quiet():
        quantize_dynamic(
            source,
            path,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )


def convert_static(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize as the exporter, but with scales of activations that photographs fix (QDQ).

    Products stay floats whose input has few values far above the rest: its 8-bit step is larger than the mean
    magnitude of its channels.
    """

    def quantize(tape: Tape, product: Product, activation: Activation) -> Quantized:
        low, high = min(activation.lowest.min(), 0), max(activation.highest.max(), 0)
        step = (high - low) / LEVELS
        if step > np.abs(activations[product.activation.name or ""].mean).mean():
            return multiply_floats(tape, product)
        scale = constant(tape, product, "activation_scale", np.array(step, np.float32))
        zero = constant(tape, product, "zero_point", np.array(round(-low / step), np.uint8))
        tokens = tape.op("QuantizeLinear", [product.activation, scale, zero])
        rounded, scales = round_columns(product.matrix())
        weight = tape.op(
            "DequantizeLinear",
            [
                constant(tape, product, "int8", rounded),
                constant(tape, product, "scales", scales),
            ],
            attributes={"axis": 1},
        )
        floats = tape.op("DequantizeLinear", [tokens, scale, zero])
        return tape.op("MatMul", [floats, weight]), rounded * scales

    replace_products(source, path, activations, quantize)


def convert_weight_blocks(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize weights to 8 bits in blocks of 32 rows; ONNX Runtime quantizes the activations."""

    def quantize(tape: Tape, product: Product, _: Activation) -> Quantized:
        weight = product.matrix()
        rows, columns = product.shape
        count = -(-rows // BLOCK_LENGTH)
        padded = np.zeros((columns, count * BLOCK_LENGTH), np.float32)
        padded[:, :rows] = weight.T
        blocks = padded.reshape(columns, count, BLOCK_LENGTH)
        scales = np.maximum(np.abs(blocks).max(-1, keepdims=True) / 127, 1e-10).astype(np.float32)
        values = np.rint(blocks / scales)
        operands = [
            product.activation,
            constant(tape, product, "int8", (values + 128).astype(np.uint8)),
            constant(tape, product, "scales", scales.reshape(-1)),
        ]
        sizes = {"K": rows, "N": columns, "bits": 8, "block_size": BLOCK_LENGTH}
        output = tape.op(
            "MatMulNBits", operands, attributes=sizes | {"accuracy_level": 4}, domain=DOMAIN
        )
        return output, (values * scales).reshape(columns, -1)[:, :rows].T

    replace_products(source, path, activations, quantize)


def convert_middle_floats(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize as the exporter, except the second projections of MLPs in the middle third of the layers."""
    products = find_products(open_model(source).graph)
    second = [product.activation.name for product in products if follows_gelu(product)]
    middle = set(second[len(second) // 3 : len(second) * 2 // 3])
    quantize_product = Int8Products()

    def quantize(tape: Tape, product: Product, activation: Activation) -> Quantized:
        if product.activation.name in middle:
            return multiply_floats(tape, product)
        return quantize_product(tape, product, activation)

    replace_products(source, path, activations, quantize)


def follows_gelu(product: Product) -> bool:
    """Return True for the second projection of an MLP."""
    node = product.activation.producer()
    return node is not None and node.op_type == "Gelu"


def convert_smoothed(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize as the exporter, after SmoothQuant: norms divide channels, and weights are multiplied."""
    model = open_model(source)
    graph = model.graph
    changed = dict(activations)
    by_input: dict[str, list[Product]] = {}
    for product in find_products(graph):
        by_input.setdefault(product.activation.name or "", []).append(product)
    for name, products in by_input.items():
        value = products[0].activation
        norm = value.producer()
        readers = {product.nodes[0] for product in products}
        if norm is None or norm.op_type != "LayerNormalization":
            continue
        if not set(value.consumers()) <= readers:
            continue
        found = activations[name]
        inputs = np.maximum(np.abs(found.lowest), np.abs(found.highest))
        weights = np.max([np.abs(product.matrix()).max(axis=1) for product in products], axis=0)
        factors = np.maximum(inputs, 1e-5) ** SMOOTHING / np.maximum(weights, 1e-5) ** (
            1 - SMOOTHING
        )
        factors = factors.astype(np.float32)
        for number in (1, 2):
            multiply_constant(graph, norm, number, 1 / factors)
        for product in products:
            rows = factors[None] if product.transposed else factors[:, None]
            multiply_constant(graph, product.nodes[0], 1, rows)
        changed[name] = dataclasses.replace(
            found,
            mean=found.mean / factors,
            lowest=found.lowest / factors,
            highest=found.highest / factors,
        )
    RemoveUnusedNodesPass()(model)
    smoothed = path.with_name("smoothed.onnx")
    write_model(model, smoothed)
    convert_int8(smoothed, path, changed)
    smoothed.unlink()


def multiply_constant(
    graph: onnx_ir.Graph, node: onnx_ir.Node, number: int, factors: NDArray[np.float32]
) -> None:
    """Multiply a constant input of a node, for this node alone."""
    old = node.inputs[number]
    assert old is not None and old.const_value is not None
    name = f"{old.name}.smoothed.{node.outputs[0].name}"
    tensor = onnx_ir.tensor(old.const_value.numpy() * factors, name=name)
    new = onnx_ir.Value(name=name, const_value=tensor, shape=onnx_ir.Shape(tensor.shape.numpy()))
    new.dtype = tensor.dtype
    graph.register_initializer(new)
    node.replace_input_with(number, new)
