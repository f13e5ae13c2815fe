"""Sampling in llama.cpp against the formulas on the same logits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import InferenceError, InputError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampling
from tests.support.tiny_decoder import (
    TOKENS,
    ExactDecoder,
    decoded,
    penalize,
    positions,
    reference_model,
    some_tokens,
    write_decoder,
)


@pytest.fixture(scope="module")
def shared(tiny_file: Path) -> Iterator[ExactDecoder]:
    decoder = ExactDecoder(tiny_file, context_length=128, threads=1)
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(shared: ExactDecoder) -> DecoderRuntime:
    shared.truncate(Place())
    return shared


def answer(decoder: DecoderRuntime, sampling: Sampling, count: int = 80) -> list[int]:
    """Tokens sampled after a fixed prompt."""
    decoder.truncate(Place())
    prompt = some_tokens(10)
    decoder.decode_tokens(prompt, positions(0, 10), logits=True)
    sampler = decoder.sampler(sampling)
    tokens = []
    for position in range(10, 10 + count):
        tokens.append(sampler.sample())
        decoder.decode_tokens(tokens[-1:], positions(position, position + 1), logits=True)
    sampler.close()
    return tokens


def greedy_with_penalty(decoder: DecoderRuntime, penalty: float, count: int = 80) -> list[int]:
    """`answer` by the formula over the last 64 tokens of the answer."""
    decoder.truncate(Place())
    logits = decoded(decoder, some_tokens(10))
    tokens: list[int] = []
    for position in range(10, 10 + count):
        tokens.append(int(penalize(logits, tokens[-64:], penalty).argmax()))
        logits = decoded(decoder, tokens[-1:], position)
    return tokens


def test_temperature_zero_takes_the_most_likely(decoder: DecoderRuntime) -> None:
    assert answer(decoder, Sampling()) == greedy_with_penalty(decoder, 1.0)


@pytest.mark.parametrize("penalty", [1.3, 0.8, 5.0])
def test_repetition_penalty_is_the_formula(decoder: DecoderRuntime, penalty: float) -> None:
    ours = answer(decoder, Sampling(repetition_penalty=penalty))
    assert ours == greedy_with_penalty(decoder, penalty)
    assert ours != answer(decoder, Sampling())


def test_seeds_make_answers_repeatable(decoder: DecoderRuntime) -> None:
    answers = [
        answer(decoder, Sampling(temperature=1.5, seed=seed)) for seed in (0, 0, 1, 2**32 - 2)
    ]
    assert answers[0] == answers[1]
    assert len({tuple(tokens) for tokens in answers}) == 3


def test_top_k_of_one_is_greedy(decoder: DecoderRuntime) -> None:
    greedy = answer(decoder, Sampling())
    for settings in ({"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}):
        sampling = Sampling(temperature=2.0, seed=3, **settings)
        assert answer(decoder, sampling) == greedy


def test_samples_follow_the_distribution(decoder: DecoderRuntime) -> None:
    """Top-k, top-p and min-p before the temperature, as documented; 3,000 draws."""
    sampling = Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.02)
    logits = decoded(decoder, some_tokens(10)).astype(np.float64)
    draws = np.zeros(len(TOKENS))
    for seed in range(3000):
        sampler = decoder.sampler(Sampling(**{**vars(sampling), "seed": seed}))
        draws[sampler.sample()] += 1
        sampler.close()
    order = np.argsort(-logits)[: sampling.top_k]
    likely = np.exp(logits[order] - logits[order[0]])
    likely /= likely.sum()
    order = order[: np.searchsorted(np.cumsum(likely), sampling.top_p) + 1]
    remaining = [
        token for token in order if logits[token] >= logits[order[0]] + np.log(sampling.min_p)
    ]
    expected = np.zeros(len(TOKENS))
    expected[remaining] = np.exp((logits[remaining] - logits[remaining[0]]) / sampling.temperature)
    expected /= expected.sum()
    assert set(np.flatnonzero(draws)) <= set(remaining)
    assert np.abs(draws / draws.sum() - expected).max() < 0.03


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "0"},
        {"top_k": -1},
        {"top_k": 1.5},
        {"top_p": 1.1},
        {"top_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": float("nan")},
        {"seed": -1},
        {"seed": 2**32 - 1},
        {"seed": 2**64},
        {"seed": True},
    ],
    ids=str,
)
def test_refuses_wrong_sampling(decoder: DecoderRuntime, settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(InputError, match=f"^{name} must be"):
        decoder.sampler(Sampling(**settings))


def test_damaged_weights_are_an_error(tmp_path: Path) -> None:
    damaged = reference_model()
    damaged.weights["lm_head.weight"][3, 5] = np.nan
    decoder = LlamaCppDecoder(
        write_decoder(tmp_path / "nan.gguf", damaged), context_length=64, threads=1
    )
    decoder.decode_tokens([1], positions(0, 1), logits=True)
    for sampling in (Sampling(), Sampling(temperature=1.0)):
        with pytest.raises(InferenceError, match="NaN"):
            decoder.sampler(sampling).sample()
