"""Read and write a graph weight by weight, in one ONNX file or with a second file for the weights."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import external_data

PROTOBUF_LIMIT = 2**31 - 1
"""Largest ONNX file in bytes, without a second file for the weights."""

LARGE_WEIGHT = 2**20
"""Bytes from which a weight is left in its file, or put into a second one. ONNX Runtime needs shapes in the
model."""

_LENGTH_DELIMITED = 2
"""The wire type of a field that is bytes after their length."""
# Tags of fields in onnx.proto3, all of that type.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = (
    number << 3 | _LENGTH_DELIMITED for number in (7, 5, 9)
)


def write_model(model: onnx_ir.Model, path: Path) -> None:
    """Write a model, with one weight in memory at a time if they are lazy. `onnx.save` holds three copies.

    The weights of a model that is too large for one file go to `weights_path`.

    Args:
        model: its graph has no weights after the call.
        path: the file to write.
    """
    weights = [
        (name, value.const_value)
        for name, value in model.graph.initializers.items()
        if value.const_value is not None
    ]
    values = [model.graph.initializers[name] for name, _ in weights]
    for value in model.graph.initializers.values():
        value.const_value = None  # the nodes still refer to the value
    model.graph.initializers.clear()
    proto = onnx_ir.to_proto(model)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    heads = [_tensor_head(name, weight) for name, weight in weights]
    sizes = [len(head) + weight.nbytes for head, (_, weight) in zip(heads, weights, strict=True)]
    length = len(graph) + sum(len(_tag(_GRAPH_INITIALIZER, size)) + size for size in sizes)
    if length > PROTOBUF_LIMIT:
        with WeightsFile(weights_path(path)) as data:
            for value, (_, weight) in zip(values, weights, strict=True):
                large = weight.nbytes >= LARGE_WEIGHT
                value.const_value = data.write(value, [weight.numpy()]) if large else weight
                model.graph.initializers.add(value)
        onnx_ir.save(model, path)
        for value in values:
            value.const_value = None
        model.graph.initializers.clear()
        return
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_tag(_MODEL_GRAPH, length))
        file.write(graph)
        for (_, weight), head, size in zip(weights, heads, sizes, strict=True):
            file.write(_tag(_GRAPH_INITIALIZER, size))
            file.write(head)
            file.write(weight.tobytes())


def weights_path(path: Path) -> Path:
    """Return the second file of a graph, if it has one."""
    return path.with_name(f"{path.name}.data")


class WeightsFile:
    """A file of the weights of a graph, written one after another; with a ``with`` statement.

    Args:
        path: the file to write, in the folder of the graph.
    """

    ALIGNMENT = 64
    """Bytes of which each weight begins at a multiple, as wide registers read them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb")

    def __enter__(self) -> WeightsFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(
        self, value: onnx_ir.Value, parts: Iterable[NDArray[np.generic]]
    ) -> onnx_ir.ExternalTensor:
        """Write a weight.

        Args:
            value: the weight in the graph, with its type and shape.
            parts: its values in this type, part by part.

        Returns:
            The place of the weight.
        """
        assert value.dtype is not None and value.shape is not None and value.name is not None
        self._file.write(bytes(-self._file.tell() % self.ALIGNMENT))
        start = self._file.tell()
        for part in parts:
            # bfloat16 is no type of Python's buffers
            self._file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        length = self._file.tell() - start
        shape = onnx_ir.Shape(value.shape.numpy())
        assert length == value.dtype.itemsize * int(np.prod(shape.numpy()))
        return onnx_ir.ExternalTensor(
            self._path.name,
            start,
            length,
            value.dtype,
            shape=shape,
            name=value.name,
            base_dir=self._path.parent,
        )


def open_model(path: Path) -> onnx_ir.Model:
    """Read a model whose large weights stay in the file until their values are needed.

    They are "external data" in the second file of the graph, or at their place in `path` itself. So a model
    that is saved beside it without weights, as by `onnx_ir.save`, finds them, too. `onnx.load` holds all
    weights in memory.

    Args:
        path: a file that `write_model` wrote.
    """
    proto = onnx.ModelProto()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for tag, start, end in _fields(data, 0, len(data)):
            if tag != _MODEL_GRAPH:
                _merge(proto, data, tag, start, end)
                continue
            for inner, first, last in _fields(data, start, end):
                if inner == _GRAPH_INITIALIZER and last - first >= LARGE_WEIGHT:
                    proto.graph.initializer.append(_external_tensor(data, first, last, path))
                else:
                    _merge(proto.graph, data, inner, first, last)
    model = onnx_ir.from_proto(proto)
    external_data.set_base_dir(model.graph, path.parent)
    return model


def _external_tensor(data: mmap.mmap, start: int, end: int, path: Path) -> onnx.TensorProto:
    """Return a ``TensorProto`` whose values stay in the file."""
    tensor = onnx.TensorProto()
    for tag, first, last in _fields(data, start, end):
        if tag == _TENSOR_RAW_DATA:
            place = {"location": path.name, "offset": str(first), "length": str(last - first)}
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            tensor.data_location = onnx.TensorProto.EXTERNAL
        else:
            _merge(tensor, data, tag, first, last)
    return tensor


def _merge(
    message: onnx.ModelProto | onnx.GraphProto | onnx.TensorProto,
    data: mmap.mmap,
    tag: int,
    start: int,
    end: int,
) -> None:
    """Add a field to a message."""
    delimited = tag & 7 == _LENGTH_DELIMITED
    head = _tag(tag, end - start) if delimited else bytes([tag])
    message.MergeFromString(head + data[start:end])


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield tag, start and end of the value of each field of a message; tags here have one byte.

    The value of a field with a length is what follows the length.
    """
    while start < end:
        tag = data[start]
        length, after = _varint(data, start + 1)
        if tag & 7 == _LENGTH_DELIMITED:
            yield tag, after, after + length
            start = after + length
        else:  # a number: fields of models, graphs and tensors have no other form
            yield tag, start + 1, after
            start = after


def _varint(data: mmap.mmap, start: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, the lowest first, and the index after it."""
    value = shift = 0
    while True:
        byte = data[start]
        value |= (byte & 0x7F) << shift
        start, shift = start + 1, shift + 7
        if byte < 0x80:
            return value, start


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
