"""Weights of float32 graphs, stored in 16 bits where that changes no value.

Published checkpoints have 16 bits. One ONNX file holds 2 GB, which is too little for the 675 million weights
of Qwen2-VL's tower in float32, and enough in 16 bits.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

SMALLEST = 1 << 13
"""Weights with fewer values stay as they are."""
TYPES = (onnx_ir.DataType.BFLOAT16, onnx_ir.DataType.FLOAT16)


def halve_weights(model: onnx_ir.Model) -> None:
    """Store each float32 weight whose values have 16 bits in 16 bits, with a cast before its use."""
    for weight in list(model.graph.initializers.values()):
        values = weight.const_value
        if values is None or values.dtype != onnx_ir.DataType.FLOAT or values.size < SMALLEST:
            continue
        kind = find_half_type(values)
        if kind is not None:
            _store(model.graph, weight, values, kind)


def find_half_type(values: onnx_ir.TensorProtocol) -> onnx_ir.DataType | None:
    """Return the type of 16 bits that holds all these values exactly; None if neither does."""
    array = values.numpy()
    for kind in TYPES:
        with np.errstate(over="ignore"):
            if np.array_equal(array.astype(kind.numpy()).astype(np.float32), array):
                return kind
    return None


def stored_weight(value: onnx_ir.Value | None) -> onnx_ir.Value | None:
    """Return the constant that a value is, or is a cast of; None if it is computed."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Cast":
        value = node.inputs[0]
    return value if value is not None and value.const_value is not None else None


def _store(
    graph: onnx_ir.Graph,
    weight: onnx_ir.Value,
    values: onnx_ir.TensorProtocol,
    kind: onnx_ir.DataType,
) -> None:
    """Put a stored weight and a cast in the place of a weight."""
    stored = onnx_ir.Value(
        name=f"{weight.name}.stored",
        shape=weight.shape,
        type=onnx_ir.TensorType(kind),
        const_value=onnx_ir.LazyTensor(
            lambda: onnx_ir.tensor(values.numpy().astype(kind.numpy()), dtype=kind),
            dtype=kind,
            shape=onnx_ir.Shape(values.shape.numpy()),
        ),
    )
    graph.register_initializer(stored)
    cast = onnx_ir.node("Cast", [stored], attributes={"to": onnx_ir.DataType.FLOAT})
    graph.insert_before(graph[0], cast)
    restored = cast.outputs[0]
    restored.shape, restored.dtype = weight.shape, onnx_ir.DataType.FLOAT
    weight.replace_all_uses_with(restored)
    name = str(weight.name)
    del graph.initializers[name]
    weight.name, restored.name = None, name
