"""The tower of Gemma 4 returns what transformers' returns, whatever the size of a tile is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, PreTrainedModel

from edgevlm.errors import ExportError
from edgevlm.export import vision
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.manifest import FloorResizeTiling
from edgevlm.runtimes.onnx.vision import OnnxVision
from tests.families.gemma4 import gemma4

GRIDS = [*((rows, columns) for rows in range(1, 8) for columns in range(1, 9, 2)), (70, 1), (2, 35)]
"""Lines and columns of embeddings."""


class Made(NamedTuple):
    """A checkpoint, its model in transformers and its graphs."""

    plan: Plan
    model: PreTrainedModel
    folder: Path

    def tiles(self, rows: int, columns: int, count: int = 1) -> NDArray[np.uint8]:
        assert isinstance(self.plan.image.tiling, FloorResizeTiling)
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
        """``get_image_features`` on the patches of a tile, without padding."""
        side = self.model.config.vision_config.patch_size
        lines, columns = tile.shape[0] // side, tile.shape[1] // side
        grid = (tile / 255).reshape(lines, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        places = [[column, line] for line in range(lines) for column in range(columns)]
        with torch.no_grad():
            found = self.model.get_image_features(
                torch.tensor(grid.reshape(1, lines * columns, -1), dtype=torch.float32),
                torch.tensor([places]),
                return_dict=True,
            )
        return torch.cat(list(found.pooler_output)).numpy()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gemma4")
    checkpoint = Checkpoint.open(gemma4(folder / "checkpoint"))
    plan = make_plan(checkpoint)
    vision.export_fp32(checkpoint, plan.family, plan.image, folder / "fp32.onnx")
    vision.convert_fp16(folder / "fp32.onnx", folder / "fp16.onnx")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return Made(plan, model.eval(), folder)


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("fp16", 1e-2)])
def test_equals_transformers(made: Made, precision: str, bound: float) -> None:
    session = made.session(precision)
    for grid in GRIDS:
        tiles = made.tiles(*grid)
        (rows,) = session.encode(tiles)
        expected = made.reference(tiles[0])
        assert rows.shape == expected.shape == (grid[0] * grid[1], made.plan.vision.width)
        assert relative_error(rows, expected) < bound, grid
    session.close()


@pytest.mark.parametrize("name", ["input_min", "input_max", "output_min", "output_max"])
@pytest.mark.parametrize("part", ["self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_each_bound_of_a_matrix_matters(made: Made, part: str, name: str) -> None:
    """Else the comparison above would say nothing about it."""
    bound = made.model.get_buffer(f"model.vision_tower.encoder.layers.0.{part}.{name}")
    (tile,) = made.tiles(3, 5)
    before, kept = made.reference(tile), bound.clone()
    bound.mul_(1000)
    after = made.reference(tile)
    bound.copy_(kept)
    assert relative_error(after, before) > 1e-3


@pytest.mark.parametrize(("convert", "bound"), [(convert_int8, 0.1), (convert_int4, 0.6)])
def test_quantized_products(made: Made, convert: Any, bound: float) -> None:
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


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_key_value_heads", 2, "4 heads and 2 of keys and values"),
        ("standardize", True, "standardize is true in vision_config"),
    ],
)
def test_other_towers_are_refused(made: Made, name: str, value: object, message: str) -> None:
    config = Checkpoint.open(made.plan.checkpoint.folder).config
    setattr(config.vision_config, name, value)
    with pytest.raises(ExportError, match=message):
        made.plan.family.vision(config)
