"""Branches of a held sequence, beside a Llama in numpy with the same random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm.errors import ClosedError, ContextError, InferenceError, InputError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampling
from tests.support.decoders import KINDS, fail_after_decoding, load_tiny
from tests.support.tiny_decoder import (
    END,
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

CONTEXT = 300
PROMPT = some_tokens(50)


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


@pytest.fixture(scope="module", params=KINDS)
def shared(
    tiny_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[DecoderRuntime]:
    """A decoder of each runtime."""
    folder = tmp_path_factory.mktemp("onnx")
    decoder = load_tiny(request.param, tiny_file, folder, context_length=CONTEXT)
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(shared: DecoderRuntime) -> Iterator[DecoderRuntime]:
    """A decoder that holds `PROMPT`, and has no branches."""
    shared.truncate(Place())
    decoded(shared, PROMPT)
    yield shared
    for branch in range(1, shared.max_branches + 1):
        if branch in shared._branches._open:  # type: ignore[attr-defined]
            shared.drop(branch)


def check(decoder: DecoderRuntime, model: TinyLlama, logits: Any, tokens: list[int]) -> None:
    """Check the logits ``[n, vocabulary]`` after the last n tokens."""
    theirs = reference_logits(model, tokens)[-len(logits) :]
    assert relative_error(logits, theirs) < bound(decoder)


def test_branches_in_one_batch(decoder: DecoderRuntime, model: TinyLlama) -> None:
    """Continuations of different lengths; afterwards the held sequence goes on as if nothing had been."""
    continuations = [some_tokens(length, seed=length) for length in (1, 5, 2, 4)]
    branches = [decoder.branch() for _ in continuations]
    logits = decoder.decode_branches(
        [branch for branch, tokens in zip(branches, continuations, strict=True) for _ in tokens],
        [token for tokens in continuations for token in tokens],
    ).copy()
    first = 0
    for tokens in continuations:
        check(decoder, model, logits[first : first + len(tokens)], [*PROMPT, *tokens])
        first += len(tokens)
    for branch in branches:
        decoder.drop(branch)
    after = some_tokens(9, seed=9)
    check(decoder, model, decoded(decoder, after, 50)[None], [*PROMPT, *after])


def test_branches_take_turns(decoder: DecoderRuntime, model: TinyLlama) -> None:
    """Tokens of several branches between each other, in many batches."""
    texts = {decoder.branch(): some_tokens(12, seed=seed) for seed in range(3)}
    found: dict[int, list[Any]] = {branch: [] for branch in texts}
    for at in range(0, 12, 2):
        order = [branch for _ in range(2) for branch in texts]
        tokens = [texts[branch][at + turn] for turn in range(2) for branch in texts]
        for branch, row in zip(order, decoder.decode_branches(order, tokens), strict=True):
            found[branch].append(row.copy())
    for branch, text in texts.items():
        check(decoder, model, np.array(found[branch]), [*PROMPT, *text])


def test_logits_of_some_tokens(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(20, seed=1)
    branch = decoder.branch()
    wanted = np.zeros(20, np.bool_)
    wanted[[3, 19]] = True
    logits = decoder.decode_branches([branch] * 20, tokens, wanted)
    theirs = reference_logits(model, [*PROMPT, *tokens])[50:]
    assert relative_error(logits, theirs[[3, 19]]) < bound(decoder)
    assert np.array_equal(decoder.logits(), logits[1])
    assert decoder.sampler(Sampling()).sample() == int(logits[1].argmax())
    none = decoder.decode_branches([branch], [1], np.zeros(1, np.bool_))
    assert none.shape == (0, decoder.vocabulary_size)
    with pytest.raises(InputError, match="no logits"):
        decoder.logits()


def test_branches_stay_while_the_held_sequence_changes(
    decoder: DecoderRuntime, model: TinyLlama
) -> None:
    """As with questions about several images: each prompt is held in turn, and its branch stays."""
    assert decoder.independent_branches
    prompts = [[*PROMPT[:20], *some_tokens(30, seed=seed)] for seed in range(4)]
    branches = []
    for prompt in prompts:
        decoder.truncate(place(20))
        decoded(decoder, prompt[20:], 20)
        branches.append(decoder.branch())
    decoder.truncate(Place())
    decoded(decoder, some_tokens(60, seed=8))
    token = 7
    logits = decoder.decode_branches(branches, [token] * 4)
    for row, prompt in zip(logits, prompts, strict=True):
        check(decoder, model, row[None], [*prompt, token])


def test_a_branch_that_is_cut(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(6, seed=2)
    branch, other = decoder.branch(), decoder.branch()
    decoder.decode_branches([branch] * 6 + [other] * 2, [*tokens, 5, 6])
    decoder.cut_branch(branch, 4)
    logits = decoder.decode_branches([other, branch], [8, 9]).copy()
    check(decoder, model, logits[:1], [*PROMPT, 5, 6, 8])
    check(decoder, model, logits[1:], [*PROMPT, *tokens[:2], 9])
    with pytest.raises(InputError, match="tokens must be"):
        decoder.cut_branch(branch, 4)


def test_a_branch_of_nothing(decoder: DecoderRuntime, model: TinyLlama) -> None:
    decoder.truncate(Place())
    tokens = some_tokens(10, seed=3)
    logits = decoder.decode_branches([decoder.branch()] * 10, tokens)
    check(decoder, model, logits, tokens)


def test_held_sequence_is_copied_and_restored_beside_branches(
    decoder: DecoderRuntime, model: TinyLlama
) -> None:
    branch = decoder.branch()
    decoder.decode_branches([branch], [4])
    copy = decoder.save()
    decoder.truncate(place(10))
    decoded(decoder, some_tokens(30, seed=4), 10)
    decoder.restore(copy, place(50))
    check(decoder, model, decoded(decoder, [3, 4], 50)[None], [*PROMPT, 3, 4])
    check(decoder, model, decoder.decode_branches([branch], [5]), [*PROMPT, 4, 5])


# --- the context --------------------------------------------------------------------------------


def test_room_counts_shared_entries_once(decoder: DecoderRuntime) -> None:
    assert decoder.room(CONTEXT) == decoder.room(50) == CONTEXT - 50
    assert decoder.room(0) == CONTEXT
    branches = [decoder.branch() for _ in range(3)]
    assert decoder.room(0) == CONTEXT - 50
    decoder.decode_branches(branches, [1, 2, 3])
    assert decoder.room(50) == CONTEXT - 53
    decoder.truncate(place(20))
    decoded(decoder, some_tokens(10), 20)
    assert decoder.room(30) == CONTEXT - 63
    assert decoder.room(20) == CONTEXT - 53
    later = decoder.branch()
    for branch in branches:
        decoder.drop(branch)
    assert decoder.room(0) == CONTEXT - 30
    decoder.drop(later)
    assert decoder.room(0) == CONTEXT


def test_the_context_ends(decoder: DecoderRuntime, model: TinyLlama) -> None:
    """Up to the last entry, for branches and for the held sequence."""
    branches = [decoder.branch(), decoder.branch()]
    wanted = np.zeros(120, np.bool_)
    texts = [some_tokens(120, seed=seed) for seed in (5, 6)]
    for branch, text in zip(branches, texts, strict=True):
        decoder.decode_branches([branch] * 120, text, wanted)
    with pytest.raises(ContextError, match=f"11 entries after 290 .* {CONTEXT}"):
        decoder.decode_branches([branches[0]] * 11, [1] * 11)
    with pytest.raises(ContextError, match=f"11 entries after 290 .* {CONTEXT}"):
        decoder.decode_tokens([1] * 11, positions(50, 61), logits=True)
    decoded(decoder, [1, 2, 3, 4, 5], 50)
    last = decoder.decode_branches([branches[1]] * 5, [9] * 5)[-1:]
    check(decoder, model, last, [*PROMPT, *texts[1], *[9] * 5])
    assert decoder.room(CONTEXT) == 0


# --- wrong use and failures ---------------------------------------------------------------------


def test_no_more_branches_than_there_are(decoder: DecoderRuntime) -> None:
    assert decoder.max_branches == LlamaCppDecoder.MAX_BRANCHES
    branches = [decoder.branch() for _ in range(decoder.max_branches)]
    assert len(set(branches)) == decoder.max_branches
    with pytest.raises(InferenceError, match=r"all \d+ branches .* are open"):
        decoder.branch()
    decoder.drop(branches[2])
    assert decoder.branch() == branches[2]


def test_a_dropped_branch_is_refused(decoder: DecoderRuntime) -> None:
    branch = decoder.branch()
    decoder.drop(branch)
    for call in (
        lambda: decoder.drop(branch),
        lambda: decoder.cut_branch(branch, 1),
        lambda: decoder.decode_branches([branch], [1]),
        lambda: decoder.decode_branches([0], [1]),  # the held sequence
    ):
        with pytest.raises(InputError, match="no branch"):
            call()


@pytest.mark.parametrize(
    ("branches", "tokens", "logits", "message"),
    [
        (1, [], None, "token ids"),
        (1, [-1], None, "token id -1"),
        (2, [1], None, "1 tokens need as many branches"),
        (1, [1], np.ones(2, np.bool_), "1 tokens need as many branches"),
        (1, [1], np.ones(1, np.int8), "int8"),
        (17, [1] * 17, None, "up to .* 16 logits, has 17 and 17"),
        (513, [1] * 513, np.zeros(513, np.bool_), "has 513 and 0"),
    ],
)
def test_refuses_wrong_batches(
    decoder: DecoderRuntime, branches: int, tokens: list[int], logits: Any, message: str
) -> None:
    branch = decoder.branch()
    with pytest.raises(InputError, match=message):
        decoder.decode_branches([branch] * branches, tokens, logits)


def test_a_failed_batch_leaves_nothing(
    decoder: DecoderRuntime, model: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    branches = [decoder.branch(), decoder.branch()]
    decoder.decode_branches(branches, [1, 2])
    room = decoder.room(CONTEXT)
    with monkeypatch.context() as patch:
        fail_after_decoding(decoder, patch)
        with pytest.raises(KeyboardInterrupt):
            decoder.decode_branches([*branches, branches[0]], [3, 4, 5])
    assert decoder.room(CONTEXT) == room
    logits = decoder.decode_branches(branches, [6, 7]).copy()
    check(decoder, model, logits[:1], [*PROMPT, 1, 6])
    check(decoder, model, logits[1:], [*PROMPT, 2, 7])
    check(decoder, model, decoded(decoder, [END], 50)[None], [*PROMPT, END])


def test_a_closed_decoder(tiny_file: Path) -> None:
    decoder = LlamaCppDecoder(tiny_file, context_length=64, threads=1)
    branch = decoder.branch()
    decoder.close()
    for call in (
        decoder.branch,
        lambda: decoder.drop(branch),
        lambda: decoder.decode_branches([branch], [1]),
    ):
        with pytest.raises(ClosedError):
            call()
