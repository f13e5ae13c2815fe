"""Prefill on a Llama in numpy: what attends to what, in which calls, and when a request can be given up."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import KVCache, count_positions, place_after
from edgevlm.engine.prefill import (
    MAX_ENTRIES_PER_CALL,
    MAX_INLINE_TEXT_TOKENS,
    Prefill,
    PrefillStats,
)
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.engine.vision_encoder import VisionEncoder
from edgevlm.inputs.image_processor import ProcessedImage, Span
from edgevlm.inputs.packing import SpanPlan
from edgevlm.inputs.prompt import PromptItem
from edgevlm.inputs.tiling import Layout, Tiles
from edgevlm.manifest import DecoderSpec
from edgevlm.results import Chunk
from edgevlm.runtimes.protocols import Place
from tests.support.decoders import load_tiny
from tests.support.tiny_decoder import (
    CONTEXT_LENGTH,
    EXACT,
    TinyLlama,
    reference_model,
    relative_error,
    some_tokens,
)

Attention = Literal["causal", "prefix", "images"]
ROWS = 1100
"""Rows that the vision graph returns for each tile."""


class RandomVision:
    """Returns random rows by the first pixel of a tile; implements `VisionRuntime`."""

    device = "cpu"
    on_cpu = True

    def encode(
        self,
        tiles: NDArray[np.uint8],
        *,
        question: str = "",
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        return np.stack([rows_of(int(tile[0, 0, 0])) for tile in tiles])

    def close(self) -> None:
        pass


if TYPE_CHECKING:
    from edgevlm.runtimes.protocols import DecoderRuntime as Base
else:  # an object cannot be changed to a class with a protocol as its base
    Base = object


class Recording(Base):
    """Records the calls: kind, entries, bidirectional, logits."""

    calls: list[tuple[str, int, bool, bool]]
    embeddings: list[NDArray[np.float32]]

    def decode_tokens(self, token_ids: Sequence[int], *arguments: Any, **named: Any) -> None:
        self.calls.append(("tokens", len(token_ids), False, named["logits"]))
        super().decode_tokens(token_ids, *arguments, **named)  # type: ignore[safe-super]

    def decode_embeddings(self, embeddings: Any, *arguments: Any, **named: Any) -> None:
        bidirectional = named.get("bidirectional", False)
        self.calls.append(("embeddings", len(embeddings), bidirectional, named["logits"]))
        self.embeddings.append(embeddings)
        super().decode_embeddings(embeddings, *arguments, **named)  # type: ignore[safe-super]


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


@pytest.fixture(scope="module", params=["llama.cpp", "ONNX Runtime"])
def shared(
    tiny_file: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Recording]:
    decoder = load_tiny(
        request.param,
        tiny_file,
        tmp_path_factory.mktemp("onnx"),
        context_length=CONTEXT_LENGTH,
        bidirectional=CONTEXT_LENGTH,
    )
    decoder.__class__ = type("Recorded", (Recording, type(decoder)), {})
    assert isinstance(decoder, Recording)
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(shared: Recording) -> Recording:
    return emptied(shared)


def emptied(decoder: Recording) -> Recording:
    decoder.truncate(Place())
    decoder.calls, decoder.embeddings = [], []
    return decoder


def rows_of(seed: int) -> NDArray[np.float32]:
    """Return the rows of a tile: float32 ``[ROWS, width]``."""
    return np.random.default_rng(seed).standard_normal((ROWS, 64)).astype(np.float32)


def span(seed: int, length: int) -> Span:
    """Return the span of an image of one tile; its embeddings are the first rows of the tile."""
    layout = Layout(2, 2)
    pixels = np.full((1, 2, 2, 3), seed, np.uint8)
    plan = SpanPlan(range(1), length)
    image = ProcessedImage((bytes([seed]),), layout, (plan,), lambda: Tiles(tuple(pixels), layout))
    return image.spans[0]


def prefill(
    decoder: Recording, attention: Attention = "causal", scale: float | None = 1.0
) -> Prefill:
    """Return a prefill with empty caches."""
    spec = DecoderSpec("llama", 64, 262, 2048, attention, "sequential", 1.0, scale, {})
    encoder = VisionEncoder(RandomVision(), 1.0, ahead=False)
    return Prefill(emptied(decoder), encoder, KVCache(decoder), spec)


def start(prefill: Prefill, items: Sequence[PromptItem]) -> Generator[Chunk, None, PrefillStats]:
    return prefill.run(
        items, Stopwatch(), expect_continuation=True, cache_images=True, cancel=CancelSignal()
    )


def run(prefill: Prefill, items: Sequence[PromptItem]) -> int:
    """Prefill a prompt to its end; return how often it could have been given up."""
    chunks = list(start(prefill, items))
    assert all(chunk.text == "" and chunk.token_ids == () for chunk in chunks)
    return len(chunks)


def expected_logits(
    model: TinyLlama, items: Sequence[PromptItem], attention: Attention = "causal"
) -> NDArray[np.float32]:
    """Return the logits after a prompt, float32 ``[vocabulary]``."""
    rows = np.concatenate(
        [
            rows_of(item.tiles[0].key[0])[: item.length]
            if isinstance(item, Span)
            else model.embed([item])
            for item in items
        ]
    )
    visible = np.tri(len(rows), dtype=bool)
    if attention == "prefix":
        visible[:] = True
    elif attention == "images":
        start = 0
        for item in items:
            length = item.length if isinstance(item, Span) else 1
            visible[start : start + length, start : start + length] = True
            start += length
    last: NDArray[np.float32] = model.logits(rows, visible)[-1]
    return last


TEXT = some_tokens(40)
PROMPT: list[PromptItem] = [
    *TEXT[:5],
    span(1, 17),
    *TEXT[5:9],
    span(2, 30),
    span(3, 12),
    *TEXT[9:20],
]


@pytest.mark.parametrize(
    ("attention", "scale"),
    [("causal", 1.0), ("causal", None), ("prefix", 1.0), ("images", 1.0), ("images", None)],
)
def test_logits_are_those_of_the_mask(
    decoder: Recording, model: TinyLlama, attention: Attention, scale: float | None
) -> None:
    filled = prefill(decoder, attention, scale)
    expected = expected_logits(model, PROMPT, attention)
    for other in {"causal", "prefix", "images"} - {attention}:
        assert relative_error(expected_logits(model, PROMPT, other), expected) > 0.05  # type: ignore[arg-type]
    run(filled, PROMPT)
    assert relative_error(decoder.logits(), expected) < EXACT
    for longer in ([*PROMPT, *TEXT[20:24]], [*PROMPT[:8], *TEXT[30:34]], PROMPT):
        run(filled, longer)  # what the caches hold is used
        assert relative_error(decoder.logits(), expected_logits(model, longer, attention)) < EXACT
    if attention != "prefix":
        assert filled.cache_info().reused_positions > 0


def test_each_image_attends_to_itself_in_one_call_and_texts_are_tokens(
    decoder: Recording,
) -> None:
    run(prefill(decoder, "images", None), PROMPT)
    assert decoder.calls == [
        ("tokens", 5, False, False),
        ("embeddings", 17, True, False),
        ("tokens", 4, False, False),
        ("embeddings", 30, True, False),
        ("embeddings", 12, True, False),
        ("tokens", 11, False, True),
    ]


def test_a_prompt_of_a_prefix_is_one_call(decoder: Recording) -> None:
    run(prefill(decoder, "prefix"), PROMPT)
    assert decoder.calls == [("embeddings", 79, True, True)]


def test_without_a_scale_text_is_never_decoded_as_embeddings(decoder: Recording) -> None:
    run(prefill(decoder, "causal", None), PROMPT)
    assert decoder.calls == [
        ("tokens", 5, False, False),
        ("embeddings", 17, False, False),
        ("tokens", 4, False, False),
        ("embeddings", 30, False, False),
        ("embeddings", 12, False, False),
        ("tokens", 11, False, True),
    ]


def test_short_texts_between_spans_are_rows_of_the_table_times_the_scale(
    decoder: Recording, model: TinyLlama
) -> None:
    run(prefill(decoder, "causal", 3.0), PROMPT)
    assert decoder.calls == [
        ("tokens", 5, False, False),
        ("embeddings", 17 + 4 + 30 + 12, False, False),
        ("tokens", 11, False, True),
    ]
    (rows,) = decoder.embeddings
    np.testing.assert_array_equal(rows[17:21], 3 * model.embed(TEXT[5:9]))
    np.testing.assert_array_equal(rows[21:51], rows_of(2)[:30])


def test_the_last_item_has_logits_whatever_it_is(decoder: Recording, model: TinyLlama) -> None:
    for attention in ("causal", "images"):
        run(prefill(decoder, attention, None), PROMPT[:-11])
        assert [call[3] for call in decoder.calls] == [False] * 4 + [True]
        expected = expected_logits(model, PROMPT[:-11], attention)
        assert relative_error(decoder.logits(), expected) < EXACT


# --- long spans ---------------------------------------------------------------------------------

LONG: list[PromptItem] = [*TEXT[:3], span(4, 2 * MAX_ENTRIES_PER_CALL + 50), *TEXT[3:6]]


@pytest.mark.parametrize("scale", [1.0, None])
def test_a_long_span_is_decoded_in_pieces(
    decoder: Recording, model: TinyLlama, scale: float | None
) -> None:
    yields = run(prefill(decoder, "causal", scale), LONG)
    assert decoder.calls == [
        ("tokens", 3, False, False),
        ("embeddings", MAX_ENTRIES_PER_CALL, False, False),
        ("embeddings", MAX_ENTRIES_PER_CALL, False, False),
        ("embeddings", 50, False, False),
        ("tokens", 3, False, True),
    ]
    assert yields == len(decoder.calls) + 1  # one for the vision graph
    assert relative_error(decoder.logits(), expected_logits(model, LONG)) < EXACT


def test_the_last_piece_of_a_span_has_the_logits(decoder: Recording, model: TinyLlama) -> None:
    run(prefill(decoder), LONG[:-3])
    assert [call[3] for call in decoder.calls] == [False, False, False, True]
    assert relative_error(decoder.logits(), expected_logits(model, LONG[:-3])) < EXACT


def test_a_span_that_attends_to_itself_is_one_call_however_long(
    decoder: Recording, model: TinyLlama
) -> None:
    run(prefill(decoder, "images", None), LONG)
    assert [call[:2] for call in decoder.calls] == [
        ("tokens", 3),
        ("embeddings", 2 * MAX_ENTRIES_PER_CALL + 50),
        ("tokens", 3),
    ]
    assert relative_error(decoder.logits(), expected_logits(model, LONG, "images")) < EXACT


@pytest.mark.parametrize("given_up_after", range(1, 7))
@pytest.mark.parametrize("attention", ["causal", "images"])
def test_a_request_given_up_in_the_middle_leaves_nothing_wrong(
    decoder: Recording, model: TinyLlama, attention: Attention, given_up_after: int
) -> None:
    """The next prompts begin alike, and end before, in and after what was decoded."""
    filled = prefill(decoder, attention, None)
    prompts: list[list[PromptItem]] = [
        [*TEXT[:3], *TEXT[20:30]],
        [*TEXT[:2], span(5, 40), *TEXT[:4]],
        LONG,
    ]
    for following in prompts:
        given_up = start(filled, LONG)
        for _ in itertools.islice(given_up, given_up_after):
            pass
        given_up.close()
        held = filled.cache_info().positions
        assert held in {count_positions(LONG[:count]) for count in range(len(LONG) + 1)}
        run(filled, following)
        expected = expected_logits(model, following, attention)
        assert relative_error(decoder.logits(), expected) < EXACT
        assert filled.cache_info().positions == count_positions(following)


# --- the KV cache with spans --------------------------------------------------------------------

ITEMS = st.integers(0, 250) | st.builds(
    span, st.integers(1, 3), st.sampled_from([1, 2, 33, MAX_INLINE_TEXT_TOKENS + 1])
)


@settings(max_examples=25, deadline=None)
@given(st.data())
@pytest.mark.parametrize("attention", ["causal", "images"])
def test_reused_spans_are_those_that_would_be_decoded(
    attention: Attention, shared: Recording, data: st.DataObject
) -> None:
    """Spans of several lengths, also of one key, in prompts that share a prefix."""
    model = reference_model()
    filled = prefill(shared, attention, None)
    items: list[PromptItem] = []
    for _ in range(data.draw(st.integers(2, 4))):
        kept = data.draw(st.integers(0, len(items)))
        added = data.draw(st.lists(ITEMS, min_size=1, max_size=5))
        items = [*items[:kept], *added, *TEXT[:2]][-14:]
        run(filled, items)
        assert filled.cache_info().positions == count_positions(items)
        expected = expected_logits(model, items, attention)
        assert relative_error(shared.logits(), expected) < EXACT


def test_a_span_of_another_length_is_another_span(decoder: Recording) -> None:
    cache = KVCache(decoder)
    decoder.decode_tokens([7] * 6, np.arange(6, dtype=np.int32), logits=False)
    cache.extend([7, span(1, 4), 8])
    assert cache.held_positions == 6
    assert cache.reuse_prefix([7, span(1, 4), 8, 9], expect_continuation=False) == 3
    assert cache.reuse_prefix([7, span(1, 5), 8, 9], expect_continuation=False) == 1
    assert cache.held_positions == 1


def test_places_count_the_embeddings_of_spans() -> None:
    items: list[PromptItem] = [1, span(1, 17), 2, span(2, 3)]
    assert count_positions(items) == 22
    assert place_after(items) == Place(22, 22)
    assert place_after([]) == Place()


def test_copies_of_conversations_with_spans_are_restored_where_they_ended(
    decoder: Recording, model: TinyLlama
) -> None:
    filled = prefill(decoder)
    conversations: list[list[PromptItem]] = [
        [*TEXT[:3], span(1, 60), *TEXT[:20]],
        [*TEXT[:3], span(2, 90), *TEXT[:20]],
    ]
    for _ in range(2):
        for items in conversations:
            items += TEXT[20:25]
            run(filled, items)
            assert relative_error(decoder.logits(), expected_logits(model, items)) < EXACT
    info = filled.cache_info()
    assert info.conversations == 1
    assert info.reused_positions >= 60 + 90
    assert dataclasses.asdict(info)["encoded_tiles"] == 2
