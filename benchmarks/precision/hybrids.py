"""Show that quantization disturbs gated delta nets with random weights, not trained ones.

    python -m benchmarks.precision.hybrids FOLDER

A small Qwen 3.5 and a small Qwen 3, which has attention only, with random weights and after a short training
on Python's documentation. A table goes to stdout: the divergence of q8_0 and q4_0 from f16 about the worst of
some texts, as a share of what the mean distribution causes, as in `benchmarks.precision.bounds`. FOLDER gets
the models.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PretrainedConfig

from edgevlm.divergence import divergence
from edgevlm.export.answers import ExactAnswer, context_scale
from edgevlm.export.bounds import MIN_CONTEXT_KL
from edgevlm.export.quantize import quantize
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place
from tests.support import text_models
from tests.support.checkpoints import byte_level_tokenizer, scatter

LENGTH, TEXTS, BATCH = 96, 14, 8
"""Tokens of a text, texts to compare, and texts of a step of the training."""
TYPES = ("q8_0", "q4_0")
QWEN35: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        "mrope_section": [3, 3, 2],
    },
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen 3.5": ("qwen3_5_text", QWEN35),
    "Qwen 3": ("qwen3", {"num_hidden_layers": 4, "head_dim": 32}),
}
"""``model_type`` and settings of each model."""


def make_random(config: PretrainedConfig, seed: int) -> Any:
    """Return a model with random weights, as the tests have them."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    scatter(model, seed)
    return model


def make_trained(config: PretrainedConfig, ids: NDArray[np.int64], steps: int) -> Any:
    """Return a model that is trained to go on with a text."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, steps)
    random = np.random.default_rng(0)
    for _ in range(steps):
        starts = random.integers(0, len(ids) - LENGTH, BATCH)
        batch = torch.tensor(np.stack([ids[start : start + LENGTH] for start in starts]))
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rates.step()
    return model.eval()


def read_logits(path: Path, texts: NDArray[np.int64]) -> list[ExactAnswer]:
    """Return the logits of a decoder after each token of each text."""
    decoder = LlamaCppDecoder(path, context_length=LENGTH, threads=1, try_file=False)
    size = decoder.max_logits
    found = []
    for text in texts.tolist():
        decoder.truncate(Place())
        parts = [
            decoder.decode_draft(
                text[start : start + size], np.arange(start, start + size, dtype=np.int32)
            ).copy()
            for start in range(0, LENGTH, size)
        ]
        found.append(ExactAnswer(tuple(text), np.concatenate(parts)))
    decoder.close()
    return found


def measure(model: Any, folder: Path, texts: NDArray[np.int64]) -> tuple[float, list[float]]:
    """Return the divergence of the mean distribution in nats, and the worst share of each type."""
    folder.mkdir(parents=True, exist_ok=True)
    source = text_models.write_text_model(model, folder)
    exact = read_logits(source, texts)
    scale = context_scale(exact).kl
    shares = []
    for name in TYPES:
        path = folder / f"decoder.{name}.gguf"
        quantize(source, path, name)
        found = read_logits(path, texts)
        worst = max(
            divergence(a.logits, b.logits).kl.mean() for a, b in zip(exact, found, strict=True)
        )
        shares.append(float(worst) / max(scale, MIN_CONTEXT_KL))
    return scale, shares


def main() -> None:
    """Measure all models and print the table."""
    parser = argparse.ArgumentParser(description="Measure quantization of gated delta nets.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=400, help="of the training (default: 400)")
    arguments = parser.parse_args()
    documentation = "\n".join(pydoc_data.topics.topics.values())
    tokenizer = byte_level_tokenizer(text_models.VOCABULARY)
    ids = np.array(tokenizer.encode(documentation, add_special_tokens=False).ids)
    known, others = np.split(ids, [len(ids) * 9 // 10])
    starts = np.linspace(0, len(others) - LENGTH, TEXTS).astype(int)
    texts = np.stack([others[start : start + LENGTH] for start in starts])
    print(f"| model | weights | {' | '.join(TYPES)} | KL of the mean, nats |")
    print("|---" * (3 + len(TYPES)) + "|")
    for name, (model_type, settings) in MODELS.items():
        config = text_models.text_config(model_type, **settings)
        models: dict[str, Any] = {
            f"random {seed}": partial(make_random, config, seed) for seed in range(3)
        }
        models["trained"] = partial(make_trained, config, known, arguments.steps)
        for kind, make in models.items():
            model = make()
            scale, shares = measure(model, arguments.folder / model_type / kind, texts)
            figures = " | ".join(f"{share:.2g}" for share in shares)
            print(f"| {name} | {kind} | {figures} | {scale:.2g} |", flush=True)


if __name__ == "__main__":
    main()
