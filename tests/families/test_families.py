"""Each family against transformers: pixels, prompts, embeddings, logits, and the KV cache."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import ContextError
from edgevlm.inputs.images import load_image
from tests.families.case import (
    ANSWER_TOKENS,
    MAX_EMBEDDINGS_ERROR,
    MAX_LOGITS_ERROR,
    ROWS,
    Case,
    answer,
)
from tests.families.row import IMAGE, Message, picture, text


@pytest.fixture(scope="module", params=ROWS, ids=lambda row: row.name)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    made = Case(request.param, tmp_path_factory.mktemp("family"))
    yield made
    made.vlm.close()


def test_pixels(case: Case) -> None:
    normalization = case.vlm.manifest.image.normalization
    for seed, size in enumerate(case.row.sizes):
        image = picture(seed, size)
        tiles = case.vlm._engine.process_image(load_image(image)).pixels
        for tile, expected in zip(tiles, case.reference.pixels(image), strict=True):
            assert tile.shape == expected.shape
            scaled = expected * normalization.std + normalization.mean
            levels = scaled / normalization.rescale_factor
            assert np.abs(levels - np.rint(levels)).max() < 0.02, (
                "transformers' pixels are no levels"
            )
            np.testing.assert_array_equal(tile, np.rint(levels).astype(np.uint8))


def test_prompts(case: Case) -> None:
    for messages, count in case.conversations():
        images = case.images(count)
        inputs = case.reference.inputs(messages, images)
        expected = case.reference.prompt_ids(inputs, case.image_id)
        assert case.pieces(case.ids(messages, images)) == case.pieces(expected)


def test_special_tokens_of_a_user_stay_text(case: Case) -> None:
    prompt = case.vlm.manifest.prompt
    spelled = [*case.special, prompt.image_token, prompt.image_placeholder]
    written = " and ".join(dict.fromkeys(spelled)) + "?"
    messages = [{"role": "user", "content": [IMAGE, text(f"What is {written}")]}]
    plain = [{"role": "user", "content": [IMAGE, text("What is this?")]}]
    images = case.images(1)
    found, without = case.ids(messages, images), case.ids(plain, images)
    ids = set(case.special.values())
    assert [token for token in found if token in ids] == [
        token for token in without if token in ids
    ]
    tokenizer = case.reference.processor.tokenizer
    assert written in tokenizer.decode(found)


def test_embeddings(case: Case) -> None:
    assert case.embeddings_error() < MAX_EMBEDDINGS_ERROR


def test_logits(case: Case) -> None:
    assert case.logits_error() < MAX_LOGITS_ERROR


def test_the_context_is_used_to_its_last_entry(case: Case) -> None:
    """Entries count, not positions, of which an image takes fewer in some families."""
    messages, count = case.conversations()[1]
    images = case.images(count)
    entries = len(case.ids(messages, images))
    if entries + ANSWER_TOKENS <= case.vlm.manifest.decoder.context_length:
        with case.load(context_length=entries + ANSWER_TOKENS) as vlm:
            found = answer(vlm, messages, images)
            assert found.stats.prompt_tokens == entries
            assert found.token_ids == answer(case.vlm, messages, images).token_ids
    with (
        case.load(context_length=entries + ANSWER_TOKENS - 1) as vlm,
        pytest.raises(ContextError, match=f"{entries} positions and max_tokens is {ANSWER_TOKENS}"),
    ):
        answer(vlm, messages, images)


def test_a_second_question_prefills_no_image_again(case: Case) -> None:
    """It is decoded after the image, also where the memory cannot be cut back, and answers as a first one."""
    if case.vlm.manifest.decoder.attention == "prefix" or case.row.single_question:
        pytest.skip("each prompt is decoded as a whole")
    images = case.images(1)
    questions = ("What is this? Describe it well.", "Which color is it?", "Why, and since when?")
    asked = [[{"role": "user", "content": [IMAGE, text(question)]}] for question in questions]
    with case.load() as vlm:
        found = [answer(vlm, messages, images) for messages in asked]
    for messages, later in zip(asked[1:], found[1:], strict=True):
        assert later.stats.encoded_tiles == 0
        assert later.stats.cached_tokens >= case.image_end(messages, images)
        with case.load() as vlm:
            assert answer(vlm, messages, images).token_ids == later.token_ids


def test_scores_do_not_depend_on_the_order(case: Case) -> None:
    """Between two choices the decoder comes back to the end of the prompt."""
    if case.row.single_question:
        pytest.skip("the model answers in its own form")
    (image,) = case.images(1)
    choices = ["red", "blue and green", "no"]
    found = []
    for order in (choices, choices[::-1]):
        with case.load() as vlm:
            scores = vlm.score(image, "Which color?", order)
        found.append({score.text: score.logprob for score in scores})
    assert found[0] == pytest.approx(found[1], abs=0.02)


def test_kv_cache(case: Case) -> None:
    """A second turn, a conversation that was copied out, and a shortened one answer as without a cache."""
    one, two = case.images(2)
    first = {"role": "user", "content": [IMAGE, text("What is this? Describe it well, please.")]}
    said = {"role": "assistant", "content": [text("A picture.")]}
    again = {"role": "user", "content": [text("Why?")]}
    other = {"role": "user", "content": [IMAGE, text("Something else, quite another thing?")]}
    asked: list[tuple[list[Message], list[Image.Image]]] = (
        [([first], [one]), ([other], [two]), ([first], [one])]
        if case.row.single_question
        else [
            ([first], [one]),
            ([first, said, again], [one]),  # goes on
            ([other, said, again], [two]),  # takes the place of the first
            ([first, said, again, said, again], [one]),  # copied back
            ([first], [one]),  # cut back
        ]
    )
    with case.load() as vlm:
        found = [answer(vlm, *request) for request in asked]
        removable = vlm._engine._decoder.max_removable > 0
    if not case.row.single_question:
        # A memory that cannot be cut back comes back to the end of the image: these answers are not its own.
        image = case.image_end([first], [one])
        expected = found[0].stats.prompt_tokens if removable else image
        assert found[1].stats.cached_tokens >= image
        assert found[3].stats.cached_tokens >= expected
    for request, cached in zip(asked, found, strict=True):
        with case.load() as vlm:
            fresh = answer(vlm, *request)
        assert cached.token_ids == fresh.token_ids
        for ours, theirs in zip(cached.logprobs, fresh.logprobs, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=0.02)
