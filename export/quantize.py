"""Quantize a GGUF file with llama.cpp's quantizer."""

from __future__ import annotations

import ctypes
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import gguf
import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from edgevlm.errors import ExportError
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.gguf_header import GgufHeader, TensorInfo
from edgevlm.runtimes.llama_cpp.library import failure_reason, load_llama_cpp, recent_errors

Importance: TypeAlias = "Mapping[str, NDArray[np.float32]]"
"""Mean square of what each input channel of a matrix is multiplied by, float32 ``[columns]``, by the name of
the matrix in the GGUF file."""

CONVOLUTIONS = ("shortconv.conv.weight", "ssm_conv1d.weight")
"""Tensors of hybrids that are f32 in all files."""

BLOCK_TYPES = {
    "q8_0": "Q8_0",
    "q5_1": "Q5_1",
    "q5_0": "Q5_0",
    "q4_1": "Q4_1",
    "q4_0": "Q4_0",
    "iq4_nl": "IQ4_NL",
    "iq4_xs": "IQ4_XS",
    "q6_k": "Q6_K",
    "q5_k_m": "Q5_K",
    "q5_k_s": "Q5_K",
    "q4_k_m": "Q4_K",
    "q4_k_s": "Q4_K",
    "q3_k_l": "Q3_K",
    "q3_k_m": "Q3_K",
    "q3_k_s": "Q3_K",
    "iq3_m": "IQ3_S",
    "iq3_s": "IQ3_S",
    "iq3_xs": "IQ3_S",
    "iq3_xxs": "IQ3_XXS",
    "q2_k": "Q2_K",
    "iq2_m": "IQ2_S",
    "iq2_s": "IQ2_XS",
    "iq2_xs": "IQ2_XS",
    "iq2_xxs": "IQ2_XXS",
}
"""llama.cpp's file types to the block type of most of their matrices; without those of one bit."""

USE_IMPORTANCE = tuple(name for name in BLOCK_TYPES if name != "q8_0")
"""Types that llama.cpp rounds with the help of an importance matrix."""

NEED_IMPORTANCE = tuple(name for name in BLOCK_TYPES if name.startswith(("iq2", "iq3")))
"""Types that llama.cpp does not write without one, or badly."""


@dataclass(frozen=True)
class Quantized:
    """Sizes and types of a quantized file."""

    bits_per_weight: float
    """Bits of the file per parameter."""
    tensors: int
    """Matrices in the file."""
    fallback: dict[str, str]
    """Matrices whose rows are no multiple of the block size, to the type that llama.cpp chose."""


def quantize(
    source: Path,
    path: Path,
    file_type: str,
    *,
    importance: Importance | None = None,
    tensor_types: Mapping[str, GGMLQuantizationType] | None = None,
) -> None:
    """Write `source` (f16, bf16 or f32) in another type.

    Args:
        importance: weights of the input channels of each matrix; None: all weigh the same.
        tensor_types: types of single matrices by their names, instead of what the file type gives them.

    Raises:
        ExportError: llama.cpp cannot quantize the file.
    """
    llama = load_llama_cpp()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{file_type.upper()}")
    parameters.nthread = system.logical_cores()
    if importance:
        # The last entry of each array, without a name, is its end.
        entries = (llama.llama_model_imatrix_data * (len(importance) + 1))()
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = entries
    if tensor_types:
        overrides = (llama.llama_model_tensor_override * (len(tensor_types) + 1))()
        for override, (name, kind) in zip(overrides, tensor_types.items(), strict=False):
            override.pattern, override.type = f"^{re.escape(name)}$".encode(), int(kind)
        parameters.tt_overrides = overrides
    recent_errors.clear()
    failed = llama.llama_model_quantize(
        os.fsencode(source), os.fsencode(path), ctypes.byref(parameters)
    )
    if failed:
        raise ExportError(
            f"llama.cpp cannot quantize {source.name} to {file_type} (code {failed}){failure_reason()}"
        )


def inspect(path: Path, file_type: str) -> Quantized:
    """Return sizes and types of a file.

    Args:
        file_type: the type that was asked for.
    """
    matrices = [
        tensor
        for tensor in list_tensors(path)
        if len(tensor.shape) > 1 and not tensor.name.endswith(CONVOLUTIONS)
    ]
    block_type = GGMLQuantizationType[BLOCK_TYPES.get(file_type, file_type.upper())]
    block, _ = gguf.GGML_QUANT_SIZES[block_type]
    return Quantized(
        bits_per_weight=bits_per_weight(path),
        tensors=len(matrices),
        fallback={
            tensor.name: GGMLQuantizationType(tensor.type_number).name.lower()
            for tensor in matrices
            if tensor.shape[0] % block
        },
    )


def bits_per_weight(path: Path) -> float:
    """Return the bits of the file per parameter."""
    parameters = sum(math.prod(tensor.shape) for tensor in list_tensors(path))
    return path.stat().st_size * 8 / parameters


def list_tensors(path: Path) -> list[TensorInfo]:
    """Return the tensors of a GGUF file, without reading its vocabulary."""
    return GgufHeader(np.memmap(path, np.uint8, mode="r").data).tensors()
