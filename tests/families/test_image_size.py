"""Each family that takes images of any size, exported with one size (``--image-size``).

transformers gets each image in this size, resized by the filter of the checkpoint.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from PIL import Image

from edgevlm.cli import main
from edgevlm.engine.kv_cache import number_positions
from edgevlm.inputs.images import load_image
from edgevlm.manifest import StretchTiling
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.openvino import OpenVinoVision
from tests.families import test_families
from tests.families.case import (
    MAX_EMBEDDINGS_ERROR,
    MAX_LOGITS_ERROR,
    ROWS,
    Case,
    relative_error,
)
from tests.families.row import Row, picture

FACTORS = {
    "qwen2_vl": 28,
    "qwen2_5_vl": 28,
    "qwen3_vl": 32,
    "qwen3_5": 32,
    "lfm2_vl": 16,
    "paddleocr_vl": 28,
    "llava, Pixtral": 16,
    "mistral3": 28,
}
"""Rows, and the side in pixels of the square that one embedding stands for."""
GRID = (3, 5)
"""Lines and columns of embeddings: not square, and windows of 4 x 4 are cut at both edges."""
SHAPE_OPERATORS = {"Shape", "Size", "Range", "ConstantOfShape", "NonZero", "Expand"}


def fixed_row(name: str) -> Row:
    """Return the row with a fixed size. Its images have this size, and two other aspect ratios."""
    (row,) = (row for row in ROWS if row.name == name)
    size = GRID[1] * FACTORS[name], GRID[0] * FACTORS[name]
    return dataclasses.replace(row, image_size=size, sizes=(size, (60, 130), (331, 47)))


@pytest.fixture(scope="module", params=FACTORS)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Case]:
    made = Case(fixed_row(request.param), tmp_path_factory.mktemp("family"))
    yield made
    made.vlm.close()


def test_equals_transformers(case: Case) -> None:
    test_families.test_pixels(case)
    test_families.test_prompts(case)
    assert case.embeddings_error() < MAX_EMBEDDINGS_ERROR
    assert case.logits_error() < MAX_LOGITS_ERROR


def test_positions_equal_those_of_transformers(case: Case) -> None:
    """Logits of random weights hardly depend on them."""
    if case.vlm.manifest.decoder.positions == "sequential":
        pytest.skip("positions count entries")
    for messages, count in case.conversations():
        if not count:
            continue
        images = case.images(count)
        inputs = case.reference.inputs(messages, images)
        expected, _ = case.reference.model.model.get_rope_index(
            inputs["input_ids"], inputs["mm_token_type_ids"], inputs["image_grid_thw"]
        )
        engine = case.vlm._engine
        prepared = [engine.process_image(load_image(image)) for image in images]
        found = number_positions(engine.tokenize(messages, prepared), 0)
        np.testing.assert_array_equal(found, expected[:, 0].numpy())


def test_an_image_of_this_size_keeps_its_pixels(case: Case) -> None:
    assert case.row.image_size is not None
    image = picture(7, case.row.image_size)
    (tile,) = case.vlm._engine.process_image(load_image(image)).pixels
    np.testing.assert_array_equal(tile, np.asarray(image))


def test_the_bundle_says_so(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    assert case.row.image_size is not None
    width, height = case.row.image_size
    manifest = case.vlm.manifest
    assert manifest.vision.fixed_by_export
    assert isinstance(manifest.image.tiling, StretchTiling)
    assert manifest.image.tile_size == (height, width)
    assert manifest.vision.tokens_per_tile == GRID[0] * GRID[1]
    assert main(["inspect", str(case.bundle)]) == 0
    said = capsys.readouterr().out
    assert f"tiles of {width} x {height} pixels, chosen for the export (--image-size)" in said
    card = (case.bundle / "README.md").read_text(encoding="utf-8")
    assert f"resized to {width} pixels in width and {height} in height" in card
    assert f"`[1, {height}, {width}, 3]`" in card
    assert main(["verify", str(case.bundle)]) == 0


def test_the_graph_is_static(case: Case) -> None:
    """No axis is dynamic, no node computes a shape, and what follows from the size is constant."""
    assert case.row.image_size is not None
    width, height = case.row.image_size
    path = case.bundle / case.vlm.manifest.vision.files["fp32"].name
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    shapes = {
        value.name: [side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }
    assert shapes["tiles"] == [1, height, width, 3]
    assert shapes["embeddings"] == [1, GRID[0] * GRID[1], case.vlm.manifest.vision.width]
    assert all(all(shape) for shape in shapes.values())
    assert not SHAPE_OPERATORS & {node.op_type for node in graph.node}
    constants = {weight.name for weight in graph.initializer}
    for node in graph.node:
        assert not constants.issuperset(name for name in node.input if name), node
        if node.op_type in ("Reshape", "Slice", "Pad", "Split"):
            assert constants.issuperset(name for name in node.input[1:] if name), node


def test_openvino_agrees_with_onnx_runtime(case: Case) -> None:
    path = case.bundle / case.vlm.manifest.vision.files["fp32"].name
    image = case.vlm._engine.process_image(load_image(picture(3, (90, 70))))
    tiles = np.stack([image.pixels[0], image.pixels[0][::-1]])
    found = []
    for kind in (OnnxVision, OpenVinoVision):
        runtime = kind(path, input_name="tiles", output_name="embeddings", threads=1)
        found.append(runtime.encode(tiles))
        bound = 0.03 if "bf16" in runtime.device else 1e-4
        runtime.close()
    assert relative_error(found[1], found[0]) < bound


def test_an_image_of_another_size_is_the_resized_one(case: Case) -> None:
    assert case.row.image_size is not None
    image = picture(5, (200, 40))
    resample = Image.Resampling[case.vlm.manifest.image.tiling.resample.upper()]
    resized = image.resize(case.row.image_size, resample)
    np.testing.assert_array_equal(case.vlm.encode_image(image), case.vlm.encode_image(resized))
