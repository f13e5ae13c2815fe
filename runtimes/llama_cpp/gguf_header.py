"""The header of a GGUF file, without the vocabulary.

`gguf.GGUFReader` creates a Python object for each string of the vocabulary, which takes seconds for 257,000
tokens. This parser skips what nobody asked for.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

_SCALAR_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Size in bytes of GGUF's metadata value types that have a fixed size."""

_INTEGERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 7: "?", 10: "Q", 11: "q"}
"""GGUF's metadata value types that are integers or bools, as `struct` names them."""

_UINT32, _STRING, _ARRAY = 4, 8, 9


class TensorInfo(NamedTuple):
    """What the header says about one tensor."""

    name: str
    shape: tuple[int, ...]
    """Columns first, as GGUF has it."""
    type_number: int
    """GGML's number of the type."""
    offset: int
    """Offset of the data in the file, in bytes."""


class GgufHeader:
    """A parser of the header of a GGUF file.

    Its methods raise ValueError, KeyError, IndexError or struct.error for a damaged file.

    Args:
        data: the file.
    """

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0
        magic, version = self._read("<4sI")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"not a GGUF file of version 2 or 3: {magic!r}, {version}")
        self._tensor_count, self._pair_count = self._read("<QQ")
        self._pairs_offset = self._offset

    def integers(self, name: str) -> list[int]:
        """Return a value of the metadata that is an array of integers or bools; empty if there is none."""
        for key, kind in self._pairs():
            if key != name.encode():
                self._skip_value(kind)
            elif kind == _ARRAY:
                item_kind, length = self._read("<IQ")
                return list(self._read(f"<{length}{_INTEGERS[item_kind]}"))
            else:
                break
        return []

    def tensors(self) -> list[TensorInfo]:
        """Return all tensors, in the order of the file."""
        alignment = 32
        for key, kind in self._pairs():
            if key == b"general.alignment" and kind == _UINT32:
                (alignment,) = self._read("<I")
            else:
                self._skip_value(kind)
        found = []
        for _ in range(self._tensor_count):
            name = self._string().decode()
            (rank,) = self._read("<I")
            shape = self._read(f"<{rank}Q")
            type_number, offset = self._read("<IQ")
            found.append(TensorInfo(name, shape, type_number, offset))
        start = math.ceil(self._offset / alignment) * alignment
        return [tensor._replace(offset=start + tensor.offset) for tensor in found]

    def tensor(self, name: str) -> tuple[tuple[int, int], int, int]:
        """Return shape ``(rows, columns)``, GGML type number and byte offset of a matrix."""
        found = {tensor.name: tensor for tensor in self.tensors()}.get(name)
        if found is None:
            raise ValueError("no such tensor")
        if len(found.shape) != 2:
            raise ValueError(f"not a matrix: {found.shape}")
        columns, rows = found.shape
        return (rows, columns), found.type_number, found.offset

    def _pairs(self) -> Iterator[tuple[bytes, int]]:
        """Iterate over keys and types of the metadata; the caller reads or skips each value."""
        self._offset = self._pairs_offset
        for _ in range(self._pair_count):
            key = self._string()
            (kind,) = self._read("<I")
            yield key, kind

    def _read(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(layout, self._data, self._offset)
        self._offset += struct.calcsize(layout)
        return values

    def _string(self) -> bytes:
        (length,) = self._read("<Q")
        start, self._offset = self._offset, self._offset + length
        return bytes(self._data[start : self._offset])

    def _skip_value(self, kind: int) -> None:
        if kind == _STRING:
            self._string()
        elif kind != _ARRAY:
            self._offset += _SCALAR_SIZES[kind]
        else:
            item_kind, length = self._read("<IQ")
            if item_kind == _STRING:
                self._skip_strings(length)
            else:
                self._offset += _SCALAR_SIZES[item_kind] * length

    def _skip_strings(self, count: int) -> None:
        unpack, data, offset = struct.Struct("<Q").unpack_from, self._data, self._offset
        for _ in range(count):
            offset += 8 + unpack(data, offset)[0]
        self._offset = offset
