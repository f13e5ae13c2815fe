"""The language model as GGUF, written tensor by tensor.

Covered: Llama, Gemma and Gemma 2 as transformers holds them, with an output layer that is the embeddings or
one of its own (Gemma: the embeddings only, llama.cpp has no other) and the rotary scalings default, linear
and llama3. Matrices are written as f16, bf16 or f32; vectors always as f32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.export.tokenizer import Vocabulary
from edgevlm.export.weights import TensorEntry

UNQUANTIZED = {
    "f32": (GGMLQuantizationType.F32, LlamaFileType.ALL_F32),
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "bf16": (GGMLQuantizationType.BF16, LlamaFileType.MOSTLY_BF16),
}
LARGEST = 2**31 - 1
"""Of a number in GGUF's header; more is a mistake."""
EMBEDDINGS = "decoder.embed_tokens.weight"
HEAD = "head.weight"
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")
"""What every layer of every architecture has."""


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp's implementation of a language model differs from transformers'."""

    gguf: gguf.MODEL_ARCH
    activation: str
    rope_halves_interleaved: bool
    """llama.cpp rotates neighbours, transformers halves: rows of q and k change places."""
    norm_offset: float
    """Added to norms' weights (Gemma multiplies by one plus the weight)."""
    untied: bool
    """Whether llama.cpp reads an output layer of its own."""
    norms: tuple[str, ...] = NORMS
    """Of each layer."""


ARCHITECTURES = {
    "llama": Architecture(gguf.MODEL_ARCH.LLAMA, "silu", True, 0.0, True),
    "gemma": Architecture(gguf.MODEL_ARCH.GEMMA, "gelu_pytorch_tanh", False, 1.0, False),
    "gemma2": Architecture(
        gguf.MODEL_ARCH.GEMMA2,
        "gelu_pytorch_tanh",
        False,
        1.0,
        False,
        (*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
}
"""``model_type`` of the text configuration to what llama.cpp makes of it."""


def find_architecture(config: PretrainedConfig) -> Architecture:
    """Raises:
    ExportError: a language model that is not covered, or a variant that llama.cpp computes otherwise.
    """
    text = config.get_text_config()
    if text.model_type not in ARCHITECTURES:
        raise ExportError(
            f"language models of type {text.model_type!r} cannot be exported; edgevlm exports "
            f"{', '.join(ARCHITECTURES)}"
        )
    architecture = ARCHITECTURES[text.model_type]
    activation = getattr(text, "hidden_activation", None) or text.hidden_act
    if activation != architecture.activation:
        raise ExportError(
            f"the language model's activation is {activation!r}, llama.cpp computes "
            f"{architecture.activation!r}"
        )
    if text.model_type == "gemma2":
        check_gemma2(text)
    return architecture


def check_gemma2(text: PretrainedConfig) -> None:
    """What llama.cpp fixes in code for Gemma 2.

    Raises:
        ExportError: another value in the configuration.
    """
    pattern = ["sliding_attention", "full_attention"] * text.num_hidden_layers
    if text.layer_types != pattern[: text.num_hidden_layers]:
        raise ExportError(
            "layer_types of Gemma 2 must alternate sliding and full attention for llama.cpp"
        )
    largest = text.num_hidden_layers == 46  # by which llama.cpp knows the 27B model
    scalar = text.hidden_size // text.num_attention_heads if largest else text.head_dim
    if text.query_pre_attn_scalar != scalar:
        raise ExportError(
            f"query_pre_attn_scalar is {text.query_pre_attn_scalar}, llama.cpp computes with {scalar}"
        )
    if text.final_logit_softcapping is None or text.attn_logit_softcapping is None:
        raise ExportError("this Gemma 2 has no softcapping, llama.cpp always applies it")


def context_length(config: PretrainedConfig, attention: str) -> int:
    """Positions that the checkpoint was made for.

    A prompt whose positions all see each other is cut by llama.cpp at a sliding window, by transformers
    not: there the window is the limit.
    """
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if attention == "prefix" and window is not None:
        return min(int(text.max_position_embeddings), int(window))
    return int(text.max_position_embeddings)


def head_size(text: PretrainedConfig) -> int:
    """Width of one attention head."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


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
    """Write the language model unquantized; never more than one tensor is in memory.

    Args:
        file_type: one of `UNQUANTIZED`.

    Raises:
        ExportError: a language model that is not covered, tensors missing or unknown, or values that
            the type cannot hold.
    """
    config = checkpoint.config
    architecture = find_architecture(config)
    text = config.get_text_config()
    matrix_type, llama_type = UNQUANTIZED[file_type]
    writer = GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture.gguf])
    names = gguf_names(checkpoint, family, architecture)
    writer.add_type("model")
    writer.add_name(checkpoint.repository)
    writer.add_license(checkpoint.license())
    writer.add_file_type(llama_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    write_hyperparameters(writer, text)
    vocabulary.write(writer)
    if chat_template is not None:
        writer.add_chat_template(chat_template)

    planned: list[tuple[str, Callable[[], NDArray[np.generic]]]] = []

    def plan(
        name: str, shape: tuple[int, ...], read: Callable[[], torch.Tensor], source: str
    ) -> None:
        kind = matrix_type if len(shape) > 1 else GGMLQuantizationType.F32
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = int(np.prod(shape))
        # bf16 has no NumPy type and is written as bytes; its shape is given in elements all the same
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), count // block * size, raw_dtype=kind
        )
        planned.append((source, lambda: encode(read(), kind, source)))

    if factors := rope_factors(text):
        plan("rope_freqs.weight", (len(factors),), lambda: torch.tensor(factors), "rope factors")
    for entry in checkpoint.by_shard(lambda name: name in names):

        def read(name: str = entry.name) -> torch.Tensor:
            return adapt(checkpoint.read(name), name, architecture, text)

        plan(names[entry.name], entry.shape, read, entry.name)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, tensor in tqdm(
        planned, desc=f"decoder {file_type}", unit="tensor", disable=not progress
    ):
        writer.write_tensor_data(tensor())
    writer.close()


def gguf_names(
    checkpoint: Checkpoint, family: Family, architecture: Architecture
) -> dict[str, str]:
    """The language model's tensors in the checkpoint to their names in GGUF.

    Raises:
        ExportError: a tensor that llama.cpp does not know, one that is missing, or one whose shape is not
            what the configuration says.
    """
    text = checkpoint.config.get_text_config()
    layers = text.num_hidden_layers
    known = gguf.get_tensor_name_map(architecture.gguf, layers)
    canonical = {source: family.canonical_name(source) for source in checkpoint.tensors}
    canonical = {
        source: name for source, name in canonical.items() if name.startswith(("decoder.", "head."))
    }
    embeddings, head = vocabulary_tensors(checkpoint, canonical, architecture)
    names: dict[str, str] = {}
    for source, name in canonical.items():
        if name in (EMBEDDINGS, HEAD):
            continue
        hub_name = name.replace("decoder.", "model.", 1)
        target = known.get_name(hub_name, try_suffixes=(".weight", ".bias"))
        if target is None or name.startswith("head."):
            raise ExportError(
                f"llama.cpp's {text.model_type} of {layers} layers has no tensor {source}; config.json does "
                f"not fit the weights"
            )
        names[source] = target
    names[embeddings] = "token_embd.weight"
    if head is not None:
        names[head] = "output.weight"
    if len(set(names.values())) != len(names):
        target, _ = Counter(names.values()).most_common(1)[0]
        doubled = [source for source in names if names[source] == target]
        raise ExportError(f"{' and '.join(doubled)} are one tensor of the model; save it again")
    needed = {"decoder.norm.weight"} | {
        f"decoder.layers.{layer}.{part}"
        for layer in range(layers)
        for part in layer_parts(architecture, text)
    }
    if missing := sorted(needed - set(canonical.values())):
        raise ExportError(
            f"the checkpoint lacks {len(missing)} tensors of its language model, such as {missing[0]}; "
            f"fetch the whole checkpoint"
        )
    for source in names:
        check_shape(checkpoint.tensors[source], canonical[source], text)
    return names


def layer_parts(architecture: Architecture, text: PretrainedConfig) -> list[str]:
    """The tensors of one layer."""
    parts = [f"{part}.weight" for part in (*architecture.norms, *ATTENTION, *FEED_FORWARD)]
    if getattr(text, "attention_bias", False):
        parts += [f"{part}.bias" for part in ATTENTION]
    if getattr(text, "mlp_bias", False):
        parts += [f"{part}.bias" for part in FEED_FORWARD]
    return parts


def vocabulary_tensors(
    checkpoint: Checkpoint, canonical: Mapping[str, str], architecture: Architecture
) -> tuple[str, str | None]:
    """Names of the tensors of the embeddings and, unless they serve as it too, of the output layer.

    As in transformers: a configuration that ties them is overruled by a file that has both with different
    values; where the file has the output layer only, it is the embeddings too.

    Raises:
        ExportError: neither is there, an untied one is missing, or llama.cpp has no output layer for this
            language model.
    """
    found = {name: source for source, name in canonical.items()}
    embeddings, head = found.get(EMBEDDINGS), found.get(HEAD)
    tied = bool(checkpoint.config.tie_word_embeddings)
    if tied and embeddings is None:
        embeddings, head = head, None
    if embeddings is None:
        raise ExportError(
            f"the checkpoint lacks 1 tensors of its language model, {EMBEDDINGS}; fetch the whole checkpoint"
        )
    if head is None:
        if not tied:
            raise ExportError(
                "the checkpoint lacks its output layer (lm_head.weight), and tie_word_embeddings is false; "
                "fetch the whole checkpoint, or set that in config.json to true if the embeddings serve as "
                "both"
            )
        return embeddings, None
    if equal(checkpoint, embeddings, head):
        return embeddings, None
    if not architecture.untied:
        raise ExportError(
            f"this {checkpoint.config.get_text_config().model_type} has an output layer of its own ({head} "
            f"differs from the embeddings), llama.cpp's uses the embeddings"
        )
    return embeddings, head


def equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Whether two tensors of the checkpoint hold the same numbers."""
    if checkpoint.tensors[one].shape != checkpoint.tensors[other].shape:
        return False
    return torch.equal(checkpoint.read(one).float(), checkpoint.read(other).float())


def check_shape(entry: TensorEntry, name: str, text: PretrainedConfig) -> None:
    """Raises:
    ExportError: a matrix or norm has another shape than the configuration says.
    """
    size, inner, head = text.hidden_size, text.intermediate_size, head_size(text)
    queries, keys = text.num_attention_heads * head, text.num_key_value_heads * head
    shapes = {
        "embed_tokens.weight": (text.vocab_size, size),
        "head.weight": (text.vocab_size, size),
        "q_proj.weight": (queries, size),
        "k_proj.weight": (keys, size),
        "v_proj.weight": (keys, size),
        "o_proj.weight": (size, queries),
        "gate_proj.weight": (inner, size),
        "up_proj.weight": (inner, size),
        "down_proj.weight": (size, inner),
        "norm.weight": (size,),
    }
    expected = next((shape for end, shape in shapes.items() if name.endswith(end)), entry.shape)
    if entry.shape != expected:
        raise ExportError(
            f"{entry.name} has shape {list(entry.shape)}, config.json asks for {list(expected)}; they are "
            f"not of one checkpoint"
        )


def write_hyperparameters(writer: GGUFWriter, text: PretrainedConfig) -> None:
    """Raises:
    ExportError: a rotary scaling that is not covered, or a value that is no positive number.
    """
    head = head_size(text)
    rope = text.rope_parameters
    numbers = {
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope.get("rope_theta"),
        **({"factor": rope.get("factor")} if rope.get("rope_type") == "linear" else {}),
    }
    for name, value in numbers.items():
        if not isinstance(value, (int, float)) or not 0 < value <= LARGEST:
            raise ExportError(
                f"the language model's {name} is {value!r} in config.json; it must be a positive number"
            )
    writer.add_vocab_size(text.vocab_size)
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(text.rope_parameters["rope_theta"])
    rope_type = text.rope_parameters["rope_type"]
    if rope_type == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(text.rope_parameters["factor"])
    elif rope_type not in ("default", "llama3"):
        raise ExportError(
            f"rotary scaling of type {rope_type!r} cannot be exported; edgevlm exports default, linear "
            f"and llama3"
        )
    if text.model_type == "gemma2":
        writer.add_attn_logit_softcapping(text.attn_logit_softcapping)
        writer.add_final_logit_softcapping(text.final_logit_softcapping)
        writer.add_sliding_window(text.sliding_window)


def hyperparameters(architecture: Architecture, text: PretrainedConfig) -> dict[str, object]:
    """What `write_hyperparameters` writes, by GGUF's keys; raises as that."""
    name = gguf.MODEL_ARCH_NAMES[architecture.gguf]
    writer = GGUFWriter(None, name)
    write_hyperparameters(writer, text)
    written = writer.kv_data[0].items()
    return {key: entry.value for key, entry in written if key.startswith(f"{name}.")}


def rope_factors(text: PretrainedConfig) -> list[float]:
    """llama3's divisor of each frequency, from transformers' own computation; empty for other types."""
    if text.rope_parameters["rope_type"] != "llama3":
        return []
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](text, torch.device("cpu"))
    exponents = torch.arange(0, head_size(text), 2, dtype=torch.float32) / head_size(text)
    plain = text.rope_parameters["rope_theta"] ** -exponents
    return [float(factor) for factor in plain / scaled]


def adapt(
    tensor: torch.Tensor, name: str, architecture: Architecture, text: PretrainedConfig
) -> torch.Tensor:
    """transformers' weights to llama.cpp's: order of rotated rows, offset of norms."""
    if architecture.rope_halves_interleaved and ".self_attn." in name:
        if ".q_proj." in name:
            return interleave_halves(tensor, text.num_attention_heads)
        if ".k_proj." in name:
            return interleave_halves(tensor, text.num_key_value_heads)
    if name.endswith("norm.weight"):
        return tensor.float() + architecture.norm_offset
    return tensor


def interleave_halves(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head from (first half, second half) to neighbours: ``[heads * size, ...]``."""
    split = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return split.swapaxes(1, 2).reshape(tensor.shape)


def encode(tensor: torch.Tensor, kind: GGMLQuantizationType, name: str) -> NDArray[np.generic]:
    """To the bytes of GGUF's type.

    Raises:
        ExportError: not finite, in the checkpoint or in the type.
    """
    values = tensor.float().numpy()
    if not np.isfinite(values).all():
        raise ExportError(f"{name} has values that are not finite; the checkpoint is damaged")
    if kind == GGMLQuantizationType.F16 and np.abs(values).max() > np.finfo(np.float16).max:
        raise ExportError(f"{name} has values beyond f16's range; export with --decoder bf16")
    encoded: NDArray[np.generic] = gguf.quantize(values, kind)
    return encoded
