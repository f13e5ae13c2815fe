"""How many frames and embeddings a video takes, and its positions."""

from __future__ import annotations

import dataclasses
import logging
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgevlm.engine.kv_cache import number_positions, place_after
from edgevlm.errors import ImageError, InputError
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.inputs.tiling import CHECKPOINT_BUDGET, ImageBudget
from edgevlm.inputs.video_processor import VideoProcessor
from edgevlm.manifest import Manifest, SmartResizeTiling
from tests.core.test_manifest_video import OF_OWN_SIZE, STRETCHED

WARNED = "a video is reduced to"


def video(count: int, height: int = 60, width: int = 90) -> NDArray[np.uint8]:
    levels = np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1)
    return np.broadcast_to(levels, (count, height, width, 3))


def processor(example: Manifest, **changes: object) -> VideoProcessor:
    assert example.video is not None
    return VideoProcessor(dataclasses.replace(example.video, **changes), example.vision)  # type: ignore[arg-type]


def tokens(processed: ProcessedImage) -> int:
    return sum(plan.length for plan in processed.plans)


def test_frames_of_one_size_are_tiles_with_times() -> None:
    found = processor(STRETCHED).process(video(5), CHECKPOINT_BUDGET, fps=2)
    assert [tile.pixels.shape for tile in found.tiles] == [(64, 64, 3)] * 5
    assert found.times is not None
    assert found.times.times == (0.0, 0.5, 1.0, 1.5, 2.0)
    assert (found.times.frames, found.times.seconds) == (5, 2.5)
    assert tokens(found) == 5 * 4


def test_pairs_of_frames_are_tiles() -> None:
    found = processor(OF_OWN_SIZE).process(video(5), CHECKPOINT_BUDGET, fps=2)
    assert len({tile.pixels.shape for tile in found.tiles}) == 1
    pairs = [(tile.pixels[0, 0, 0], tile.pixels[0, 0, 3]) for tile in found.tiles]
    assert pairs == [(0, 1), (2, 3), (4, 4)], "the last frame is repeated"


def test_each_span_has_the_mean_time_of_its_frames() -> None:
    spans = processor(OF_OWN_SIZE, spans="tiles", positions_per_second=None)
    found = spans.process(video(5), CHECKPOINT_BUDGET, fps=2)
    assert found.times is not None
    assert found.times.times == (0.25, 1.25, 2.0)


def test_the_default_limit_reduces_frames_of_one_size(caplog: pytest.LogCaptureFixture) -> None:
    small = processor(STRETCHED, default_max_tokens=12)
    with caplog.at_level(logging.WARNING, "edgevlm"):
        found = small.process(video(9), CHECKPOINT_BUDGET, fps=1)
        small.process(video(8), CHECKPOINT_BUDGET, fps=1)
    assert found.times is not None
    assert found.times.times == (0, 4, 8)
    assert [record.message[: len(WARNED) + 14] for record in caplog.records] == [
        f"{WARNED} 3 of 9 frames"
    ]
    caplog.clear()
    fresh = processor(STRETCHED, default_max_tokens=12)
    with caplog.at_level(logging.WARNING, "edgevlm"):
        assert len(fresh.process(video(9), CHECKPOINT_BUDGET, frames=5).tiles) == 5, "asked for"
        assert len(fresh.process(video(9), ImageBudget("high")).tiles) == 9
        assert len(fresh.process(video(9), ImageBudget(max_tokens=8), frames=5).tiles) == 2
    assert not caplog.records
    with pytest.raises(InputError, match=r"max_image_tokens is 3, .* at least 4"):
        fresh.process(video(9), ImageBudget(max_tokens=3))


def test_the_default_limit_shrinks_frames_of_their_own_size(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tiling = SmartResizeTiling(28, 784, 100 * 784, "bicubic")
    free = processor(OF_OWN_SIZE, tiling=tiling, area_of="frame", default_max_tokens=40)
    with caplog.at_level(logging.WARNING, "edgevlm"):
        found = free.process(video(8, 280, 280), CHECKPOINT_BUDGET)
        free.process(video(8, 280, 280), CHECKPOINT_BUDGET)
    assert tokens(found) == 4 * 9
    assert [WARNED in record.message for record in caplog.records] == [True]
    assert tokens(free.process(video(8, 280, 280), ImageBudget("high"))) == 400
    assert tokens(free.process(video(8, 280, 280), ImageBudget(max_tokens=16))) == 16
    with pytest.raises(InputError, match=r"max_image_tokens is 3, .* at least 4"):
        free.process(video(8, 280, 280), ImageBudget(max_tokens=3))


def test_refused_arguments() -> None:
    some = processor(STRETCHED)
    with pytest.raises(InputError, match="frames must be from 1"):
        some.process(video(2), CHECKPOINT_BUDGET, frames=0)
    with pytest.raises(InputError, match="fps must be"):
        some.process(video(2), CHECKPOINT_BUDGET, fps=-1)
    with pytest.raises(ImageError, match="200 times"):
        processor(OF_OWN_SIZE).process(video(2, 10, 2100), CHECKPOINT_BUDGET)


def test_positions_of_the_documentation() -> None:
    """``get_rope_index`` of Qwen2.5-VL: three tiles of 2 x 2, 50 positions from one to the next."""
    tiling = SmartResizeTiling(28, 784, 4 * 784, "bicubic")
    spec = processor(OF_OWN_SIZE, tiling=tiling, area_of="frame", positions_per_second=25.0)
    (span,) = spec.process(video(6, 56, 56), CHECKPOINT_BUDGET, fps=1).spans
    numbers = number_positions([7, span, 8], 10)
    assert numbers[0].tolist() == [10, *[11] * 4, *[61] * 4, *[111] * 4, 112]
    assert numbers[1].tolist() == [10, *[11, 11, 12, 12] * 3, 112]
    assert numbers[2].tolist() == [10, *[11, 12, 11, 12] * 3, 112]
    assert place_after([7, span, 8]).position == 103
    assert place_after([7, span, 8]).entries == 14


@given(
    count=st.integers(1, 9),
    height=st.integers(28, 300),
    width=st.integers(28, 300),
    fps=st.floats(0.1, 30),
    limit=st.integers(5, 60),
    spans=st.sampled_from(["tiles", "video"]),
    area=st.sampled_from(["frame", "video"]),
)
def test_every_video(
    count: int, height: int, width: int, fps: float, limit: int, spans: str, area: str
) -> None:
    """The limit holds, all tiles have one size, times and positions never go back."""
    spec = processor(OF_OWN_SIZE, spans=spans, area_of=area)
    found = spec.process(
        video(count, height, width), ImageBudget(max_tokens=limit), fps=round(fps, 2)
    )
    assert tokens(found) <= max(limit, 5 * 11), "each side has one embedding at least"
    assert len({tile.pixels.shape for tile in found.tiles}) == 1
    assert len(found.tiles) == -(-count // 2)
    assert found.times is not None
    assert all(a <= b for a, b in pairwise(found.times.times))
    numbers = number_positions(list(found.spans), 3)
    assert numbers.shape == (3, tokens(found))
    assert (numbers >= 3).all()
    assert place_after(found.spans).position == numbers.max() - 2
    if spans == "video":
        assert (np.diff(numbers[0]) >= 0).all()
