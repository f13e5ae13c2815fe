"""Drafts change the speed of an answer, but never its tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm import VLM
from edgevlm.engine.prompt_lookup import (
    MAX_CONSECUTIVE_MISSES,
    MAX_DRAFT_LENGTH,
    MAX_NGRAMS,
    MIN_DRAFT_LENGTH,
    NEAR_TIE,
    PromptLookup,
    verify_draft,
)
from edgevlm.errors import InputError
from edgevlm.options import GenerationOptions
from edgevlm.runtimes.protocols import DecoderRuntime
from edgevlm.scenes import composition
from tests.conftest import picture
from tests.support.decoders import load_tiny
from tests.support.spans import make_span
from tests.support.tiny_decoder import (
    EXACT,
    TinyLlama,
    place,
    positions,
    reference_logits,
    reference_model,
    relative_error,
    some_tokens,
)

SPAN = make_span(b"span")
QUESTIONS = ("What is in the picture?", "How many things are there?", "Where is the star?")


@pytest.fixture
def nano() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def reference() -> TinyLlama:
    return reference_model()


@pytest.fixture(params=["llama.cpp", "ONNX Runtime"])
def decoder(
    tiny_file: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[DecoderRuntime]:
    decoder = load_tiny(request.param, tiny_file, tmp_path, context_length=64)
    yield decoder
    decoder.close()


def without_drafts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PromptLookup, "draft", lambda self: ())


def test_a_standing_question_is_answered_from_the_last_answer(nano: VLM) -> None:
    """Return two images with a difference that one cannot see."""
    scene = composition.sample(np.random.default_rng(5), "single")
    frame = np.asarray(composition.draw(scene))
    first = nano.ask(frame, QUESTIONS[0])
    again = nano.ask(frame ^ 1, QUESTIONS[0])
    assert first.stats.accepted_draft_tokens == 0
    assert again.stats.encoded_tiles == 1 and again.text == first.text
    # not in a draft: the first token, and each that a batch's last logits give
    assert again.stats.accepted_draft_tokens > again.stats.answer_tokens / 2


def test_answers_are_those_without_drafts(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask many questions whose earlier answers make right, partly right and wrong drafts."""
    rng = np.random.default_rng(6)
    frames = [
        composition.draw(composition.sample(rng, layout))
        for layout in ("crowd", "mixed", "text") * 3
    ]
    asked = [(frame, question) for frame in frames for question in QUESTIONS]
    answers = [nano.ask(*one) for one in asked]
    drafted = sum(answer.stats.accepted_draft_tokens for answer in answers)
    assert drafted > sum(answer.stats.answer_tokens for answer in answers) / 10
    without_drafts(monkeypatch)
    plain = [nano.ask(*one) for one in asked]
    assert [answer.text for answer in answers] == [answer.text for answer in plain]
    assert not any(answer.stats.accepted_draft_tokens for answer in plain)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 40])
def test_wrong_drafts_change_nothing(
    fresh: Callable[..., VLM], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """Use random weights, which often have close best tokens, and random drafts at every position."""
    with monkeypatch.context() as patch:
        without_drafts(patch)
        expected = fresh().ask(picture(1), "What?", max_tokens=limit)
    rng = np.random.default_rng(limit)

    def draft(lookup: PromptLookup) -> tuple[int, ...]:
        """Return some of the right tokens, and then wrong ones."""
        at = len(lookup._text) - 2
        right = expected.token_ids[at : at + int(rng.integers(0, MAX_DRAFT_LENGTH))]
        return (*right, *rng.integers(0, 300, MAX_DRAFT_LENGTH - len(right)).tolist())

    monkeypatch.setattr(PromptLookup, "draft", draft)
    vlm = fresh()
    found = vlm.ask(picture(1), "What?", max_tokens=limit)
    assert found.token_ids == expected.token_ids and found.text == expected.text
    # and the KV cache holds what it is said to hold
    with monkeypatch.context() as patch:
        without_drafts(patch)
        following = vlm.ask(picture(1), "What? And?", max_tokens=8)
        assert following.token_ids == fresh().ask(picture(1), "What? And?", max_tokens=8).token_ids


def test_only_greedy_answers_get_drafts(nano: VLM) -> None:
    choices: list[GenerationOptions] = [{"temperature": 0.5}, {"repetition_penalty": 1.1}]
    for options in choices:
        for _ in range(2):
            answer = nano.ask(picture(2), QUESTIONS[0], **options)
            assert answer.stats.accepted_draft_tokens == 0


def test_logits_of_a_draft_are_the_references(
    decoder: DecoderRuntime, reference: TinyLlama
) -> None:
    tokens = some_tokens(20)
    decoder.decode_tokens(tokens[:12], positions(0, 12), logits=False)
    rows = decoder.decode_draft(tokens[12:], positions(12, 20))
    assert relative_error(rows, reference_logits(reference, tokens)[12:]) < EXACT
    assert np.array_equal(decoder.logits(), rows[-1])
    decoder.truncate(place(15))
    (row,) = decoder.decode_draft(tokens[15:16], positions(15, 16))
    assert relative_error(row, reference_logits(reference, tokens)[15]) < EXACT


def test_a_draft_that_is_too_long_is_refused(decoder: DecoderRuntime) -> None:
    count = decoder.max_logits + 1
    with pytest.raises(
        InputError, match=f"may have up to {decoder.max_logits} tokens, has {count}"
    ):
        decoder.decode_draft(some_tokens(count), positions(0, count))
    decoder.decode_draft(some_tokens(count - 1), positions(0, count - 1))


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 3), min_size=0, max_size=6),
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=7, max_size=7),
)
def test_chosen_is_what_greedy_decoding_says(
    draft: list[int], rows: list[tuple[int, bool]]
) -> None:
    """Return logits with a best token that is clear, or close to the next one."""
    logits = np.zeros((len(draft) + 1, 5), np.float32)
    for row, (best, clear) in zip(logits, rows, strict=False):
        row[best] = 2 * NEAR_TIE if clear else NEAR_TIE / 2
    tokens, conclusive = verify_draft(logits, draft)
    for i, (best, clear) in enumerate(rows):
        if not clear:
            assert (tokens, conclusive) == (draft[:i], False)
            break
        assert tokens[i] == best
        if i == len(draft) or best != draft[i]:
            assert (len(tokens), conclusive) == (i + 1, True)
            break


def test_a_draft_is_what_followed_last() -> None:
    lookup = PromptLookup()
    lookup.start([1, 2, 3, 4, 5, SPAN, 1, 2, 3, 6, 7, 8, 9, 1, 2])
    lookup.append(3)
    assert lookup.draft() == (6, 7, 8)
    lookup.append(6)
    assert lookup.draft() == (7, 8, 9)
    lookup.append(0)
    assert lookup.draft() == ()
    lookup.finish()
    lookup.start([SPAN, 1, 2])  # an earlier answer comes before the prompt's text
    lookup.append(3)
    assert lookup.draft() == (6, 0)
    for _ in range(MAX_CONSECUTIVE_MISSES):
        assert lookup.draft()
        lookup.record(0, 2)
    assert lookup.draft() == ()
    lookup.start([SPAN, 1, 2])
    lookup.append(3)
    assert lookup.draft() == (6, 0)


def test_drafts_grow_while_they_are_right() -> None:
    lookup = PromptLookup()
    lookup.start([SPAN, *range(100, 120), SPAN, 100, 101])
    lookup.append(102)
    lengths = []
    for right in (True, True, True, False, True):
        draft = lookup.draft()
        lengths.append(len(draft))
        lookup.record(len(draft) if right else 1, len(draft))
    assert lengths == [
        MIN_DRAFT_LENGTH,
        2 * MIN_DRAFT_LENGTH,
        MAX_DRAFT_LENGTH,
        MAX_DRAFT_LENGTH,
        MIN_DRAFT_LENGTH,
    ]


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 10**5), max_size=600), max_size=30))
def test_what_is_remembered_is_bounded(answers: list[list[int]]) -> None:
    lookup = PromptLookup()
    for answer in answers:
        lookup.start([])
        for token in answer:
            lookup.append(token)
            assert len(lookup.draft()) <= MAX_DRAFT_LENGTH
        lookup.finish()
    assert len(lookup._earlier) <= MAX_NGRAMS
