"""The tower of MiniCPM-V 4.6 returns what transformers' returns, whatever the size of a tile is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText, MiniCPMV4_6Config, PreTrainedModel
from transformers.vision_utils import get_vision_nearest_position_ids

from edgevlm.errors import ExportError
from edgevlm.export import vision
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.minicpmv_tower import MiniCpmVTower
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int4, convert_int8
from edgevlm.manifest import SliceTiling
from edgevlm.runtimes.onnx.vision import OnnxVision
from tests.families.minicpmv4_6 import less_merged, minicpmv4_6

BUILDERS = {"16x": minicpmv4_6, "4x": less_merged}
GRIDS = [*((rows, columns) for rows in range(1, 7) for columns in range(1, 8, 2)), (20, 1), (2, 23)]
"""Lines and columns of embeddings; the last two have more patches on a side than the table of positions."""


class Made(NamedTuple):
    """A checkpoint, its model in transformers and its graphs."""

    plan: Plan
    model: PreTrainedModel
    folder: Path

    @property
    def factor(self) -> int:
        assert isinstance(self.plan.image.tiling, SliceTiling)
        return self.plan.image.tiling.factor

    def tiles(self, rows: int, columns: int, count: int = 1) -> NDArray[np.uint8]:
        shape = count, rows * self.factor, columns * self.factor, 3
        return np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)

    def session(self, precision: str) -> OnnxVision:
        return OnnxVision(
            self.folder / f"{precision}.onnx",
            input_name=vision.INPUT_NAME,
            output_name=vision.OUTPUT_NAME,
            device="cpu",
        )

    def reference(self, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Patches stand in one row, ``[1, 3, side, patches * side]``."""
        scaling, side = self.plan.image.normalization, 4
        pixels = (tile * scaling.rescale_factor - scaling.mean) / scaling.std
        lines, columns = tile.shape[0] // side, tile.shape[1] // side
        patches = pixels.reshape(lines, side, columns, side, 3).transpose(4, 1, 0, 2, 3)
        row = torch.tensor(patches.reshape(1, 3, side, -1), dtype=torch.float32)
        with torch.no_grad():
            found = self.model.base_model.get_image_features(
                row, torch.tensor([[lines, columns]]), return_dict=True
            )
        return torch.cat(list(found.pooler_output)).numpy()


@pytest.fixture(scope="module", params=BUILDERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint.open(BUILDERS[request.param](folder / "checkpoint"))
    plan = make_plan(checkpoint)
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


@pytest.mark.parametrize(("convert", "bound"), [(convert_int8, 0.05), (convert_int4, 0.4)])
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


def config(**settings: Any) -> MiniCPMV4_6Config:
    vision_config = {
        "hidden_size": 8,
        "image_size": 980,
        "intermediate_size": 8,
        "num_attention_heads": 1,
        "num_hidden_layers": 7,
        "patch_size": 14,
        **settings.pop("vision_config", {}),
    }
    return MiniCPMV4_6Config(vision_config=vision_config, **settings)


def test_places_of_the_published_table() -> None:
    """Many coordinates are equal to a boundary up to rounding: 35 of 70 patches, for example."""
    tower = MiniCpmVTower(config())
    for lines in range(1, 90):
        for columns in {lines, 4, 70, 91 - lines}:
            expected = get_vision_nearest_position_ids(torch.tensor([[lines, columns]]), 70)
            assert torch.equal(tower.places(lines, columns), expected), (lines, columns)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"merger_times": 2}, "merger_times in config.json is 2, edgevlm exports MiniCPM-V with 1"),
        ({"insert_layer_id": 7}, "insert_layer_id in config.json is 7"),
        ({"insert_layer_id": -1}, "insert_layer_id in config.json is -1"),
        ({"downsample_mode": "8x"}, "downsample_mode in config.json is '8x', .* '4x' or '16x'"),
        ({"merge_kernel_size": (4, 4)}, r"merge_kernel_size in config.json is \(4, 4\)"),
        ({"vision_config": {"window_kernel_size": (1, 2)}}, "window_kernel_size in config.json is"),
    ],
)
def test_other_mergers_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        MiniCpmVTower(config(**settings))
