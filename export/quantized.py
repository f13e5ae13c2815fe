"""Refuse checkpoints whose weights are quantized already, found by configuration, names and types.

edgevlm quantizes into types of llama.cpp, so weights of GPTQ, AWQ, bitsandbytes and others would be rounded
twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edgevlm.errors import ExportError
from edgevlm.export.front_matter import base_model

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of transformers, of older compressed-tensors and of MLX."""
TENSORS = {
    r"\.(?:qweight|qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(?:weight_packed|weight_shape|weight_zero_point)$": "compressed-tensors",
    r"\.weight_scale_inv$": "FP8",
    r"\.(?:weight_scale|input_scale|activation_scale|k_scale|v_scale)$": "FP8 or int8 with scales",
    r"\.(?:SCB|weight_format|absmax|quant_map|nested_absmax|nested_quant_map)$": "bitsandbytes",
    r"\.quant_state\.bitsandbytes__": "bitsandbytes",
    r"\.(?:W_q|weight\.W_q)$": "HQQ",
    r"\.weight\._(?:data|scale|shift)$": "quanto",
    r"_weight_(?:qdata|scale)$": "torchao",
    r"_(?:blocks|scales)$": "MXFP4",
    r"\.(?:scales|biases)$": "GPTQ, AWQ or MLX",
}
"""Endings of tensor names to the quantizer that uses them."""
FLOATS = ("F64", "F32", "F16", "BF16")
"""Types in safetensors of weights that are not quantized."""


def check_config(data: Mapping[str, Any], path: Path) -> None:
    """Check config.json and its parts for text and vision.

    Raises:
        ExportError: they say that the weights are quantized.
    """
    for part in (data, data.get("text_config"), data.get("vision_config")):
        if not isinstance(part, Mapping):
            continue
        for key in CONFIG_KEYS:
            if part.get(key) is not None:
                raise refusal(path, f"{key} says {describe(part[key])}")


def describe(entry: object) -> str:
    """Describe a quantization in a few words: method and bits."""
    if not isinstance(entry, Mapping):
        return repr(entry)
    words = [
        str(entry.get("quant_method") or entry.get("mode") or "a method that it does not name")
    ]
    if isinstance(entry.get("format"), str):
        words.append(entry["format"])
    bits = entry.get("bits") or entry.get("nbits")
    if entry.get("load_in_4bit"):
        bits = 4
    elif entry.get("load_in_8bit"):
        bits = 8
    if isinstance(bits, int):
        words.append(f"{bits} bits")
    return ", ".join(words)


def check_tensors(tensors: Iterable[tuple[str, str]], file: Path) -> None:
    """Check the names and types of all tensors.

    Args:
        tensors: names, and types in safetensors.
        file: the file that holds them, for the message.

    Raises:
        ExportError: a quantizer wrote a tensor, or a weight is not a floating-point number.
    """
    tensors = list(tensors)
    for pattern, quantizer in TENSORS.items():
        for name, _ in tensors:
            if re.search(pattern, name):
                raise refusal(file, f"{name} is a tensor of {quantizer}")
    for name, dtype in tensors:
        if dtype not in FLOATS:
            raise refusal(file, f"{name} is stored as {dtype}")


def refusal(file: Path, reason: str) -> ExportError:
    """Return the error for a quantized checkpoint."""
    base = base_model(file.parent)
    return ExportError(
        f"{file} belongs to a checkpoint that is quantized already ({reason}); edgevlm quantizes by itself, "
        f"from weights that are not: export the checkpoint that this one was made from"
        f"{f', {base}' if base else ''}"
    )
