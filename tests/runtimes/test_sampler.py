"""Sampling with NumPy against llama.cpp's sampler chain: the same tokens for the same logits."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import ClosedError, InferenceError, InputError
from edgevlm.runtimes.constraints import Constraints
from edgevlm.runtimes.llama_cpp.model import LlamaCppModel
from edgevlm.runtimes.llama_cpp.sampler import LlamaCppSampler
from edgevlm.runtimes.protocols import CallGrammar, Sampling
from edgevlm.runtimes.sampler import MAX_HEAP, NumpySampler
from tests.support.tiny_decoder import ExactDecoder, positions, some_tokens

NANO = Path(__file__).resolve().parents[2] / "edgevlm" / "models" / "edgevlm-nano"
Logits = NDArray[np.float32]


class Shown:
    """What a decoder shows as its last logits."""

    logits: Logits

    def __call__(self) -> Logits:
        return self.logits


class AllTokens:
    """A matcher that allows all tokens; with it llama.cpp's chain needs no context."""

    def __init__(self, count: int) -> None:
        self._tokens = np.arange(count)

    def accept_forced(self) -> list[int]:
        return []

    def allowed_tokens(self) -> NDArray[np.int64]:
        return self._tokens

    def accept(self, token: int) -> None:
        pass


class ForcedAtTimes(AllTokens):
    """A matcher that forces two tokens before every third choice."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self._random = np.random.default_rng(0)
        self._calls = 0

    def accept_forced(self) -> list[int]:
        self._calls += 1
        return [] if self._calls % 3 else self._random.integers(len(self._tokens), size=2).tolist()


def chain(
    size: int, sampling: Sampling, logits: Callable[[], Logits], matcher: Any = None
) -> LlamaCppSampler:
    used: Any = matcher or AllTokens(size)
    return LlamaCppSampler(None, size, sampling, logits, used)


def random_sampling(random: np.random.Generator) -> Sampling:
    def choose(*values: float) -> Any:
        return random.choice(values).item()

    return Sampling(
        temperature=choose(0.0, 0.2, 0.7, 1.0, 1.5, 30.0),
        top_k=int(choose(0, 1, 5, 40, MAX_HEAP, MAX_HEAP + 1, 1000)),
        top_p=choose(0.0, 0.3, 0.9, 0.95, 1.0),
        min_p=choose(0.0, 0.05, 0.3, 1.0),
        repetition_penalty=choose(1.0, 1.3, 0.7),
        seed=int(random.integers(2**32 - 1)),
    )


def normal(random: np.random.Generator, size: int) -> Logits:
    return 3 * random.standard_normal(size, np.float32)


def rounded(random: np.random.Generator, size: int) -> Logits:
    return normal(random, size).round()


def half(random: np.random.Generator, size: int) -> Logits:
    return normal(random, size).astype(np.float16).astype(np.float32)


def flat(random: np.random.Generator, size: int) -> Logits:
    return normal(random, size) * np.float32(1e-3)


def equal(random: np.random.Generator, size: int) -> Logits:
    return np.full(size, random.standard_normal(), np.float32)


def peaked(random: np.random.Generator, size: int) -> Logits:
    logits = normal(random, size)
    logits[random.integers(size)] += 20
    return logits


def infinite(random: np.random.Generator, size: int) -> Logits:
    logits = normal(random, size)
    logits[random.random(size) < 0.7] = -np.inf
    logits[random.integers(size)] = 1
    return logits


@pytest.mark.parametrize("make", [normal, rounded, half, flat, equal, peaked, infinite])
def test_tokens_are_those_of_llama_cpp(make: Callable[[np.random.Generator, int], Logits]) -> None:
    """Up to 1,200 choices of each kind. Where more than `MAX_HEAP` are sorted, equal logits may swap."""
    random = np.random.default_rng(0)
    shown = Shown()
    for _ in range(300):
        size = int(random.choice([2, 5, 40, MAX_HEAP + 1, 500, 1500, 5000]))
        sampling = random_sampling(random)
        theirs = chain(size, sampling, shown)
        ours = NumpySampler(size, sampling, shown)
        sorts = sampling.temperature > 0 and not 0 < min(sampling.top_k or size, size) <= MAX_HEAP
        for _ in range(4):
            shown.logits = make(random, size)
            token, expected = ours.sample(), theirs.sample()
            if token != expected:
                assert sorts or sys.platform != "linux", (size, sampling)
                assert shown.logits[token] == shown.logits[expected], (size, sampling)
                break  # the penalties differ from here on


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", [AllTokens, ForcedAtTimes])
def test_the_window_of_the_penalty(kind: Callable[[int], Any], temperature: float) -> None:
    """Of few tokens, many come again when they are 64 old. Forced ones count."""
    random = np.random.default_rng(0)
    logits = normal(random, 90)
    sampling = Sampling(temperature=temperature, repetition_penalty=1.5)
    theirs = chain(90, sampling, lambda: logits, kind(90))
    ours = NumpySampler(90, sampling, lambda: logits, kind(90))
    for _ in range(300):
        assert ours.sample() == theirs.sample()
        logits = normal(random, 90)


def test_a_large_vocabulary() -> None:
    random = np.random.default_rng(1)
    logits = normal(random, 262_144)
    for sampling in (
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=0),
        Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.2),
        Sampling(temperature=0.8, top_k=1000, top_p=0.999, min_p=0.0),
    ):
        theirs = chain(len(logits), sampling, lambda: logits)
        ours = NumpySampler(len(logits), sampling, lambda: logits)
        assert [ours.sample() for _ in range(5)] == [theirs.sample() for _ in range(5)]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(repetition_penalty=1.3),
        Sampling(temperature=1.5, repetition_penalty=1.3, seed=5),
        Sampling(temperature=0.7, top_k=0, repetition_penalty=0.8, seed=2**32 - 2),
    ],
)
def test_answers_of_a_decoder(tiny_file: Path, sampling: Sampling) -> None:
    """Longer than the window of the penalty."""
    decoder = ExactDecoder(tiny_file, context_length=128, threads=1)
    decoder.decode_tokens(some_tokens(10), positions(0, 10), logits=True)
    theirs = decoder.sampler(sampling)
    ours = NumpySampler(decoder.vocabulary_size, sampling, decoder.logits)
    for position in range(10, 110):
        token = ours.sample()
        assert token == theirs.sample()
        decoder.decode_tokens([token], positions(position, position + 1), logits=True)
    decoder.close()


@pytest.fixture(scope="module")
def nano() -> Iterator[LlamaCppModel]:
    model = LlamaCppModel(
        next(NANO.glob("*.gguf")), gpu_layers=0, extra_buffer_types=False, vocabulary_only=True
    )
    yield model
    model.close()


@pytest.fixture(scope="module")
def constraints(nano: LlamaCppModel) -> Iterator[Constraints]:
    made = Constraints(nano.vocabulary_size, nano.piece, nano.tokenize)
    yield made
    made.close()


SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "count": {"type": "integer"}},
    "required": ["color", "count"],
    "additionalProperties": False,
}
CALLS = CallGrammar("<call>", "</call>", "\n", SCHEMA, required=True, several=True)


@pytest.mark.parametrize("form", [{"json_schema": SCHEMA}, {"calls": CALLS}], ids=["JSON", "calls"])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(repetition_penalty=1.5),
        Sampling(temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=3),
        Sampling(temperature=1.0, repetition_penalty=1.5, seed=4),
    ],
)
def test_answers_of_a_grammar(
    nano: LlamaCppModel, constraints: Constraints, sampling: Sampling, form: dict[str, Any]
) -> None:
    """Forced tokens in parts, between sampled ones; the penalty counts them."""
    sampling = dataclasses.replace(sampling, **form)
    random = np.random.default_rng(0)
    logits = normal(random, nano.vocabulary_size)
    theirs = LlamaCppSampler(
        None, len(logits), sampling, lambda: logits, constraints.matcher(sampling, [0])
    )
    ours = NumpySampler(len(logits), sampling, lambda: logits, constraints.matcher(sampling, [0]))
    answer: list[int] = []
    while len(answer) < 60 and 0 not in answer:
        forced = ours.forced(3)
        assert forced == theirs.forced(3)
        if not forced:
            forced = [ours.sample()]
            assert forced == [theirs.sample()]
        answer += forced
        logits = normal(random, len(logits))
    assert b'{"color":' in b"".join(map(nano.piece, answer)).replace(b" ", b"")


def test_padding_of_the_logits_is_no_token() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert NumpySampler(2, Sampling(), lambda: logits).sample() == 1


def test_a_temperature_next_to_zero_is_greedy() -> None:
    """The logits divided by it are infinite. llama.cpp then takes the least likely token that is left."""
    logits = np.array([1, 3, 2], np.float32)
    for temperature in (1e-38, 1e-45, 1e-60):
        sampler = NumpySampler(3, Sampling(temperature=temperature, top_k=0), lambda: logits)
        assert sampler.sample() == 1


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0)])
def test_damaged_weights_are_an_error(sampling: Sampling) -> None:
    logits = np.array([1, np.nan, 2], np.float32)
    with pytest.raises(InferenceError, match="NaN"):
        NumpySampler(3, sampling, lambda: logits).sample()


def test_errors() -> None:
    def refuse() -> Logits:
        raise InputError("there are no logits")

    sampler = NumpySampler(3, Sampling(), refuse)
    assert sampler.forced(5) == []
    with pytest.raises(InputError, match="no logits"):
        sampler.sample()
    sampler.close()
    sampler.close()
    for call in (sampler.sample, lambda: sampler.forced(1)):
        with pytest.raises(ClosedError, match="sampler is closed"):
            call()
