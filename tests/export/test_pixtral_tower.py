"""Towers of Pixtral and Mistral 3 return what transformers' return, whatever the size of a tile is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, PreTrainedModel

from edgevlm.export import vision
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.manifest import LinesPacking, LongestEdgeTiling
from edgevlm.runtimes.onnx.vision import OnnxVision
from tests.families.pixtral import mistral3, pixtral

BUILDERS = {"llava": pixtral, "mistral3": mistral3}
GRIDS = [*((rows, columns) for rows in range(1, 8) for columns in range(2, 9, 2)), (30, 1), (2, 31)]
"""Lines and columns of embeddings. transformers fails for one embedding."""


class Made(NamedTuple):
    """A checkpoint, its model in transformers and its graphs."""

    plan: Plan
    model: PreTrainedModel
    folder: Path

    def tiles(self, rows: int, columns: int, count: int = 1) -> NDArray[np.uint8]:
        assert isinstance(self.plan.image.tiling, LongestEdgeTiling)
        factor = self.plan.image.tiling.factor
        shape = count, rows * factor, columns * factor, 3
        return np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)

    def session(self, precision: str) -> OnnxVision:
        return OnnxVision(
            self.folder / f"{precision}.onnx",
            input_name=vision.INPUT_NAME,
            output_name=vision.OUTPUT_NAME,
            device="cpu",
        )

    def reference(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        scaling = self.plan.image.normalization
        pixels = (tile * scaling.rescale_factor - scaling.mean) / scaling.std
        with torch.no_grad():
            found = self.model.get_image_features(
                torch.tensor(pixels.transpose(2, 0, 1)[None], dtype=torch.float32),
                image_sizes=torch.tensor([tile.shape[:2]]),
                return_dict=True,
            )
        return torch.cat(list(found.pooler_output)).numpy()


@pytest.fixture(scope="module", params=BUILDERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint.open(BUILDERS[request.param](folder / "checkpoint"))
    plan = make_plan(checkpoint)
    assert plan.vision.packing == LinesPacking()
    vision.export_fp32(checkpoint, plan.family, plan.image, folder / "fp32.onnx")
    vision.convert_fp16(folder / "fp32.onnx", folder / "fp16.onnx")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return Made(plan, model.eval(), folder)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 3e-3)])
def test_equals_transformers(made: Made, precision: str, bound: float) -> None:
    session = made.session(precision)
    for grid in GRIDS:
        tiles = made.tiles(*grid)
        (rows,) = session.encode(tiles)
        expected = made.reference(tiles[0])
        assert rows.shape == expected.shape == (grid[0] * grid[1], made.plan.vision.width)
        assert relative_error(rows, expected) < bound, grid
    session.close()


def test_norms_stay_in_float32(made: Made) -> None:
    """From the square on: that of a value above 255 is more than float16 holds."""
    graph = onnx.load(made.folder / "fp16.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    for kind, maker in (("Reciprocal", "Sqrt"), ("Sqrt", "Add"), ("ReduceMean", "Pow")):
        found = [makers[node.input[0]] for node in graph.node if node.op_type == kind]
        assert len(found) >= 5 and set(found) == {maker}


@pytest.mark.parametrize(("convert", "bound"), [(convert_int8, 0.05), (convert_int4, 0.4)])
def test_quantized_products(made: Made, convert: Any, bound: float) -> None:
    """Mistral 3 has two products in a row, so that one reads what another was replaced by."""
    tiles = [made.tiles(5, 3), made.tiles(2, 6)]
    source = made.folder / "fp32.onnx"
    path = made.folder / f"{convert.__name__}.onnx"
    convert(source, path, measure_activations(source, tiles))
    session = made.session(convert.__name__)
    for batch in tiles:
        assert relative_error(session.encode(batch)[0], made.reference(batch[0])) < bound
    session.close()


def test_tiles_of_a_batch_do_not_see_each_other(made: Made) -> None:
    tiles = made.tiles(5, 7, count=3)
    session = made.session("fp32")
    for tile, rows in zip(tiles, session.encode(tiles), strict=True):
        assert relative_error(rows, made.reference(tile)) < 1e-4
    session.close()
