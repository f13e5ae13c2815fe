"""Positions in a grid are those of transformers' Qwen2-VL and Qwen3-VL."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Qwen2VLConfig, Qwen3VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from edgevlm.engine.kv_cache import number_positions, place_after
from edgevlm.inputs.image_processor import Span
from edgevlm.inputs.packing import SpanPlan, grid_offsets
from edgevlm.inputs.prompt import PromptItem
from edgevlm.runtimes.protocols import Place

Grid = tuple[int, int]

RUNS = st.lists(
    st.integers(1, 6) | st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=8
)


def span(grid: Grid) -> Span:
    plan = SpanPlan(range(1), grid[0] * grid[1], offsets=grid_offsets(*grid))
    return Span(repr(grid).encode(), (), plan)


@pytest.mark.parametrize(
    ("model", "config"), [(Qwen2VLModel, Qwen2VLConfig), (Qwen3VLModel, Qwen3VLConfig)]
)
@settings(max_examples=60, deadline=None)
@given(RUNS)
def test_positions(model: Any, config: Any, runs: list[int | Grid]) -> None:
    """Texts of so many tokens, and images of so many lines and columns."""
    merged: list[int | Grid] = []
    for run in runs:  # the reference takes neighboring images apart by the text between them
        if merged and not isinstance(run, int) and not isinstance(merged[-1], int):
            merged.append(1)
        merged.append(run)
    items: list[PromptItem] = []
    types: list[int] = []
    for run in merged:
        if isinstance(run, int):
            items += [7] * run
            types += [0] * run
        else:
            items.append(span(run))
            types += [1] * (run[0] * run[1])
    grids = [[1, 2 * run[0], 2 * run[1]] for run in merged if not isinstance(run, int)]
    reference = model.__new__(model)
    torch.nn.Module.__init__(reference)
    reference.config = config()
    expected, _ = reference.get_rope_index(
        torch.zeros(1, len(types), dtype=torch.long),
        torch.tensor([types], dtype=torch.int),
        torch.tensor(grids) if grids else None,
    )
    found = number_positions(items, 0)
    if found.ndim == 1:
        found = np.broadcast_to(found, (3, len(found)))
    np.testing.assert_array_equal(found, expected[:, 0].numpy())
    place = place_after(items)
    assert (place.entries, place.position) == (len(types), int(expected.max()) + 1)


@settings(max_examples=60)
@given(RUNS, st.data())
def test_a_prompt_in_pieces_has_the_positions_of_the_whole(
    runs: list[int | Grid], data: st.DataObject
) -> None:
    items: list[PromptItem] = []
    for run in runs:
        items += [7] * run if isinstance(run, int) else [span(run)]
    whole = number_positions(items, 0)
    place, pieces = Place(), []
    while items:
        piece = items[: data.draw(st.integers(1, len(items)))]
        numbers = number_positions(piece, place.position)
        pieces.append(np.broadcast_to(numbers, (3, numbers.shape[-1])))
        place = place_after(piece, place)
        items = items[len(piece) :]
    np.testing.assert_array_equal(
        np.concatenate(pieces, axis=1), np.broadcast_to(whole, (3, whole.shape[-1]))
    )
