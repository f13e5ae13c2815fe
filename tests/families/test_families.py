"""Each family against transformers: pixels, prompts, embeddings, logits, and the KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm import GenerationOptions, Video
from edgevlm.errors import ContextError
from edgevlm.inputs.images import load_image
from edgevlm.results import Answer
from tests.families.case import (
    ANSWER_TOKENS,
    MAX_EMBEDDINGS_ERROR,
    MAX_LOGITS_ERROR,
    ROWS,
    Case,
    answer,
    relative_error,
)
from tests.families.row import IMAGE, Message, picture, text
from tests.families.videos import (
    REQUESTS,
    TORCHVISION,
    frames,
    frames_of,
    gray_levels,
    our_ids,
    process,
    reference_inputs,
    reference_logits,
    reference_tiles,
)


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


def test_many_at_once(case: Case) -> None:
    """Answers that are decoded together, where the memory allows it, are those of one after another."""
    images = case.images(2)
    questions = ["What is this?", "Which color is it, and why?", "Why?"]
    requests = [(image, question) for question in questions for image in images]
    with case.load() as vlm:
        alone = [vlm.ask(*request, max_tokens=ANSWER_TOKENS) for request in requests]
    with case.load() as vlm:
        found = vlm.ask_many(requests, max_tokens=ANSWER_TOKENS)
    for ours, theirs in zip(found, alone, strict=True):
        assert isinstance(ours, Answer)
        assert ours.token_ids == theirs.token_ids


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


def test_a_saved_chat_goes_on_alike(case: Case, tmp_path: Path) -> None:
    """Also where positions have three numbers, a memory cannot be cut back, or windows slide."""
    if case.row.single_question:
        pytest.skip("the model answers one question only")
    questions = ("What is this? Describe it well, please.", "Why?", "Which color is it?")
    # Greedy answers of random weights may have no text, and so are no turns.
    any_text: GenerationOptions = {
        "max_tokens": ANSWER_TOKENS,
        "temperature": 20.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
    }
    path = tmp_path / "talk.zip"
    with case.load() as vlm:
        chat = vlm.chat()
        chat.send(questions[0], images=case.images(2), **any_text)
        chat.send(questions[1], **any_text)
        assert len(chat.messages) == 4
        chat.save(path)
        expected = chat.send(questions[2], max_tokens=ANSWER_TOKENS, top_logprobs=2)
    with case.load() as vlm:
        loaded = vlm.load_chat(path)
        again = tmp_path / "again.zip"
        loaded.save(again)
        assert again.read_bytes() == path.read_bytes()
        found = loaded.send(questions[2], max_tokens=ANSWER_TOKENS, top_logprobs=2)
    assert found.logprobs == expected.logprobs
    assert found.stats.cached_tokens == expected.stats.cached_tokens
    if case.vlm.manifest.decoder.attention != "prefix":
        assert found.stats.encoded_tiles == 0 < found.stats.cached_tokens


def test_videos(case: Case, tmp_path: Path) -> None:
    """Prompts, sizes and logits are equal, gray levels up to the rounding of torchvision's resize."""
    if not case.row.videos or not TORCHVISION.is_dir():
        pytest.skip("takes no videos, or no torchvision, which transformers needs for them")
    engine, prompt = case.vlm._engine, case.vlm.manifest.prompt
    places = {case.image_id, case.special.get(str(prompt.video_placeholder))}
    side = getattr(case.reference.processor.image_processor, "patch_size", 0)
    prepared = reference_inputs(case.bundle.with_name("checkpoint"), REQUESTS, tmp_path)
    for index, (request, inputs) in enumerate(zip(REQUESTS, prepared, strict=True)):
        processed = process(case, request, index)
        expected = [-1 if token in places else token for token in inputs["input_ids"][0].tolist()]
        assert our_ids(case, request, processed) == expected
        if request.images:  # resized by torchvision there, too
            continue
        for tile, frame in zip(frames_of(processed), reference_tiles(inputs, side), strict=True):
            assert tile.shape == frame.shape
            difference = np.abs(gray_levels(case, frame) - tile)
            assert difference.max() < 2.02
            assert difference.mean() < 0.05
        tokens, logits = reference_logits(case, inputs, ANSWER_TOKENS)
        found = engine.logits(request.messages, processed, tokens)
        assert relative_error(found, logits[:, : found.shape[1]]) < MAX_LOGITS_ERROR


def test_scores_over_a_video(case: Case) -> None:
    """The reference is the logits of the same video in a message."""
    if not case.row.videos:
        pytest.skip("takes no videos")
    video = frames("scores", 5, 100, 70)
    choices = ["yes", "no"]
    parts = [{"type": "video", "video": video, "fps": 2}, {"type": "text", "text": "Is it red?"}]
    with case.load() as vlm:
        choice = vlm.choose(Video(video, fps=2), "Is it red?", choices)
        ends = sorted(vlm.manifest.prompt.end_token_ids)
        expected = []
        for text in choices:
            likely = 0.0
            for tokens in {
                tuple(vlm._engine._prompts.tokenize_text(start + text)) for start in ("", " ")
            }:
                logits = vlm.logits([{"role": "user", "content": parts}], [*tokens, ends[0]])
                rows = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
                rows /= rows.sum(axis=1, keepdims=True)
                steps = [rows[at, token] for at, token in enumerate(tokens)]
                likely += float(np.prod(steps) * rows[len(tokens), ends].sum())
            expected.append(likely)
    shares = np.array(expected) / np.sum(expected)
    np.testing.assert_allclose([choice.probabilities[text] for text in choices], shares, rtol=2e-2)


def test_a_second_question_about_a_video(case: Case) -> None:
    """Encodes and prefills nothing of the video, and answers as a first question."""
    if not case.row.videos:
        pytest.skip("takes no videos")
    video = frames("again", 5, 100, 70)
    with case.load() as vlm:
        asked = [
            vlm.ask_video(video, question, fps=2, max_tokens=ANSWER_TOKENS, temperature=0)
            for question in ("What happens in it?", "Which color is it, and why?")
        ]
        other = vlm.ask_video(video, "Which color is it, and why?", fps=1, max_tokens=1)
    with case.load() as vlm:
        fresh = vlm.ask_video(
            video, "Which color is it, and why?", fps=2, max_tokens=ANSWER_TOKENS, temperature=0
        )
    assert asked[1].token_ids == fresh.token_ids
    assert asked[1].stats.encoded_tiles == other.stats.encoded_tiles == 0
    assert asked[1].stats.cached_tokens > asked[1].stats.prompt_tokens // 2
    says_times = case.vlm.manifest.prompt.video_template != "{{ image }}"
    spec = case.vlm.manifest.video
    assert spec is not None
    counts_times = spec.positions_per_second is not None
    assert (other.stats.cached_tokens < asked[1].stats.cached_tokens) == (
        says_times or counts_times
    ), "another rate of frames is another prompt"
