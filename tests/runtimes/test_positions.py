"""Positions of an image or a video continue a sequence, also if they come in several calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.errors import InputError
from edgevlm.runtimes.cache_positions import CachePositions
from edgevlm.runtimes.protocols import Place


def text(start: int, count: int) -> NDArray[np.int32]:
    return np.arange(start, start + count, dtype=np.int32)


def video(start: int, tiles: int, height: int, width: int, step: int) -> NDArray[np.int32]:
    """Return times, lines and columns, int32 ``[3, tiles * height * width]``."""
    grid = np.indices((tiles, height, width)).reshape(3, -1).astype(np.int32)
    grid[0] *= step
    return grid + np.int32(start)


def add(held: CachePositions, positions: NDArray[np.int32]) -> None:
    held.check(positions, positions.shape[-1], embeddings=True, taken=held.place.entries)
    held.extend(positions)


@given(
    before=st.integers(0, 5),
    tiles=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(1, 4),
    step=st.integers(0, 9),
    data=st.data(),
)
def test_a_video_may_be_cut_anywhere(
    before: int, tiles: int, height: int, width: int, step: int, data: st.DataObject
) -> None:
    held = CachePositions(200, mrope=True)
    if before:
        add(held, text(0, before))
    positions = video(before, tiles, height, width, step)
    count = positions.shape[1]
    cut = data.draw(st.integers(1, count))
    for part in (positions[:, :cut], positions[:, cut:]):
        if part.size:
            add(held, part)
    end = before + max((tiles - 1) * step + 1, height, width)
    assert held.place == Place(before + count, end)
    add(held, text(end, 3))
    add(held, video(end + 3, 1, 2, 2, 0))
    assert held.place == Place(before + count + 3 + 4, end + 3 + 2)


@pytest.mark.parametrize(
    "wrong",
    [
        [[9], [9], [9]],  # a gap before it
        [[4, 6, 3], [4, 4, 4], [4, 5, 6]],  # back in time
        [[4, 6], [4, 3], [4, 4]],  # a line before the video
        [[4, 6], [4, 4], [4, 6]],  # a column too far
    ],
)
def test_wrong_positions_of_a_video(wrong: list[list[int]]) -> None:
    held = CachePositions(50, mrope=True)
    add(held, text(0, 4))
    with pytest.raises(InputError, match="positions must have the next time"):
        held.check(np.array(wrong), len(wrong[0]), embeddings=True, taken=held.place.entries)
    assert held.place == Place(4, 4)
    add(held, text(4, 1))
    with pytest.raises(InputError, match="the next one 5"):
        held.check(np.array([[7], [5], [5]]), 1, embeddings=True, taken=held.place.entries)
