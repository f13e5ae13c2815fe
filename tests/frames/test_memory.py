"""``memory`` of `VLM.watch`: frames enter the KV cache once, old ones leave it, and nobody else notices."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm import VLM, Answer, InputError
from edgevlm.frame_memory import FrameMemory
from edgevlm.inputs.image_processor import ProcessedImage

QUESTION = "What color is it?"
SIZE = (96, 96)


@pytest.fixture
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


def frames(count: int, seed: int = 0) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*SIZE, 3), np.uint8) for _ in range(count)]


def seen(vlm: VLM, images: list[NDArray[np.uint8]], **options: Any) -> list[Answer]:
    with vlm.watch(iter(images), QUESTION, max_tokens=4, **options) as watch:
        answers = [one.answer for one in watch]
    assert all(isinstance(answer, Answer) for answer in answers)
    return answers  # type: ignore[return-value]


def test_until_it_is_full_values_are_those_of_a_question_about_all_frames(vlm: VLM) -> None:
    images = frames(4)
    found = seen(vlm, images, memory=4)
    for count, answer in enumerate(found, 1):
        expected = vlm.ask(images[:count], QUESTION, max_tokens=4)
        assert answer.token_ids == expected.token_ids
        assert answer.stats.prompt_tokens == expected.stats.prompt_tokens


def test_each_frame_is_encoded_and_decoded_once(vlm: VLM) -> None:
    found = seen(vlm, frames(12), memory=3)
    one = found[1].stats.prompt_tokens - found[0].stats.prompt_tokens
    text = found[0].stats.prompt_tokens - one
    for count, answer in enumerate(found, 1):
        stats = answer.stats
        assert stats.encoded_tiles == 1
        assert stats.prompt_tokens == text + min(count, 3) * one
        assert stats.prompt_tokens - stats.cached_tokens <= one + text


def test_choices_take_the_same_window(vlm: VLM) -> None:
    with vlm.watch(iter(frames(6)), QUESTION, choices=["red", "green"], memory=2) as watch:
        found = list(watch)
    assert len(found) == 6
    assert vlm.cache_info().encoded_tiles == 6


def test_other_requests_do_not_see_what_moved(vlm: VLM) -> None:
    """Their prompts may begin as what is held, but its keys and values are not those of these prompts."""
    images = frames(6)
    expected = vlm.ask(images[3:], QUESTION, max_tokens=4, top_logprobs=0)
    seen(vlm, images, memory=3)
    found = vlm.ask(images[3:], QUESTION, max_tokens=4, top_logprobs=0)
    assert [one.logprob for one in found.logprobs] == [one.logprob for one in expected.logprobs]
    assert found.stats.cached_tokens < expected.stats.prompt_tokens / 2


def test_frames_that_do_not_fit_the_context_are_forgotten() -> None:
    with VLM.from_pretrained(threads=1, context_length=512) as small:
        found = seen(small, frames(12), memory=12)
        assert found[-1].stats.prompt_tokens <= 512 - 4
        assert found[-1].stats.encoded_tiles == 1


def test_a_model_that_cannot_move_positions_says_so(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vlm._engine._decoder, "can_shift", False)
    images = frames(4)
    found = seen(vlm, images, memory=2)
    assert "each frame decodes all of the memory" in caplog.text
    expected = vlm.ask(images[2:], QUESTION, max_tokens=4)
    assert found[-1].token_ids == expected.token_ids


def test_what_is_forgotten_is_freed_at_once(vlm: VLM) -> None:
    """Not when Python looks for cycles: frames would pile up until then."""
    gc.collect()
    gc.disable()
    try:
        with vlm.watch(iter(frames(8)), QUESTION, max_tokens=1, memory=2) as watch:
            for _ in watch:
                alive = [one for one in gc.get_objects() if type(one) is ProcessedImage]
                assert len(alive) <= 2
                del alive
    finally:
        gc.enable()


@pytest.mark.parametrize("memory", [0, -1, "30", "s", "-1s", 1.5, True, "1e9s"])
def test_wrong_limits(vlm: VLM, memory: Any) -> None:
    with pytest.raises(InputError, match="memory"):
        vlm.watch(iter(frames(1)), QUESTION, memory=memory)


def in_turns(vlm: VLM, *sources: list[NDArray[np.uint8]], **options: Any) -> list[list[Answer]]:
    """Return the answers about each source of one watch."""
    found: list[list[Answer]] = [[] for _ in sources]
    settings = {"max_tokens": 4, "top_logprobs": 0, **options}
    with vlm.watch([iter(one) for one in sources], QUESTION, **settings) as watch:
        for one in watch:
            assert isinstance(one.answer, Answer)
            found[one.source].append(one.answer)
    assert [len(answers) for answers in found] == [len(images) for images in sources]
    return found


def logprobs(answers: list[Answer]) -> list[list[float]]:
    return [[one.logprob for one in answer.logprobs] for answer in answers]


def test_each_source_has_a_memory_of_its_own(vlm: VLM) -> None:
    """Values are those of a watch of one source, and frames enter the KV cache once, in turns, too."""
    sources = [frames(8, seed) for seed in (0, 1, 2)]
    found = in_turns(vlm, *sources, memory=3)
    for images, answers in zip(sources, found, strict=True):
        (alone,) = in_turns(vlm, images, memory=3)
        assert [one.token_ids for one in answers] == [one.token_ids for one in alone]
        for one, other in zip(logprobs(answers), logprobs(alone), strict=True):
            assert one == pytest.approx(other, abs=1e-3)
        assert [one.stats.encoded_tiles for one in answers] == [1] * 8
        decoded = [one.stats.prompt_tokens - one.stats.cached_tokens for one in answers]
        assert (
            decoded[1:] == [one.stats.prompt_tokens - one.stats.cached_tokens for one in alone][1:]
        )


def test_in_turns_values_are_those_of_a_question_about_the_frames_of_one_source(vlm: VLM) -> None:
    sources = [frames(3, seed) for seed in (3, 4)]
    for images, answers in zip(sources, in_turns(vlm, *sources, memory=3), strict=True):
        for count, answer in enumerate(answers, 1):
            expected = vlm.ask(images[:count], QUESTION, max_tokens=4, top_logprobs=0)
            assert answer.token_ids == expected.token_ids
            assert logprobs([answer])[0] == pytest.approx(logprobs([expected])[0], abs=1e-3)


def test_another_request_between_two_frames_costs_no_frame(vlm: VLM) -> None:
    with vlm.watch(iter(frames(6)), QUESTION, max_tokens=4, memory=3) as watch:
        for one in watch:
            assert isinstance(one.answer, Answer)
            assert one.answer.stats.encoded_tiles == 1
            vlm.ask(frames(1, 9)[0], QUESTION, max_tokens=4)


def test_seconds(vlm: VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100.0, 101.0, 102.5, 104.0])
    memory = FrameMemory("2s")
    processed = [vlm._engine.process_image(image) for image in frames(4)]
    monkeypatch.setattr(time, "monotonic", lambda: next(times))
    lengths = []
    for one in processed:
        memory.add(one)
        lengths.append(len(memory.frames))
    assert lengths == [1, 2, 2, 2]
    assert memory.frames == processed[2:]
