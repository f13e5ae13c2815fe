"""The language model as GGUF, written tensor by tensor.

`edgevlm.export.architectures` says which language models, and how llama.cpp's differ from transformers'. The
output layer is the embeddings or one of its own. Matrices are written as f16, bf16 or f32; vectors and
convolutions always as f32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import PretrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from edgevlm.errors import ExportError
from edgevlm.export.architectures import Architecture, find_architecture
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_tensors import gguf_names, gguf_shape
from edgevlm.export.families import Family
from edgevlm.export.text_settings import (
    head_size,
    inner_size,
    kv_heads,
    norm_epsilon,
    positive,
    rope_parameters,
    rotary_size,
)
from edgevlm.export.tokenizer import Vocabulary

UNQUANTIZED = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}

ROWS_AT_ONCE = 1 << 14
"""Rows of a tensor that are converted at once."""
NO_ROTATION = 1e30
"""Divisor of a rotary frequency so large that no position is rotated."""


def write_decoder(
    checkpoint: Checkpoint,
    family: Family,
    vocabulary: Vocabulary,
    path: Path,
    *,
    file_type: str = "f16",
    chat_template: str | None = None,
    progress: bool = True,
) -> None:
    """Write the language model without quantization. Only one tensor is in memory at a time.

    Args:
        file_type: one of `UNQUANTIZED`.

    Raises:
        ExportError: the language model is not supported, a tensor is missing or unknown, or a value is
            outside the range of the type.
    """
    config = checkpoint.config
    architecture = find_architecture(config)
    text = config.get_text_config()
    matrix_type, llama_type = UNQUANTIZED[file_type]
    writer = GGUFWriter(path, architecture.gguf_name)
    names = gguf_names(checkpoint, family, architecture)
    writer.add_type("model")
    writer.add_name(checkpoint.repository)
    writer.add_license(checkpoint.license())
    writer.add_file_type(llama_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hyperparameters(writer, architecture, config)
    vocabulary.write(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    kernels = {target for name, target in names.items() if len(checkpoint.tensors[name].shape) == 3}
    planned: list[tuple[str, Callable[[], NDArray[np.generic]]]] = []

    def plan(
        name: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor], source: str
    ) -> None:
        matrix = len(shape) > 1 and name not in kernels
        kind = matrix_type if matrix else GGMLQuantizationType.F32
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape))
        # NumPy has no bf16, so the values are bytes; the shape is still in elements.
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), count // block * size, raw_dtype=kind
        )
        planned.append((source, lambda: encode(read(), kind, source)))

    if factors := rope_factors(text):
        plan("rope_freqs.weight", (len(factors),), lambda: torch.tensor(factors), "rope factors")
    for entry in checkpoint.by_shard(lambda name: name in names):

        def read(name: str = entry.name) -> torch.Tensor:
            return adapt(checkpoint.read(name), name, architecture, text)

        plan(names[entry.name], gguf_shape(entry.shape), read, entry.name)
    with contextlib.closing(writer):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in tqdm(
            planned, desc=f"decoder {file_type}", unit="tensor", disable=not progress
        ):
            writer.write_tensor_data(tensor())


def write_hyperparameters(
    writer: GGUFWriter, architecture: Architecture, config: PretrainedConfig
) -> None:
    """Write the sizes and settings of the language model.

    Raises:
        ExportError: the rotary scaling is not supported, or a value is not a positive number.
    """
    text = config.get_text_config()
    head = head_size(text)
    writer.add_vocab_size(text.vocab_size)
    positive("max_position_embeddings", text.max_position_embeddings)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    inner = [inner_size(text, layer) for layer in range(text.num_hidden_layers)]
    writer.add_feed_forward_length(inner[0] if len(set(inner)) == 1 else inner)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(kv_heads(text))
    write_epsilon = (
        writer.add_layer_norm_eps if architecture.layer_norms else writer.add_layer_norm_rms_eps
    )
    write_epsilon(norm_epsilon(text))
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(rotary_size(text))
    rope = rope_parameters(text)
    writer.add_rope_freq_base(positive("rope_theta", rope.get("rope_theta")))
    if rope["rope_type"] not in architecture.rope_types:
        raise ExportError(
            f"rotary scaling of type {rope['rope_type']!r} cannot be exported; edgevlm exports "
            f"{', '.join(architecture.rope_types)} for {text.model_type}"
        )
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(positive("factor", rope.get("factor")))
    if rotary_size(text) != head and not architecture.partial_rotation:
        raise ExportError(
            f"partial_rotary_factor is {rope['partial_rotary_factor']}, edgevlm exports language models "
            f"that rotate whole heads (1.0)"
        )
    if architecture.write is not None:
        architecture.write(writer, config)


def hyperparameters(architecture: Architecture, config: PretrainedConfig) -> dict[str, object]:
    """Return what `write_hyperparameters` writes, by GGUF key; errors as of that function."""
    name = architecture.gguf_name
    writer = GGUFWriter(None, name)
    write_hyperparameters(writer, architecture, config)
    written = writer.kv_data[0].items()
    return {key: entry.value for key, entry in written if key.startswith(f"{name}.")}


def rope_factors(text: PretrainedConfig) -> list[float]:
    """Return the divisor of each rotary frequency of llama3 and of ``proportional``, else nothing.

    transformers computes the frequencies. A frequency of 0 rotates nothing; its divisor is `NO_ROTATION`.
    """
    rope = rope_parameters(text)
    if rope["rope_type"] not in ("llama3", "proportional"):
        return []
    kind = "full_attention" if "full_attention" in text.rope_parameters else None
    compute = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
    scaled, _ = compute(text, torch.device("cpu"), layer_type=kind)
    exponents = torch.arange(0, head_size(text), 2, dtype=torch.float32) / head_size(text)
    plain = rope["rope_theta"] ** -exponents
    return [float(factor) for factor in (plain / scaled).clamp(max=NO_ROTATION)]


def adapt(
    tensor: torch.Tensor, name: str, architecture: Architecture, text: PretrainedConfig
) -> torch.Tensor:
    """Convert a weight of transformers to llama.cpp: order of rotated rows, offset of norms."""
    if architecture.rope_halves_interleaved and ".self_attn." in name:
        if ".q_proj." in name:
            return interleave_halves(tensor, text.num_attention_heads)
        if ".k_proj." in name:
            return interleave_halves(tensor, text.num_key_value_heads)
    if name.endswith("norm.weight") and not name.endswith(".linear_attn.norm.weight"):
        return tensor.float() + architecture.norm_offset
    if architecture.adapt is not None:
        tensor = architecture.adapt(tensor, name, text)
    return tensor.reshape(gguf_shape(tuple(tensor.shape)))


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Interleave the first and second half of the rows of each head, ``[heads * size, ...]``."""
    split = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def encode(tensor: torch.Tensor, kind: GGMLQuantizationType, name: str) -> NDArray[np.generic]:
    """Return the bytes of a tensor in a GGUF type.

    Only some rows are in float32 at once, since embeddings of all layers take gigabytes (Gemma 4).

    Raises:
        ExportError: a value is not finite, in the checkpoint or in the type.
    """
    if tensor.ndim == 1:
        return encode_rows(tensor.float().numpy(), kind, name)
    encoded: NDArray[np.generic] | None = None
    for start in range(0, len(tensor), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        part = encode_rows(tensor[rows].float().numpy(), kind, name)
        if encoded is None:
            encoded = np.empty((len(tensor), *part.shape[1:]), part.dtype)
        encoded[rows] = part
    assert encoded is not None
    return encoded


def encode_rows(
    values: NDArray[np.float32], kind: GGMLQuantizationType, name: str
) -> NDArray[np.generic]:
    """Return the bytes of some rows of a tensor; see `encode`."""
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ExportError(f"{name} has values that are not finite; the checkpoint is damaged")
    if kind == GGMLQuantizationType.F16 and max(-low, high) > np.finfo(np.float16).max:
        raise ExportError(f"{name} has values beyond f16's range; export with --decoder bf16")
    encoded: NDArray[np.generic] = gguf.quantize(values, kind)
    return encoded
