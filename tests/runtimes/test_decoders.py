"""What every decoder does, against a Llama in numpy with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.errors import (
    ContextError,
    InferenceError,
    InputError,
)
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampling
from tests.support.decoders import KINDS, load_tiny
from tests.support.tiny_decoder import (
    CONTEXT_LENGTH,
    TOKENS,
    TinyLlama,
    bound,
    decoded,
    place,
    positions,
    reference_logits,
    reference_model,
    relative_error,
    some_tokens,
)


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


@pytest.fixture(scope="module", params=KINDS)
def shared(
    tiny_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[DecoderRuntime]:
    """A decoder of each runtime."""
    decoder = load_tiny(
        request.param,
        tiny_file,
        tmp_path_factory.mktemp("onnx"),
        context_length=CONTEXT_LENGTH,
        bidirectional=CONTEXT_LENGTH,
    )
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(shared: DecoderRuntime) -> DecoderRuntime:
    """An empty decoder that supports bidirectional attention."""
    shared.truncate(Place())
    return shared


def test_logits_are_those_of_the_reference(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(40)
    theirs = reference_logits(model, tokens)
    for index, token in enumerate(tokens):
        ours = decoded(decoder, [token], index)
        assert ours.shape == (len(TOKENS),) and ours.dtype == np.float32
        assert relative_error(ours, theirs[index]) < bound(decoder)
    decoder.truncate(Place())
    assert relative_error(decoded(decoder, tokens), theirs[-1]) < bound(decoder)


def test_embeddings_equal_tokens(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(60)
    by_token = decoded(decoder, tokens)
    decoder.truncate(Place())
    rows = decoder.embed(tokens)
    assert np.array_equal(rows, model.embed(tokens))
    decoder.decode_embeddings(rows, positions(0, 60), logits=True)
    assert np.array_equal(decoder.logits(), by_token)


def test_embeddings_between_tokens(decoder: DecoderRuntime, model: TinyLlama) -> None:
    """As in a prompt with an image: rows that are no token's, with text before and after."""
    tokens = some_tokens(30)
    rows = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    decoder.decode_tokens(tokens[:10], positions(0, 10), logits=False)
    decoder.decode_embeddings(rows, positions(10, 30), logits=False)
    ours = decoded(decoder, tokens[10:], 30)
    table = model.embed(tokens)
    theirs = model.logits(np.concatenate([table[:10], rows, table[10:]]))[-1]
    assert relative_error(ours, theirs) < bound(decoder)


def test_truncating_and_decoding_again_equals_a_fresh_start(decoder: DecoderRuntime) -> None:
    tokens, others = some_tokens(50), some_tokens(30, seed=1)
    fresh = decoded(decoder, [*tokens[:20], *others])
    decoder.truncate(Place())
    decoded(decoder, tokens)
    assert decoder.truncate(place(20))
    assert not decoder.truncate(place(30))
    assert relative_error(decoded(decoder, others, 20), fresh) < 1e-5


def prefix_logits(
    model: TinyLlama, tokens: list[int], prefix: int, start: int = 0
) -> NDArray[np.float32]:
    """Return the last logits; positions from `start` to ``start + prefix`` attend to each other."""
    visible = np.tri(len(tokens), dtype=bool)
    visible[start : start + prefix, : start + prefix] = True
    last: NDArray[np.float32] = model.logits(model.embed(tokens), visible)[-1]
    return last


def test_a_prefix_sees_itself(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens, prefix = some_tokens(70), 60
    decoder.decode_embeddings(
        decoder.embed(tokens[:prefix]), positions(0, prefix), logits=True, bidirectional=True
    )
    last = decoder.logits()
    assert relative_error(last, prefix_logits(model, tokens[:prefix], prefix)) < bound(decoder)
    answer = decoded(decoder, tokens[prefix:], prefix)
    theirs = prefix_logits(model, tokens, prefix)
    assert relative_error(answer, theirs) < bound(decoder)
    assert relative_error(reference_logits(model, tokens)[-1], theirs) > 0.05


def test_bidirectional_after_causal(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(45)
    decoded(decoder, tokens[:10])
    decoder.decode_embeddings(
        decoder.embed(tokens[10:40]), positions(10, 40), logits=False, bidirectional=True
    )
    ours = decoded(decoder, tokens[40:], 40)
    assert relative_error(ours, prefix_logits(model, tokens, 30, start=10)) < bound(decoder)


def test_a_prefix_as_long_as_the_context(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(CONTEXT_LENGTH)
    decoder.decode_embeddings(
        decoder.embed(tokens), positions(0, CONTEXT_LENGTH), logits=True, bidirectional=True
    )
    theirs = prefix_logits(model, tokens, CONTEXT_LENGTH)
    assert relative_error(decoder.logits(), theirs) < bound(decoder)


def test_a_restored_cache_goes_on_alike(decoder: DecoderRuntime) -> None:
    tokens = some_tokens(60)
    decoded(decoder, tokens[:40])
    copy = decoder.save()
    expected = decoded(decoder, tokens[40:], 40)
    decoder.truncate(Place())
    decoded(decoder, some_tokens(90)[30:])
    decoder.restore(copy, place(40))
    with pytest.raises(InputError, match="no logits"):
        decoder.logits()
    np.testing.assert_array_equal(decoded(decoder, tokens[40:], 40), expected)


def test_a_copy_is_as_large_as_what_it_holds(decoder: DecoderRuntime) -> None:
    decoded(decoder, some_tokens(10))
    small = decoder.save().nbytes
    decoder.truncate(Place())
    decoded(decoder, some_tokens(100))
    assert 8 * small < decoder.save().nbytes < 11 * small


@pytest.mark.parametrize("damage", ["cut", "empty", "length", "noise"])
def test_a_damaged_copy_is_refused_and_nothing_held(decoder: DecoderRuntime, damage: str) -> None:
    decoded(decoder, some_tokens(40))
    copy, length = decoder.save(), 40
    if damage == "cut":
        copy = copy[: len(copy) // 2]
    elif damage == "empty":
        copy = copy[:0]
    elif damage == "length":
        length = 39
    else:
        copy = np.random.default_rng(3).integers(0, 256, copy.nbytes, dtype=np.uint8)
    with pytest.raises(InferenceError, match=r"not (be )?restore"):
        decoder.restore(copy, place(length))
    decoder.decode_tokens([1], positions(0, 1), logits=True)


def test_logits_must_have_been_asked_for(decoder: DecoderRuntime) -> None:
    decoder.decode_tokens([1], positions(0, 1), logits=True)
    decoder.decode_tokens([1], positions(1, 2), logits=False)
    with pytest.raises(InputError, match="logits=True"):
        decoder.logits()
    with pytest.raises(InputError, match="logits=True"):
        decoder.sampler(Sampling()).sample()


def test_logits_are_a_copy(decoder: DecoderRuntime) -> None:
    first = decoded(decoder, [1])
    copy = first.copy()
    decoded(decoder, [2], 1)
    assert np.array_equal(first, copy)
    first[:] = 0


@pytest.mark.parametrize(
    "tokens", [[], [-1], [0, len(TOKENS)], [1.0], [[1]], 5, ["a"], None, [2**40]]
)
def test_refuses_wrong_tokens(decoder: DecoderRuntime, tokens: Any) -> None:
    with pytest.raises(InputError, match="token id"):
        decoder.decode_tokens(tokens, positions(0, 1), logits=True)
    with pytest.raises(InputError, match="token id"):
        decoder.embed(tokens)


@pytest.mark.parametrize(
    "wrong",
    [[], [0], [0, 1, 2], [1, 2], [0, 2], [1, 0], [0, 0], [-1, 0], [0.0, 1.0], [[0, 1]], None],
    ids=str,
)
def test_refuses_wrong_positions(decoder: DecoderRuntime, wrong: Any) -> None:
    with pytest.raises(InputError, match="positions must"):
        decoder.decode_tokens([1, 2], np.array(wrong), logits=True)
    assert decoded(decoder, [1, 2]).shape == (len(TOKENS),)
    with pytest.raises(InputError, match="from 2"):
        decoder.decode_tokens([1, 2], positions(0, 2), logits=True)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 64)),
        np.zeros((2, 64), np.float16),
        np.zeros((2, 63), np.float32),
        np.zeros(64, np.float32),
        np.zeros((0, 64), np.float32),
        np.full((2, 64), np.nan, np.float32),
        np.full((2, 64), np.inf, np.float32),
        [[0.0] * 64],
        None,
    ],
    ids=["f64", "f16", "narrow", "flat", "empty", "nan", "inf", "list", "none"],
)
def test_refuses_wrong_embeddings(decoder: DecoderRuntime, wrong: Any) -> None:
    with pytest.raises(InputError, match="embeddings"):
        decoder.decode_embeddings(wrong, positions(0, 2), logits=True)


def test_embeddings_need_not_be_contiguous(decoder: DecoderRuntime) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    decoder.decode_embeddings(rows, positions(0, 10), logits=True)
    expected = decoder.logits()
    decoder.truncate(Place())
    decoder.decode_embeddings(np.asfortranarray(rows), positions(0, 10), logits=True)
    assert np.array_equal(decoder.logits(), expected)


def test_the_context_ends(decoder: DecoderRuntime) -> None:
    assert decoder.context_length == CONTEXT_LENGTH
    tokens = some_tokens(CONTEXT_LENGTH + 1)
    with pytest.raises(
        ContextError, match=f"{CONTEXT_LENGTH + 1} entries after 0 .* {CONTEXT_LENGTH}"
    ):
        decoder.decode_tokens(tokens, positions(0, len(tokens)), logits=True)
    decoder.decode_tokens(tokens[:-1], positions(0, CONTEXT_LENGTH), logits=True)
    with pytest.raises(ContextError, match=f"1 entries after {CONTEXT_LENGTH} "):
        decoder.decode_tokens([1], positions(CONTEXT_LENGTH, CONTEXT_LENGTH + 1), logits=True)


@pytest.mark.parametrize("position", [-1, 1.5, "0", None, True])
def test_refuses_to_truncate_elsewhere(decoder: DecoderRuntime, position: Any) -> None:
    with pytest.raises(InputError, match="position must be"):
        decoder.truncate(place(position))
