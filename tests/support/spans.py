"""Spans of images for tests that need no pixels."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.inputs.image_processor import ProcessedImage, Span
from edgevlm.inputs.packing import SpanPlan
from edgevlm.inputs.tiling import Layout


def make_lines(key: bytes, *, lines: int, columns: int = 4) -> tuple[Span, ...]:
    """Return the spans of a tile whose lines stand in the prompt by themselves."""
    rows = np.arange(lines * columns, dtype=np.int32).reshape(lines, columns)
    plans = tuple(SpanPlan(range(1), columns, line) for line in rows)
    return ProcessedImage((key,), Layout(64, 64), plans, lambda: pytest.fail("needs pixels")).spans


def make_span(key: bytes, length: int = 4, tiles: int = 1) -> Span:
    """Return a span whose pixels must not be used.

    Args:
        key: key of its first tile, from which those of the others follow.
        length: number of embeddings.
        tiles: number of tiles.
    """
    keys = tuple(key + bytes([index]) if index else key for index in range(tiles))
    layout = Layout(64, 64, 1, tiles) if tiles > 1 else Layout(64, 64)
    plan = SpanPlan(range(tiles), length)
    (span,) = ProcessedImage(keys, layout, (plan,), lambda: pytest.fail("needs pixels")).spans
    return span
