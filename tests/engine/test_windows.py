"""`Window`: prompts that lose their oldest frame take turns with others, as if each had its own decoder."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.engine.kv_cache import KVCache, Window
from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.prompt import PromptItem
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support.spans import make_span
from tests.support.tiny_decoder import (
    EXACT,
    ExactDecoder,
    TinyLlama,
    reference_model,
    write_decoder,
)

CONTEXT, LENGTH, MEMORY = 300, 10, 3
HEAD, QUESTION = [1, 2, 3], [4, 5]


class Decoding:
    """A decoder and its KV cache."""

    def __init__(self, decoder: LlamaCppDecoder) -> None:
        self.decoder, self.cache = decoder, KVCache(decoder)
        self.cache.reset()

    def logits(
        self, items: Sequence[PromptItem], window: Window | None, *, continues: bool = False
    ) -> NDArray[np.float32]:
        """Return the logits after a prompt."""
        held = self.cache.reuse_prefix(items, expect_continuation=continues, window=window)
        start = len(tokens_of(items[:held]))
        ids = tokens_of(items[held:])
        positions = np.arange(start, start + len(ids), dtype=np.int32)
        self.decoder.decode_tokens(ids, positions, logits=True)
        self.cache.extend(items[held:])
        return self.decoder.logits()


class Frames:
    """The prompts about the newest frames of a source."""

    def __init__(self) -> None:
        self.window = Window()
        self._spans: deque[Span] = deque(maxlen=MEMORY)

    def next_prompt(self, frame: int) -> list[PromptItem]:
        self._spans.append(make_span(bytes([frame]), LENGTH))
        return [*HEAD, *self._spans, *QUESTION]


def tokens_of(items: Sequence[PromptItem]) -> list[int]:
    found: list[int] = []
    for item in items:
        if isinstance(item, int):
            found.append(item)
        else:
            found += np.random.default_rng(item.key[0]).integers(0, 256, item.length).tolist()
    return found


def fresh(model: TinyLlama, items: Sequence[PromptItem]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = model.logits(model.embed(tokens_of(items)))[-1]
    return logits


def error(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


@pytest.fixture(scope="module")
def decoders(
    model: TinyLlama, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[ExactDecoder]]:
    path: Path = write_decoder(tmp_path_factory.mktemp("tiny") / "tiny.gguf", model)
    opened = [ExactDecoder(path, context_length=CONTEXT, threads=1) for _ in range(4)]
    yield opened
    for decoder in opened:
        decoder.close()


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0, 0, 0, 1, 1, 2, None]), st.integers(0, 5)),
        min_size=15,
        max_size=30,
    )
)
def test_each_window_is_as_with_a_decoder_of_its_own(
    decoders: list[ExactDecoder], model: TinyLlama, steps: list[tuple[int | None, int]]
) -> None:
    """Frames of several sources may be equal. Other prompts begin as those of a window, or are copied."""
    shared, *alone = map(Decoding, decoders)
    sources, own = [Frames() for _ in alone], [Window() for _ in alone]
    prompt: list[PromptItem] = [*HEAD, *QUESTION]
    for source, frame in steps:
        if source is None:
            chat = frame % 2 == 1
            other = [*range(40), frame] if chat else [*prompt, frame]
            found = shared.logits(other, None, continues=chat)
            assert error(found, fresh(model, other)) < EXACT
        else:
            prompt = sources[source].next_prompt(frame)
            found = shared.logits(prompt, sources[source].window)
            expected = alone[source].logits(prompt, own[source])
            assert error(found, expected) < EXACT


def test_what_stays_has_seen_what_is_gone(decoders: list[ExactDecoder], model: TinyLlama) -> None:
    """So the test above would notice a window that was computed anew."""
    shared, source = Decoding(decoders[0]), Frames()
    for frame in range(MEMORY + 1):
        prompt = source.next_prompt(frame)
        found = shared.logits(prompt, source.window)
    assert error(found, fresh(model, prompt)) > EXACT


def test_a_step_that_was_stopped_loses_the_copy(
    decoders: list[ExactDecoder], model: TinyLlama
) -> None:
    """Keys that llama.cpp has yet to turn are not copied."""
    shared, source = Decoding(decoders[0]), Frames()
    for frame in range(MEMORY):
        shared.logits(source.next_prompt(frame), source.window)
    shared.cache.reuse_prefix(
        source.next_prompt(MEMORY), expect_continuation=False, window=source.window
    )
    other: list[PromptItem] = [*HEAD, make_span(b"x", LENGTH), *QUESTION]
    assert error(shared.logits(other, None), fresh(model, other)) < EXACT
    assert source.window.copy is None
    again = source.next_prompt(MEMORY + 1)
    assert error(shared.logits(again, source.window), fresh(model, again)) < EXACT


def test_a_copy_lives_while_another_prompt_is_held(decoders: list[ExactDecoder]) -> None:
    shared, sources = Decoding(decoders[0]), [Frames(), Frames()]
    for frame in range(6):
        for index, source in enumerate(sources):
            shared.logits(source.next_prompt(10 * index + frame), source.window)
            assert source.window.copy is None
        assert sources[0].window.copy is not None
    assert shared.cache.saved == 0
