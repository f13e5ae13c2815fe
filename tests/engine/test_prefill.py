"""Chunks of a prompt for the decoder; `tests/engine/test_attention.py` compares what they give."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgevlm.engine.prefill import (
    MAX_ENTRIES_PER_CALL,
    MAX_INLINE_TEXT_TOKENS,
    chunk_prompt,
    tiles_of,
)
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK
from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.prompt import PromptItem
from tests.support.spans import make_lines, make_span

SPANS = st.lists(
    st.builds(
        make_span,
        st.binary(min_size=1, max_size=2),
        length=st.integers(1, 9),
        tiles=st.just(1) | st.integers(1, TILES_PER_CHUNK + 2),
    ),
    min_size=1,
    max_size=3 * TILES_PER_CHUNK,
)
LENGTHS = (
    st.integers(1, 8)
    | st.integers(MAX_INLINE_TEXT_TOKENS - 1, MAX_INLINE_TEXT_TOKENS + 2)
    | st.integers(MAX_ENTRIES_PER_CALL - 1, MAX_ENTRIES_PER_CALL + 2)
    | st.just(3 * MAX_ENTRIES_PER_CALL)
)
TEXTS = LENGTHS.map(lambda length: list(range(length)))
PROMPTS = st.lists(SPANS | TEXTS, max_size=12).map(lambda runs: list(itertools.chain(*runs)))


def is_span(item: PromptItem) -> bool:
    return isinstance(item, Span)


def count_tiles(chunk: list[PromptItem]) -> int:
    return len({tile for item in chunk if isinstance(item, Span) for tile in item.tiles})


@given(PROMPTS)
def test_nothing_is_lost_and_no_chunk_has_many_tiles(items: list[PromptItem]) -> None:
    chunks = list(chunk_prompt(items))
    assert list(itertools.chain(*chunks)) == items
    assert all(chunks)
    for chunk in chunks:
        spans = sum(map(is_span, chunk))
        assert count_tiles(chunk) <= TILES_PER_CHUNK or spans == 1
        assert spans or len(chunk) <= MAX_ENTRIES_PER_CALL


@given(PROMPTS)
def test_only_short_texts_between_spans_go_in_with_them(items: list[PromptItem]) -> None:
    for chunk in chunk_prompt(items):
        texts = [list(run) for span, run in itertools.groupby(chunk, is_span) if not span]
        if texts != [chunk]:
            assert all(len(text) <= MAX_INLINE_TEXT_TOKENS for text in texts)
            assert is_span(chunk[0])


@given(PROMPTS)
def test_texts_at_both_ends_go_in_alone(items: list[PromptItem]) -> None:
    chunks = list(chunk_prompt(items))
    for chunk, end in ((chunks[0], chunks[0][0]), (chunks[-1], chunks[-1][-1])) if chunks else ():
        assert is_span(end) or not any(map(is_span, chunk))


@given(PROMPTS)
def test_without_inline_text_a_chunk_is_one_span_or_a_text(items: list[PromptItem]) -> None:
    chunks = list(chunk_prompt(items, max_inline_text=0, max_tiles=None))
    assert list(itertools.chain(*chunks)) == items
    for chunk in chunks:
        assert len(chunk) == 1 or not any(map(is_span, chunk))


def test_an_image_in_tiles() -> None:
    """An image in tiles as SmolVLM's, with text before each tile and around them."""
    a, b, c, d, e = map(make_span, (b"a", b"b", b"c", b"d", b"e"))
    items: list[PromptItem] = [1, 2, a, 3, b, 3, c, 3, d, 4, e, 5, 6]
    assert list(chunk_prompt(items)) == [[1, 2], [a, 3, b, 3, c, 3, d, 4], [e], [5, 6]]


def test_an_image_of_many_tiles_in_one_span() -> None:
    """An image as LLaVA-NeXT's: its span is a chunk of its own."""
    a, b, c = make_span(b"a"), make_span(b"b", 30, TILES_PER_CHUNK + 1), make_span(b"c")
    assert list(chunk_prompt([1, a, 2, b, 3, c, 4])) == [[1], [a, 2], [b, 3], [c], [4]]


def test_an_image_in_lines() -> None:
    """An image as Pixtral's: all its lines are of one tile, so they go in together."""
    first, second = make_lines(b"a", lines=9), make_lines(b"b", lines=2)
    items: list[PromptItem] = [1]
    for line in (*first, *second):
        items += [line, 2]
    chunks = list(chunk_prompt([*items, 3]))
    assert chunks == [[1], items[1:-1], [2, 3]]
    assert [tile.key for tile in tiles_of(items)] == [b"a", b"b"]
    # Where each span is decoded by itself, so is each line, also if the next is of the same tile.
    alone = list(chunk_prompt(list(first), max_inline_text=0, max_tiles=None))
    assert alone == [[line] for line in first]


def test_the_tiles_of_an_image_that_comes_twice_count_twice() -> None:
    items = [*make_lines(b"a", lines=3), *make_lines(b"a", lines=3)]
    assert [tile.key for tile in tiles_of(items)] == [b"a", b"a"]
    assert len(list(chunk_prompt(items))) == 1
