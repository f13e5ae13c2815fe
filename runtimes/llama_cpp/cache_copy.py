"""Copies of a KV cache of llama.cpp, for `llama_state_seq_set_data`."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InferenceError
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp

_SEQUENCE_HEAD = struct.pack("<Ii", 0xAF143CD8, 0)
"""What begins llama.cpp's copy of a sequence: a mark, and the number of the sequence."""


def copy_cache(context: Any, positions: NDArray[np.int32], *, slides: bool) -> NDArray[np.uint8]:
    """Return a copy of what the KV cache of a context holds, uint8 ``[bytes]``, for `split_copy`.

    Args:
        context: llama.cpp's context, with one sequence.
        positions: int32 ``[n]`` that go behind llama.cpp's bytes.
        slides: layers of the model have a sliding window.

    Raises:
        InferenceError: llama.cpp failed.
    """
    copy = (_copy_state if slides else _copy_sequence)(context, positions.nbytes)
    copy[copy.nbytes - positions.nbytes :] = positions.view(np.uint8)
    return copy


def split_copy(copy: NDArray[np.uint8], count: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Split a copy of `copy_cache` into llama.cpp's bytes and `count` positions; fewer if it is too short."""
    size = max(0, copy.nbytes - 4 * count)
    rest = copy[size:]
    return copy[:size], np.frombuffer(rest[: rest.nbytes // 4 * 4].tobytes(), np.int32)


def _copy_sequence(context: Any, room: int) -> NDArray[np.uint8]:
    """Copy the sequence, with room for further bytes at the end."""
    llama = load_llama_cpp()
    size = llama.llama_state_seq_get_size(context, 0)
    copy = np.empty(size + room, np.uint8)
    pointer = copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    _check(llama.llama_state_seq_get_data(context, pointer, size, 0) == size)
    return copy


def _copy_state(context: Any, room: int) -> NDArray[np.uint8]:
    """Copy the whole state in the format of a sequence.

    llama.cpp's copy of a sequence leaves out what sliding layers no longer see from its end, so that a
    restored cache could not be truncated. Its copy of the whole state leaves out nothing. Behind the name of
    the architecture, a string with its length, this has the format of a sequence's copy behind the head.
    """
    llama, head = load_llama_cpp(), len(_SEQUENCE_HEAD)
    size = llama.llama_state_get_size(context)
    buffer = np.empty(head + size + room, np.uint8)
    state = buffer[head:]
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    _check(llama.llama_state_get_data(context, pointer, size) == size)
    copy = buffer[4 + int.from_bytes(state[:4].tobytes(), "little") :]
    copy[:head] = np.frombuffer(_SEQUENCE_HEAD, np.uint8)
    return copy


def _check(copied: bool) -> None:
    if not copied:
        raise InferenceError("llama.cpp could not copy its KV cache")
