"""Decoders in ONNX Runtime against transformers: masks, positions, scales and features of each kind.

``python -m tests.families.onnx_decoders`` compares all rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgevlm.inputs.images import load_image
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from tests.families.case import ROWS, Case
from tests.families.onnx_decoders import GraphCase

MAX_ERROR = 1e-4
"""Bound of the relative error of logits in float32."""
NAMES = (
    "smolvlm",  # causal
    "gemma3",  # images see themselves both ways; sliding windows; the table is scaled
    "gemma4",  # embeddings of layers; layers that share keys and values
    "paligemma, Gemma 2",  # prompts see themselves both ways; inputs are scaled, logits capped
    "qwen3_vl",  # positions in a grid, features of inner layers, norms of heads
)


@pytest.fixture(scope="module", params=NAMES)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    row = next(row for row in ROWS if row.name == request.param)
    made = GraphCase(dataclasses.replace(row, decoder="fp32"), tmp_path_factory.mktemp("family"))
    assert isinstance(made.vlm._engine._decoder, OnnxDecoder)
    yield made
    made.vlm.close()


def test_logits(case: Case) -> None:
    """Prompts of several images and turns; later ones continue in the memory of earlier ones."""
    assert case.logits_error() < MAX_ERROR


def test_pieces(case: Case) -> None:
    """An answer token by token, and all at once, has the same logits."""
    messages, count = case.conversations()[1]
    images = case.images(count)
    ids = (5, 40, 7, 300)
    prepared = [case.vlm._engine.process_image(load_image(image)) for image in images]
    alone, together = (
        case.vlm._engine.logits(messages, prepared, ids, tokens_per_call=length)
        for length in (1, len(ids))
    )
    np.testing.assert_allclose(alone, together, atol=1e-4)


def test_files(case: Case) -> None:
    """Nothing but what the manifest lists, and the graph holds no weights."""
    manifest = case.vlm.manifest
    listed = {entry.name for entry in manifest.files()} | {"manifest.json", "README.md"}
    assert {path.name for path in Path(case.bundle).iterdir()} == listed
    assert manifest.decoder.files == {}
    assert manifest.decoder.graphs["fp32"].size < 200_000
    bits = manifest.decoder.weight_files["fp32"].bits_per_weight
    assert bits == pytest.approx(32, rel=0.01)
