"""The decoder tests' reference in numpy computes what transformers computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, RepetitionPenaltyLogitsProcessor
from transformers.convert_slow_tokenizer import bytes_to_unicode

from tests.support.tiny_decoder import (
    TOKENS,
    TinyLlama,
    byte_alphabet,
    penalize,
    reference_logits,
    reference_model,
    relative_error,
    some_tokens,
)


def in_transformers(model: TinyLlama) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=model.WIDTH,
        intermediate_size=model.INNER,
        num_hidden_layers=model.LAYERS,
        num_attention_heads=model.HEADS,
        num_key_value_heads=model.KV_HEADS,
        max_position_embeddings=model.MAX_POSITIONS,
        rms_norm_eps=model.EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": model.ROPE_THETA},
        attn_implementation="eager",
    )
    llama = LlamaForCausalLM(config).double().eval()
    weights = {name: torch.from_numpy(array) for name, array in model.weights.items()}
    llama.load_state_dict(weights)
    return llama


def test_logits_are_those_of_transformers() -> None:
    """Over positions as far as the tests go; transformers computes norms and angles in float32."""
    model = reference_model()
    tokens = some_tokens(1200)
    with torch.inference_mode():
        theirs = in_transformers(model)(torch.tensor([tokens])).logits[0].float().numpy()
    assert relative_error(reference_logits(model, tokens), theirs) < 5e-5


def test_masked_logits_are_those_of_transformers() -> None:
    """The first 30 positions see each other, as an image's do in PaliGemma."""
    model = reference_model()
    tokens = some_tokens(45)
    visible = np.tri(45, dtype=bool)
    visible[:30, :30] = True
    mask = torch.zeros(45, 45, dtype=torch.float64)
    mask = mask.masked_fill(~torch.from_numpy(visible), torch.finfo(torch.float64).min)
    with torch.inference_mode():
        output = in_transformers(model)(torch.tensor([tokens]), attention_mask=mask[None, None])
    theirs = output.logits[0].float().numpy()
    assert relative_error(model.logits(model.embed(tokens), visible), theirs) < 5e-5
    assert relative_error(reference_logits(model, tokens), theirs) > 0.05


@pytest.mark.parametrize("penalty", [1.3, 0.8, 5.0])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    logits = np.random.default_rng(0).standard_normal(50).astype(np.float32)
    tokens = [3, 7, 7, 49, 0, 12]
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.tensor([tokens]), torch.from_numpy(logits)[None])[0].numpy()
    np.testing.assert_allclose(penalize(logits, tokens, penalty), theirs, rtol=1e-6)


def test_bytes_are_spelled_as_in_transformers() -> None:
    assert set(byte_alphabet()) == set(bytes_to_unicode().values())
