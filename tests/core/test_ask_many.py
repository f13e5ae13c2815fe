"""`VLM.ask_many` answers as one `ask` after another of a model that has answered nothing before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import (
    VLM,
    ClosedError,
    ContextError,
    ImageError,
    InferenceError,
    InputError,
    PromptError,
)
from edgevlm.engine import parallel
from edgevlm.results import Answer
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.conftest import picture
from tests.support.oracle import BUNDLES

EXAMPLES = Path("examples")
SHAPES, SQUARE, SCENE = (EXAMPLES / f"{name}.png" for name in ("shapes", "square", "scene"))
REQUESTS: list[tuple[Any, str]] = [
    (SHAPES, "What color is the shape at the top left?"),
    (SQUARE, "What is in the picture?"),
    (SHAPES, "How many shapes are there?"),
    (None, "What is in the picture?"),
    (SHAPES, "What is in the picture?"),
    (SCENE, "What is in the picture?"),
    ([SCENE, EXAMPLES / "changed.png"], "What changed?"),
    (SQUARE, "What color is it?"),
    (SCENE, "How many shapes are there?"),
    (SHAPES, "What shape is at the bottom?"),
    ([SQUARE], "What shape is it?"),
    (SCENE, "What color is the shape at the top left?"),
    *(
        (image, question)
        for question in ("What is this?", "Why?")
        for image in (SHAPES, SQUARE, SCENE)
    ),
]
"""More than there are branches: images that come again at once, later and never; several, and none."""


@pytest.fixture(scope="module")
def nano() -> Iterator[VLM]:
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def expected() -> list[Answer]:
    """The answer to each of `REQUESTS` alone."""
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        return [vlm.ask(images, question) for images, question in REQUESTS]


def check(found: list[Any], expected: list[Answer]) -> None:
    for ours, alone in zip(found, expected, strict=True):
        assert isinstance(ours, Answer), ours
        assert ours.token_ids == alone.token_ids
        assert (ours.text, ours.finish_reason) == (alone.text, alone.finish_reason)
        assert ours.stats.prompt_tokens == alone.stats.prompt_tokens
        assert ours.stats.answer_tokens == len(ours.token_ids)


def room(vlm: VLM) -> int:
    """Free entries if nothing were held: less than the context if a branch were still open."""
    return vlm._engine._decoder.room(0)


def test_answers_are_those_of_one_after_another(nano: VLM, expected: list[Answer]) -> None:
    told: list[tuple[int, int]] = []
    found = nano.ask_many(REQUESTS, progress=lambda *done: told.append(done))
    check(found, expected)
    assert told == [(count + 1, len(REQUESTS)) for count in range(len(REQUESTS))]
    assert room(nano) == nano.context_length
    check(nano.ask_many(iter(REQUESTS[::-1])), expected[::-1])  # from the caches
    check([nano.ask(*REQUESTS[0])], expected[:1])
    assert nano.ask_many([]) == []


def test_they_are_decoded_together(nano: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch has the next tokens of several branches; no token is decoded alone but near ties."""
    sizes = []
    decode = LlamaCppDecoder.decode_branches

    def counted(self: Any, branches: list[int], *arguments: Any, **options: Any) -> Any:
        sizes.append(len(set(branches)))
        return decode(self, branches, *arguments, **options)

    monkeypatch.setattr(LlamaCppDecoder, "decode_branches", counted)
    monkeypatch.setattr(
        LlamaCppDecoder, "decode_draft", lambda *_, **__: pytest.fail("an answer was decoded alone")
    )
    found = nano.ask_many(REQUESTS)
    tokens = sum(answer.stats.answer_tokens for answer in found if isinstance(answer, Answer))
    assert max(sizes) > 8
    assert len(sizes) < tokens / 2


@pytest.mark.parametrize("wide", [False, True], ids=["near ties alone", "every token alone"])
def test_near_ties(
    nano: VLM, expected: list[Answer], monkeypatch: pytest.MonkeyPatch, wide: bool
) -> None:
    """As on a CPU that rounds batches otherwise: tokens are computed again, and the answers do not change."""
    monkeypatch.setattr(LlamaCppDecoder, "is_exact", lambda *_: False)
    if wide:
        monkeypatch.setattr(parallel, "NEAR_TIE", np.inf)
    check(nano.ask_many(REQUESTS), expected)


def test_options(nano: VLM) -> None:
    some = REQUESTS[:6]
    for options in (
        {"max_tokens": 1},
        {"max_tokens": 3},
        {"stop": ["s", "square"]},
        {"cache_images": False},
        {"max_tokens": None},
        {"top_logprobs": 2},  # not decoded together
        {"temperature": 0.7, "seed": 3},
    ):
        found = nano.ask_many(some, **options)
        with VLM.from_pretrained("edgevlm-nano", threads=1) as fresh:
            alone = [fresh.ask(*request, **options) for request in some]
        check(found, alone)
        if "top_logprobs" in options:
            assert all(isinstance(one, Answer) and len(one.logprobs) for one in found)


def test_an_error_belongs_to_its_request(nano: VLM, expected: list[Answer]) -> None:
    requests = list(REQUESTS)
    requests[1] = "no_such.png", "What is it?"
    requests[3] = SQUARE, " "
    requests[8] = None, "word " * 3000
    found = nano.ask_many(requests)
    wrong = {1: ImageError, 3: PromptError, 8: ContextError}
    for index, kind in wrong.items():
        assert isinstance(found[index], kind)
    right = [index for index in range(len(requests)) if index not in wrong]
    check([found[index] for index in right], [expected[index] for index in right])
    assert all(isinstance(one, ImageError) for one in nano.ask_many([("no_such.png", "?")] * 10))
    with pytest.raises(InputError, match="max_tokens"):
        nano.ask_many(REQUESTS, max_tokens=0)


def test_a_prompt_that_fails_in_the_middle(
    nano: VLM, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the decoder holds of it then takes no room of the others."""
    decode = LlamaCppDecoder.decode_embeddings
    calls = 0

    def broken(*arguments: Any, **options: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InferenceError("it broke")
        decode(*arguments, **options)

    monkeypatch.setattr(LlamaCppDecoder, "decode_embeddings", broken)
    with VLM.from_pretrained("edgevlm-nano", threads=1, context_length=400) as vlm:
        found = vlm.ask_many(REQUESTS[:6], cap_max_tokens=True)
    wrong = [isinstance(one, InferenceError) for one in found]
    assert sum(wrong) == 1
    right = [index for index, failed in enumerate(wrong) if not failed]
    check([found[index] for index in right], [expected[index] for index in right])


@pytest.mark.parametrize("context_length", [270, 400])
@pytest.mark.parametrize("expected_tokens", [0, 32])
def test_a_context_that_is_soon_full(
    expected: list[Answer],
    monkeypatch: pytest.MonkeyPatch,
    context_length: int,
    expected_tokens: int,
) -> None:
    """Requests wait for room. With an expectation of 0 some begin too early, and once more later."""
    monkeypatch.setattr(parallel, "EXPECTED_TOKENS", expected_tokens)
    longest = max(answer.stats.prompt_tokens for answer in expected)
    assert longest < context_length
    with VLM.from_pretrained("edgevlm-nano", threads=1, context_length=context_length) as vlm:
        check(vlm.ask_many(REQUESTS, cap_max_tokens=True), expected)
        assert room(vlm) == context_length


def test_a_failure_leaves_the_model_as_it_was(
    nano: VLM, expected: list[Answer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, _: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nano.ask_many(REQUESTS, progress=stop)
    assert room(nano) == nano.context_length
    check(nano.ask_many(REQUESTS[:2]), expected[:2])


def test_a_model_that_is_closed_meanwhile() -> None:
    vlm = VLM.from_pretrained("edgevlm-nano", threads=1)
    with pytest.raises(ClosedError):
        vlm.ask_many(REQUESTS, progress=lambda *_: vlm.close())
    with pytest.raises(ClosedError):
        vlm.ask_many(REQUESTS)


@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "paligemma"])
def test_random_weights(family: str) -> None:
    """Many near ties; images in tiles, and a prompt whose entries attend to each other."""
    images = [picture(0), picture(1, 300, 200), picture(2, 90, 200)]
    requests = [
        (images[index % 3], f"What is {what}?")
        for index, what in enumerate(
            ["this", "that", "red", "it", "there", "a cat", "seen", "1", "2"]
        )
    ]
    with VLM.from_pretrained(BUNDLES / family, threads=1) as vlm:
        alone = [vlm.ask(*request, max_tokens=12) for request in requests]
    with VLM.from_pretrained(BUNDLES / family, threads=1) as vlm:
        check(vlm.ask_many(requests, max_tokens=12), alone)
