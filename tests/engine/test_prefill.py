"""Chunks of a prompt for the decoder."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.engine.prefill import MAX_INLINE_TEXT_TOKENS, MAX_TEXT_TOKENS_PER_CHUNK, chunk_prompt
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK
from edgevlm.inputs.image_processor import ProcessedImage, Tile
from edgevlm.inputs.prompt import PromptItem


def tile(key: bytes) -> Tile:
    """Return a tile whose pixels must not be used."""
    return Tile(key, ProcessedImage((key,), 0, 0, lambda: pytest.fail("pixels are needed")), 0)


TILES = st.lists(
    st.binary(min_size=1, max_size=2).map(tile),
    min_size=1,
    max_size=3 * TILES_PER_CHUNK,
)
LENGTHS = (
    st.integers(1, 8)
    | st.integers(MAX_INLINE_TEXT_TOKENS - 1, MAX_INLINE_TEXT_TOKENS + 2)
    | st.integers(MAX_TEXT_TOKENS_PER_CHUNK - 1, MAX_TEXT_TOKENS_PER_CHUNK + 2)
    | st.just(3 * MAX_TEXT_TOKENS_PER_CHUNK)
)
TEXTS = LENGTHS.map(lambda length: list(range(length)))
PROMPTS = st.lists(TILES | TEXTS, max_size=12).map(lambda runs: list(itertools.chain(*runs)))


@given(PROMPTS)
def test_nothing_is_lost_and_no_piece_has_many_tiles(items: list[PromptItem]) -> None:
    chunks = list(chunk_prompt(items))
    assert list(itertools.chain(*chunks)) == items
    assert all(chunks)
    assert all(sum(isinstance(item, Tile) for item in chunk) <= TILES_PER_CHUNK for chunk in chunks)
    assert all(
        any(map(_is_tile, chunk)) or len(chunk) <= MAX_TEXT_TOKENS_PER_CHUNK for chunk in chunks
    )


def _is_tile(item: PromptItem) -> bool:
    return isinstance(item, Tile)


@given(PROMPTS)
def test_only_short_texts_between_tiles_go_in_with_them(items: list[PromptItem]) -> None:
    for chunk in chunk_prompt(items):
        texts = [
            list(run)
            for is_tile, run in itertools.groupby(chunk, lambda item: isinstance(item, Tile))
            if not is_tile
        ]
        if texts != [chunk]:
            assert all(len(text) <= MAX_INLINE_TEXT_TOKENS for text in texts)
            assert isinstance(chunk[0], Tile)


@given(PROMPTS)
def test_texts_at_both_ends_go_in_alone(items: list[PromptItem]) -> None:
    chunks = list(chunk_prompt(items))
    for chunk, end in ((chunks[0], chunks[0][0]), (chunks[-1], chunks[-1][-1])) if chunks else ():
        assert isinstance(end, Tile) or all(isinstance(item, int) for item in chunk)


def test_a_picture_in_tiles() -> None:
    """An image in tiles as SmolVLM's, with text before each tile and around them."""
    a, b, c, d, e = map(tile, (b"a", b"b", b"c", b"d", b"e"))
    items: list[PromptItem] = [1, 2, a, 3, b, 3, c, 3, d, 4, e, 5, 6]
    assert list(chunk_prompt(items)) == [[1, 2], [a, 3, b, 3, c, 3, d, 4], [e], [5, 6]]
