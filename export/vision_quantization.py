"""The vision graph with int8 or int4 weights, made so that few large activations do not hurt the others.

Trained towers have *massive activations*: values hundreds of times larger than the rest, in a few channels
of a few tokens. One scale for a whole activation that spans them rounds most other values to zero. Therefore:

- each token has a scale of its own, computed when the graph runs, whatever the image is;
- photographs give the mean of each channel. The product of this mean and the rounding error of a weight
  is a constant, which is subtracted from the bias;
- the mean is also subtracted from the output of norms, by their offset, which shortens the range of tokens;
- photographs give the zero point of each activation. What follows GELU has hardly any negative values, so
  that nearly all 256 steps are left for the positive ones;
- the last products stay floats, with weights in 16 bits, if they cost next to nothing, as most connectors do;
- so do products that read probabilities (Ovis2). Most are far smaller than the largest one of their token, so
  that 8 bits would round them to zero, and their sum is not small.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

from edgevlm.export.attention import fuse_attention
from edgevlm.export.onnx_file import open_model, write_model
from edgevlm.export.products import Activation, Product, find_products

DOMAIN = "com.microsoft"
"""Operators of ONNX Runtime, which OpenVINO reads, too."""
FLOAT_SHARE = 0.02
"""Share of all multiplications that the last products of a graph may have to stay floats."""
LEVELS = 255
"""Steps between the smallest and the largest value of 8 bits."""
MIN_LEVELS = 16
"""Steps that an activation has at least on either side of zero, however rare its negative values were."""
SMALLEST_SCALE = 1e-10
"""Scale of a token whose values are all zero."""
BLOCK_LENGTH = 32
"""Rows of a 4-bit weight that share a scale."""

Quantized: TypeAlias = tuple[onnx_ir.Value, NDArray[np.float32]]
"""A product without bias, and the weight ``[K, N]`` that it computes with."""


def convert_int8(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize matrix products to 8 bits: weights with a scale for each output, activations for each token.

    Args:
        source: the float32 graph.
        path: the file to write.
        activations: statistics of `source`, from `measure_activations`.
    """
    replace_products(source, path, activations, Int8Products())


class Int8Products:
    """Quantize products to 8 bits. Products that read the same activation share its quantization."""

    def __init__(self) -> None:
        self._inputs: dict[str | None, TokenInput] = {}

    def __call__(self, tape: Tape, product: Product, activation: Activation) -> Quantized:
        """Add a product to the tape."""
        name = product.activation.name
        if name not in self._inputs:
            zero = zero_point(activation)
            self._inputs[name] = quantize_tokens(tape, product.activation, zero)
        tokens = self._inputs[name]
        rounded, scales = round_columns(product.matrix())
        operands = [
            tokens.values,
            constant(tape, product, "int8", rounded),
            constant(tape, product, "one", np.array(1, np.float32)),
            constant(tape, product, "scales", scales),
            tokens.zero_point,
        ]
        output = tape.op("MatMulIntegerToFloat", operands, domain=DOMAIN)
        return tape.op("Mul", [output, tokens.scales]), rounded * scales


def round_columns(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return a weight ``[K, N]`` in 8 bits, and the scale of each of its columns, ``[N]``."""
    scales = np.maximum(np.abs(weight).max(axis=0), SMALLEST_SCALE) / 127
    return np.rint(weight / scales).astype(np.int8), scales


def convert_int4(source: Path, path: Path, activations: Mapping[str, Activation]) -> None:
    """Quantize the weights of matrix products to 4 bits, in blocks of 32 rows.

    Args:
        source: the float32 graph.
        path: the file to write.
        activations: statistics of `source`, from `measure_activations`.
    """

    def quantize(tape: Tape, product: Product, _: Activation) -> Quantized:
        return multiply_blocks(tape, product)

    replace_products(source, path, activations, quantize)


def replace_products(
    source: Path,
    path: Path,
    activations: Mapping[str, Activation],
    quantize: Callable[[Tape, Product, Activation], Quantized],
) -> None:
    """Replace all matrix products of a graph.

    Args:
        source: the float32 graph.
        path: the file to write.
        activations: statistics of `source`, from `measure_activations`.
        quantize: adds a quantized product to the tape. The last products stay floats if they cost little, and
            all that read probabilities.
    """
    model = open_model(source)
    graph = model.graph
    fuse_attention(model)
    products = find_products(graph)
    found = [activations[product.activation.name or ""] for product in products]
    costs = [
        activation.rows * np.prod(product.shape)
        for product, activation in zip(products, found, strict=True)
    ]
    end = len(products)
    while end and sum(costs[end - 1 :]) < FLOAT_SHARE * sum(costs):
        end -= 1
    centered = center_norms(graph, products[:end], activations)
    for number, (product, activation) in enumerate(zip(products, found, strict=True)):
        tape = Tape()
        current = product.nodes[0].inputs[0]
        assert current is not None
        # What it reads may be a product that was replaced: Mistral 3 has two in a row.
        product = dataclasses.replace(product, activation=current)
        mean = activation.mean
        if number >= end or is_probability(current):
            output, weight = multiply_floats(tape, product)
        elif product.activation.name in centered:
            activation = activation.centered()
            output, weight = quantize(tape, product, activation)
            weight = np.zeros_like(weight)  # the bias makes up for all of the mean
        else:
            output, weight = quantize(tape, product, activation)
        error = mean @ (product.matrix() - weight)
        bias = constant(tape, product, "bias", product.bias_vector() + error)
        _replace(graph, product, tape, tape.op("Add", [output, bias]))
    graph.opset_imports[DOMAIN] = 1
    RemoveUnusedNodesPass()(model)
    write_model(model, path)


def is_probability(value: onnx_ir.Value) -> bool:
    """Return True if a value is the result of a softmax, or has one as a part."""
    node = value.producer()
    if node is None:
        return False
    if node.op_type in ("Concat", "Pad"):
        return any(part is not None and is_probability(part) for part in node.inputs)
    return node.op_type == "Softmax"


def center_norms(
    graph: onnx_ir.Graph, products: Sequence[Product], activations: Mapping[str, Activation]
) -> set[str | None]:
    """Subtract the mean from the output of each norm that only these products read; return their names."""
    readers = {product.nodes[0] for product in products}
    centered: set[str | None] = set()
    for product in products:
        value = product.activation
        norm = value.producer()
        if value.name in centered or norm is None or norm.op_type != "LayerNormalization":
            continue
        offset = norm.inputs[2] if len(norm.inputs) > 2 else None
        if offset is None or offset.const_value is None or not set(value.consumers()) <= readers:
            continue
        mean = activations[value.name or ""].mean
        new = onnx_ir.tensor(offset.const_value.numpy() - mean, name=f"{offset.name}.centered")
        initializer = onnx_ir.Value(
            name=new.name, const_value=new, shape=onnx_ir.Shape(new.shape.numpy())
        )
        initializer.dtype = new.dtype
        graph.register_initializer(initializer)
        norm.replace_input_with(2, initializer)
        centered.add(value.name)
    return centered


def zero_point(activation: Activation) -> int:
    """Return the 8-bit value of zero: the share of the negative values in the range of the median channel."""
    low = max(-float(np.median(activation.lowest)), 0.0)
    high = max(float(np.median(activation.highest)), 0.0)
    share = low / max(low + high, SMALLEST_SCALE)
    return int(np.clip(round(LEVELS * share), MIN_LEVELS, LEVELS - MIN_LEVELS))


@dataclass(frozen=True)
class TokenInput:
    """A quantized activation ``[..., K]`` with a scale for each token."""

    values: onnx_ir.Value
    """uint8 ``[..., K]``."""
    scales: onnx_ir.Value
    """float32 ``[..., 1]``."""
    zero_point: onnx_ir.Value
    """uint8 scalar."""


def quantize_tokens(tape: Tape, activation: onnx_ir.Value, zero: int) -> TokenInput:
    """Add the quantization of an activation.

    The scale of a token is the smallest one with which neither its largest nor its smallest value is cut.
    """

    def scalar(what: str, number: NDArray[np.generic]) -> onnx_ir.Value:
        return tape.initializer(onnx_ir.tensor(number, name=f"{activation.name}.{what}"))

    axis = scalar("last_axis", np.array([-1]))
    steps = []
    for operator, levels in (("ReduceMax", LEVELS - zero), ("ReduceMin", -zero)):
        extreme = tape.op(operator, [activation, axis])
        step = scalar(f"{operator}.step", np.array(1 / levels, np.float32))
        steps.append(tape.op("Mul", [extreme, step]))
    smallest = scalar("smallest_scale", np.array(SMALLEST_SCALE, np.float32))
    scales = tape.op("Max", [*steps, smallest])
    one = scalar("one", np.array(1, np.float32))
    zero_value = scalar("zero_point", np.array(zero, np.uint8))
    scaled = tape.op("Div", [activation, scales])
    return TokenInput(tape.op("QuantizeLinear", [scaled, one, zero_value]), scales, zero_value)


def multiply_floats(tape: Tape, product: Product) -> Quantized:
    """Add a product in float32, whose weight is stored in 16 bits."""
    weight = product.matrix()
    stored = weight.astype(np.float16)
    if not np.isfinite(stored).all():
        values = constant(tape, product, "fp32", weight)
        return tape.op("MatMul", [product.activation, values]), weight
    float32 = {"to": onnx_ir.DataType.FLOAT}
    values = tape.op("Cast", [constant(tape, product, "fp16", stored)], attributes=float32)
    return tape.op("MatMul", [product.activation, values]), stored.astype(np.float32)


def multiply_blocks(tape: Tape, product: Product) -> Quantized:
    """Add a product whose weights have 4 bits, and a scale for each block of rows of each column.

    ONNX Runtime quantizes the activation to int8, with a scale for each block of each token.
    """
    weight = product.matrix()
    rows, columns = product.shape
    count = -(-rows // BLOCK_LENGTH)
    blocks = np.zeros((columns, count * BLOCK_LENGTH), np.float32)
    blocks[:, :rows] = weight.T
    values, scales = quantize_blocks(blocks.reshape(columns, count, BLOCK_LENGTH))
    restored = (values.astype(np.float32) - 8) * scales[..., None]
    operands = [
        product.activation,
        constant(tape, product, "int4", values[..., 0::2] | values[..., 1::2] << 4),
        constant(tape, product, "scales", scales.reshape(-1)),
    ]
    sizes = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK_LENGTH, "accuracy_level": 4}
    output = tape.op("MatMulNBits", operands, attributes=sizes, domain=DOMAIN)
    return output, restored.reshape(columns, -1)[:, :rows].T


def quantize_blocks(
    blocks: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize blocks ``[..., length]`` to the values 0 to 15, where 8 is zero.

    The weight of largest magnitude becomes 0, since there is one step more below zero than above.

    Returns:
        The values, of the same shape, and the scales ``[...]``.
    """
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)
    scales = largest / -8
    values = np.rint(blocks / np.where(scales == 0, 1, scales)) + 8
    return np.clip(values, 0, 15).astype(np.uint8), scales[..., 0].astype(np.float32)


def constant(tape: Tape, product: Product, what: str, values: NDArray[np.generic]) -> onnx_ir.Value:
    """Return a new weight of the graph, named after the weight of the product."""
    name = f"{product.weight.name}.{what}"
    return tape.initializer(onnx_ir.tensor(np.ascontiguousarray(values), name=name))


def _replace(graph: onnx_ir.Graph, product: Product, tape: Tape, output: onnx_ir.Value) -> None:
    """Put the nodes and weights of the tape in the place of a product."""
    for value in tape.initializers:
        graph.register_initializer(value)
    old = product.output
    name, output.shape = old.name, old.shape
    if old.dtype is not None:
        output.dtype = old.dtype
    graph.insert_before(product.nodes[0], tape.nodes)
    old.replace_all_uses_with(output, replace_graph_outputs=True)
    graph.remove(product.nodes, safe=True)
    output.name = name
