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


def copy_cache(context: Any, *, slides: bool) -> NDArray[np.uint8]:
    """Return a copy of what the KV cache of a context holds, uint8 ``[bytes]``.

    Args:
        context: llama.cpp's context, with one sequence.
        slides: layers of the model have a sliding window.

    Raises:
        InferenceError: llama.cpp failed.
    """
    return _copy_state(context) if slides else _copy_sequence(context)


def _copy_sequence(context: Any) -> NDArray[np.uint8]:
    llama = load_llama_cpp()
    copy = np.empty(llama.llama_state_seq_get_size(context, 0), np.uint8)
    pointer = copy.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    _check(llama.llama_state_seq_get_data(context, pointer, copy.nbytes, 0) == copy.nbytes)
    return copy


def _copy_state(context: Any) -> NDArray[np.uint8]:
    """Copy the whole state in the format of a sequence.

    llama.cpp's copy of a sequence leaves out what sliding layers no longer see from its end, so that a
    restored cache could not be truncated. Its copy of the whole state leaves out nothing. Behind the name of
    the architecture, a string with its length, this has the format of a sequence's copy behind the head.
    """
    llama, head = load_llama_cpp(), len(_SEQUENCE_HEAD)
    size = llama.llama_state_get_size(context)
    buffer = np.empty(head + size, np.uint8)
    state = buffer[head:]
    pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
    _check(llama.llama_state_get_data(context, pointer, size) == size)
    copy = buffer[4 + int.from_bytes(state[:4].tobytes(), "little") :]
    copy[:head] = np.frombuffer(_SEQUENCE_HEAD, np.uint8)
    return copy


def _check(copied: bool) -> None:
    if not copied:
        raise InferenceError("llama.cpp could not copy its KV cache")
