"""How a prompt is cut into what the decoder takes in at once."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from edgevlm.engine.kv_cache import Unit
from edgevlm.engine.prefill import LONG_TEXT, SHORT_TEXT, pieces
from edgevlm.engine.vision_encoder import PART

TILES = st.lists(st.binary(min_size=1, max_size=2), min_size=1, max_size=3 * PART)
LENGTHS = (
    st.integers(1, 8)
    | st.integers(SHORT_TEXT - 1, SHORT_TEXT + 2)
    | st.integers(LONG_TEXT - 1, LONG_TEXT + 2)
    | st.just(3 * LONG_TEXT)
)
TEXTS = LENGTHS.map(lambda length: list(range(length)))
PROMPTS = st.lists(TILES | TEXTS, max_size=12).map(lambda runs: list(itertools.chain(*runs)))


@given(PROMPTS)
def test_nothing_is_lost_and_no_piece_has_many_tiles(units: list[Unit]) -> None:
    cut = list(pieces(units))
    assert list(itertools.chain(*cut)) == units
    assert all(cut)
    assert all(sum(isinstance(unit, bytes) for unit in piece) <= PART for piece in cut)
    assert all(any(map(_is_tile, piece)) or len(piece) <= LONG_TEXT for piece in cut)


def _is_tile(unit: Unit) -> bool:
    return isinstance(unit, bytes)


@given(PROMPTS)
def test_only_short_texts_between_tiles_go_in_with_them(units: list[Unit]) -> None:
    for piece in pieces(units):
        texts = [
            list(run)
            for is_tile, run in itertools.groupby(piece, lambda unit: isinstance(unit, bytes))
            if not is_tile
        ]
        if texts != [piece]:
            assert all(len(text) <= SHORT_TEXT for text in texts)
            assert isinstance(piece[0], bytes)


@given(PROMPTS)
def test_texts_at_both_ends_go_in_alone(units: list[Unit]) -> None:
    cut = list(pieces(units))
    for piece, end in ((cut[0], cut[0][0]), (cut[-1], cut[-1][-1])) if cut else ():
        assert isinstance(end, bytes) or all(isinstance(unit, int) for unit in piece)


def test_a_picture_in_tiles() -> None:
    """As SmolVLM splits one, with a position for each tile and a text around it."""
    units: list[Unit] = [1, 2, b"a", 3, b"b", 3, b"c", 3, b"d", 4, b"e", 5, 6]
    assert list(pieces(units)) == [
        [1, 2],
        [b"a", 3, b"b", 3, b"c", 3, b"d", 4],
        [b"e"],
        [5, 6],
    ]
