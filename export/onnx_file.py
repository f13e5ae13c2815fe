"""Write a graph to one ONNX file, weight by weight."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir

from edgevlm.errors import ExportError

PROTOBUF_LIMIT = 2**31 - 1
"""Largest ONNX file in bytes, without a second file for the weights."""

# Tags of the fields in onnx.proto3, all of wire type 2: bytes after their length.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = (number << 3 | 2 for number in (7, 5, 9))


def write_model(model: onnx_ir.Model, path: Path) -> None:
    """Write a model, with one weight in memory at a time if they are lazy. `onnx.save` holds three copies.

    Args:
        model: its graph has no weights after the call.
        path: the file to write.

    Raises:
        ExportError: the model is too large for one file.
    """
    weights = [
        (name, value.const_value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    ]
    model.graph.initializers.clear()
    proto = onnx_ir.to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_tensor_head(name, weight) for name, weight in weights]
    sizes = [len(head) + weight.nbytes for head, (_, weight) in zip(heads, weights, strict=True)]
    length = len(graph) + sum(len(_tag(_GRAPH_INITIALIZER, size)) + size for size in sizes)
    if length > PROTOBUF_LIMIT:
        raise ExportError(
            f"the vision graph takes {length / 1e9:.1f} GB, one ONNX file holds "
            f"{PROTOBUF_LIMIT / 1e9:.1f} GB; towers of this size cannot be exported yet"
        )
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_tag(_MODEL_GRAPH, length))
        file.write(graph)
        for (_, weight), head, size in zip(weights, heads, sizes, strict=True):
            file.write(_tag(_GRAPH_INITIALIZER, size))
            file.write(head)
            file.write(weight.tobytes())


def _tensor_head(name: str, weight: onnx_ir.TensorProtocol) -> bytes:
    """Return a ``TensorProto`` up to the values."""
    tensor = onnx.TensorProto(dims=weight.shape.numpy(), data_type=weight.dtype.value, name=name)
    head: bytes = tensor.SerializeToString()
    return head + _tag(_TENSOR_RAW_DATA, weight.nbytes)


def _tag(tag: int, length: int) -> bytes:
    """Return the bytes before a field of `length` bytes: the tag, then the length in groups of seven bits."""
    encoded = bytearray([tag])
    while length > 0x7F:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    encoded.append(length)
    return bytes(encoded)
