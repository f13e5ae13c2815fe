"""Each supported language model computes transformers' logits in llama.cpp, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from edgevlm.export.architectures import ARCHITECTURES
from edgevlm.export.parity import relative_error
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support import text_models

LENGTH = 60
WINDOW = 12
"""Sliding window of the rows that have one: an image and a short question are longer."""
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.35,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
GEMMA2 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = {
    "head_dim": 24,
    "query_pre_attn_scalar": 24,
    "sliding_window": WINDOW,
    "num_hidden_layers": 7,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}
SLIDING, FULL = "sliding_attention", "full_attention"
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 32}),
    "mistral, llama3 scaling": ("mistral", {"sliding_window": None, "rope_parameters": LLAMA3}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied, linear scaling": (
        "qwen2",
        {"tie_word_embeddings": True, "rope_parameters": LINEAR},
    ),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "qwen3, tied": ("qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
    "granite": ("granite", GRANITE),
    "granite, biases, llama3 scaling": (
        "granite",
        {**GRANITE, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "gemma": ("gemma", {"head_dim": 24}),
    "gemma2": ("gemma2", GEMMA2),
    "gemma2, other layers slide": ("gemma2", {**GEMMA2, "layer_types": [FULL, SLIDING]}),
    "gemma3_text": ("gemma3_text", GEMMA3),
    "gemma3_text, other layers slide": (
        "gemma3_text",
        {**GEMMA3, "layer_types": [FULL, SLIDING, FULL, SLIDING, SLIDING, FULL, SLIDING]},
    ),
    "gemma3_text, no layer slides, untied": (
        "gemma3_text",
        {**GEMMA3, "layer_types": [FULL] * 7, "tie_word_embeddings": False},
    ),
    "phi3": ("phi3", {}),
}
SCALED = ("gemma", "gemma2")
"""Language models whose embeddings llama.cpp multiplies by the root of the width, and transformers does not."""


class Written(NamedTuple):
    """A model in transformers and the GGUF file of it."""

    model: PreTrainedModel
    path: Path

    def open(self, **options: Any) -> LlamaCppDecoder:
        return LlamaCppDecoder(self.path, **{"context_length": 256, "threads": 1, **options})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Written]:
    made: dict[str, Written] = {}

    def write(row: str) -> Written:
        if row not in made:
            model_type, settings = ROWS[row]
            model = text_models.text_model(model_type, **settings)
            folder = tmp_path_factory.mktemp("model")
            made[row] = Written(model, text_models.write_text_model(model, folder))
        return made[row]

    return write


def some_ids(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(3, 500, count).tolist()
    return ids


def positions(start: int, stop: int) -> NDArray[np.int32]:
    return np.arange(start, stop, dtype=np.int32)


def step(decoder: LlamaCppDecoder, ids: list[int], start: int) -> NDArray[np.float32]:
    """Logits ``[n, vocabulary]`` after each token, one at a time."""
    rows = []
    for position, token in enumerate(ids, start):
        decoder.decode_tokens([token], positions(position, position + 1), logits=True)
        rows.append(decoder.logits())
    return np.stack(rows)


def test_every_language_model_has_a_row() -> None:
    assert {model_type for model_type, _ in ROWS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("row", ROWS)
def test_logits_of_tokens(written: Callable[[str], Written], row: str) -> None:
    given = written(row)
    ids = some_ids(LENGTH)
    with torch.no_grad():
        expected = given.model(torch.tensor([ids])).logits[0].numpy()
    decoder = given.open()
    found = step(decoder, ids, 0)
    assert relative_error(found, expected) < 5e-3
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))
    decoder.truncate(0)
    decoder.decode_tokens(ids, positions(0, LENGTH), logits=True)
    assert relative_error(decoder.logits(), expected[-1]) < 5e-3
    decoder.close()


@pytest.mark.parametrize("row", ROWS)
def test_logits_of_embeddings(written: Callable[[str], Written], row: str) -> None:
    """An image between texts: embeddings that no token has, longer than a sliding window."""
    given = written(row)
    width = given.model.config.hidden_size
    scale = width**-0.5 if given.model.config.model_type in SCALED else 1.0
    ids = some_ids(LENGTH)
    image = 0.5 * torch.randn(16, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        text = given.model.get_input_embeddings()(torch.tensor(ids))
        inputs = torch.cat([text[:5], image, text[5:]])
        expected = given.model(inputs_embeds=inputs[None]).logits[0].numpy()
    decoder = given.open()
    decoder.decode_tokens(ids[:5], positions(0, 5), logits=False)
    decoder.decode_embeddings(scale * image.numpy(), positions(5, 21), logits=True)
    rows = [decoder.logits(), *step(decoder, ids[5:], 21)]
    assert relative_error(np.stack(rows), expected[20:]) < 5e-3
    decoder.close()
