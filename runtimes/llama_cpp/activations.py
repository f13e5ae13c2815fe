"""Mean squared activations at each matrix of a decoder, recorded while llama.cpp evaluates its graph."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from edgevlm.errors import InferenceError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp

_TYPE_F32, _OP_MUL_MAT = 0, 29
"""Numbers of ``GGML_TYPE_F32`` and ``GGML_OP_MUL_MAT``."""


class _Tensor(ctypes.Structure):
    """The beginning of llama.cpp's ``struct ggml_tensor``."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class RecordingDecoder(LlamaCppDecoder):
    """A decoder on the CPU that records the activations at each matrix; arguments as of `LlamaCppDecoder`.

    Every decoded entry counts once. The feed-forward network of the last layer and the output layer count
    entries with logits alone, since llama.cpp computes nothing else there.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._sums: dict[str, NDArray[np.float64]] = {}
        self._counts: dict[str, int] = {}
        self._error: Exception | None = None
        self._eval_callback = load_llama_cpp().ggml_backend_sched_eval_callback(self._observe)
        super().__init__(*arguments, **options)

    def mean_squares(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean square of each input channel, float32 ``[columns]``, by the name of the matrix.

        Raises:
            InferenceError: an activation could not be read.
        """
        if self._error is not None:
            raise InferenceError(
                f"activations of {self._path} could not be read: {self._error}"
            ) from self._error
        return {
            name: (sums / self._counts[name]).astype(np.float32)
            for name, sums in self._sums.items()
        }

    def _observe(self, address: int, ask: bool, _: object) -> bool:
        """Record the input of a matrix product. llama.cpp asks first, and shows the computed node then.

        Exceptions cannot pass through C. They are kept for `mean_squares`.
        """
        try:
            node = _Tensor.from_address(address)
            if node.op == _OP_MUL_MAT:
                matrix = _Tensor.from_address(node.src[0])
                activation = _Tensor.from_address(node.src[1])
                if activation.type == _TYPE_F32 and matrix.name.endswith(b".weight"):
                    if not ask:
                        self._record(matrix.name.decode(), activation)
                    return True
        except Exception as error:
            self._error = self._error or error
        return not ask  # False after a computed node would end the evaluation

    def _record(self, name: str, activation: _Tensor) -> None:
        columns = activation.ne[0]
        rows = int(np.prod(activation.ne[1:]))
        if not rows:  # no entry of this batch has logits
            return
        first = np.ctypeslib.as_array((ctypes.c_float * 1).from_address(activation.data))
        values = as_strided(first, tuple(activation.ne)[::-1], tuple(activation.nb)[::-1])
        values = values.reshape(rows, columns)
        sums = np.einsum("ij,ij->j", values, values, dtype=np.float64)
        if not np.isfinite(sums).all():
            raise ValueError(f"the input of {name} has values that are not finite")
        self._sums[name] = self._sums.get(name, 0.0) + sums
        self._counts[name] = self._counts.get(name, 0) + rows
