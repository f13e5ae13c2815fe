"""Map the tensors of the language model to their names in GGUF."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import gguf
import torch
from transformers import PretrainedConfig

from edgevlm.errors import ExportError
from edgevlm.export.architectures import Architecture
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.export.text_settings import head_size, inner_size
from edgevlm.export.weights import TensorEntry

EMBEDDINGS = "decoder.embed_tokens.weight"
HEAD = "head.weight"
LAYER_EMBEDDINGS = "decoder.embed_tokens_per_layer.weight"
"""Embeddings that the layers themselves add, a row for each token."""


def gguf_names(
    checkpoint: Checkpoint, family: Family, architecture: Architecture
) -> dict[str, str]:
    """Return the names of the language model's tensors: checkpoint to GGUF.

    Raises:
        ExportError: llama.cpp does not know a tensor, a tensor is missing, or a shape differs from the
            configuration.
    """
    text = checkpoint.config.get_text_config()
    layers = text.num_hidden_layers
    assert architecture.gguf is not None
    known = gguf.get_tensor_name_map(architecture.gguf, layers)
    canonical = {source: family.canonical_name(source) for source in checkpoint.tensors}
    canonical = {
        source: name for source, name in canonical.items() if name.startswith(("decoder.", "head."))
    }
    needed = {f"decoder.{architecture.final_norm}.weight"} | {
        f"decoder.layers.{layer}.{part}"
        for layer in range(layers)
        for part in layer_parts(architecture, text, layer)
    }
    needed |= {f"decoder.{table}" for table in architecture.tables}
    unused = unused_tensors(architecture, text)
    canonical = {source: name for source, name in canonical.items() if name not in unused}
    embeddings, head = vocabulary_tensors(checkpoint, canonical, architecture)
    names: dict[str, str] = {}
    for source, name in canonical.items():
        if name in (EMBEDDINGS, HEAD):
            continue
        hub_name = name.replace("decoder.", "model.", 1).replace(".dt_bias", ".dt_proj.bias")
        hub_name = hub_name.replace(".layer_scalar", ".layer_scalar.weight")
        target = known.get_name(hub_name, try_suffixes=(".weight", ".bias"))
        if target is None or name not in needed:
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
    if missing := sorted(needed - set(canonical.values())):
        raise ExportError(
            f"the checkpoint lacks {len(missing)} tensors of its language model, such as {missing[0]}; "
            f"fetch the whole checkpoint"
        )
    for source in names:
        check_shape(checkpoint.tensors[source], canonical[source], architecture, text)
    return names


def layer_parts(architecture: Architecture, text: PretrainedConfig, layer: int) -> list[str]:
    """Return the names of the tensors of one layer."""
    if architecture.layer is not None:
        return [*architecture.layer(text, layer)]
    biased = [*architecture.biased]
    for setting, matrices in architecture.optional_biases.items():
        if getattr(text, setting, False):
            biased += matrices
    weights = [f"{part}.weight" for part in (*architecture.norms, *architecture.matrices)]
    return weights + [f"{matrix}.bias" for matrix in biased]


def unused_tensors(architecture: Architecture, text: PretrainedConfig) -> set[str]:
    """Return the names of tensors that a checkpoint may have, and that nothing reads."""
    if architecture.unused is None:
        return set()
    return {
        f"decoder.layers.{layer}.{part}"
        for layer in range(text.num_hidden_layers)
        for part in architecture.unused(text, layer)
    }


def vocabulary_tensors(
    checkpoint: Checkpoint, canonical: Mapping[str, str], architecture: Architecture
) -> tuple[str, str | None]:
    """Return the names of the embeddings and of the output layer; None for an output layer that is tied.

    The rules are those of transformers: a file with two different tensors overrules a configuration that ties
    them; a file with the output layer alone uses it as the embeddings, too.

    Raises:
        ExportError: both are missing, an untied output layer is missing, or llama.cpp has no output layer for
            this language model.
    """
    found = {name: source for source, name in canonical.items()}
    embeddings, head = found.get(EMBEDDINGS), found.get(HEAD)
    config = checkpoint.config
    # BLIP-2's model holds a whole language model, with a setting of its own.
    text = config.get_text_config()
    owner = config if hasattr(config, "tie_word_embeddings") else text
    tied = bool(owner.tie_word_embeddings)
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
            f"this {text.model_type} has an output layer of its own ({head} "
            f"differs from the embeddings), llama.cpp's uses the embeddings"
        )
    return embeddings, head


def equal(checkpoint: Checkpoint, one: str, other: str) -> bool:
    """Return True if two tensors of the checkpoint hold the same numbers."""
    if checkpoint.tensors[one].shape != checkpoint.tensors[other].shape:
        return False
    return torch.equal(checkpoint.read(one).float(), checkpoint.read(other).float())


def gguf_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of a tensor in GGUF. A convolution, ``[n, 1, size]``, is a matrix there."""
    return (shape[0], shape[2]) if len(shape) == 3 and shape[1] == 1 else shape


def check_shape(
    entry: TensorEntry, name: str, architecture: Architecture, text: PretrainedConfig
) -> None:
    """Compare the shape of a tensor with the configuration.

    Raises:
        ExportError: they differ.
    """
    _, *path = name.split(".")
    layer = int(path[1]) if path[0] == "layers" else 0
    settings = text.per_layer_config[layer]
    size, inner, head = text.hidden_size, inner_size(text, layer), head_size(settings)
    queries, keys = text.num_attention_heads * head, settings.num_key_value_heads * head
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens": (text.vocab_size, size),
        "head": (text.vocab_size, size),
        "q_proj": (queries, size),
        "k_proj": (keys, size),
        "v_proj": (keys, size),
        "qkv_proj": (queries + 2 * keys, size),
        "o_proj": (size, queries),
        "gate_proj": (inner, size),
        "up_proj": (inner, size),
        "gate_up_proj": (2 * inner, size),
        "down_proj": (size, inner),
        "q_norm": (head,),
        "k_norm": (head,),
    }
    if architecture.shapes is not None:
        shapes |= architecture.shapes(text)
    module, _, kind = name.rpartition(".")
    block_and_module = ".".join(module.split(".")[-2:])
    # A vector of a layer itself has no module of its own.
    module = kind if len(path) == 3 else module.rpartition(".")[2]
    # The others are norms of the hidden state.
    expected = shapes.get(block_and_module, shapes.get(module, (size,)))
    if kind == "bias":
        expected = expected[:1]
    if entry.shape != expected:
        raise ExportError(
            f"{entry.name} has shape {list(entry.shape)}, config.json asks for {list(expected)}; they are "
            f"not of one checkpoint"
        )
