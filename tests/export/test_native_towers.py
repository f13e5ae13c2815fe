"""Towers for tiles of any size return what transformers' towers return for patches, whatever the size is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, PreTrainedModel

from edgevlm.errors import ExportError
from edgevlm.export import onnx_file, plan, vision
from edgevlm.export.attention import fuse_attention
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.parity import relative_error
from edgevlm.export.products import measure_activations
from edgevlm.export.vision_quantization import convert_int8
from edgevlm.manifest import ImageSpec, SmartResizeTiling
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.openvino import OpenVinoVision
from tests.families.qwen2_5_vl import qwen2_5_vl
from tests.families.qwen2_vl import qwen2_vl
from tests.families.qwen3_vl import qwen3_vl

BUILDERS = {"qwen2_vl": qwen2_vl, "qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}
GRIDS = [
    *((rows, columns) for rows in range(1, 10) for columns in range(1, 10, 2)),
    (1, 40),
    (23, 2),
]
"""Lines and columns of embeddings. Windows have 4 x 4, so they are whole or cut by 1 to 3, at both edges."""


class Made(NamedTuple):
    """A checkpoint, its model in transformers and its graphs."""

    checkpoint: Checkpoint
    model: PreTrainedModel
    image: ImageSpec
    folder: Path

    @property
    def factor(self) -> int:
        assert isinstance(self.image.tiling, SmartResizeTiling)
        return self.image.tiling.factor

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


@pytest.fixture(scope="module", params=BUILDERS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = Checkpoint.open(BUILDERS[request.param](folder / "checkpoint"))
    family = find_family(checkpoint.family)
    image = plan.plan_image(checkpoint, plan.load_image_processor(checkpoint, family))
    vision.export_fp32(checkpoint, family, image, folder / "fp32.onnx")
    vision.convert_fp16(folder / "fp32.onnx", folder / "fp16.onnx")
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=torch.float32)
    return Made(checkpoint, model.eval(), image, folder)


def reference(made: Made, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    """``get_image_features`` on the patches of a tile, all of them twice, as those of a video."""
    scaling = made.image.normalization
    pixels = (tile * scaling.rescale_factor - scaling.mean) / scaling.std
    patch = made.factor // 2
    lines, columns = tile.shape[0] // patch, tile.shape[1] // patch
    grid = pixels.reshape(lines // 2, 2, patch, columns // 2, 2, patch, 3)
    patches = grid.transpose(0, 3, 1, 4, 6, 2, 5)
    values = np.stack([patches, patches], axis=5).reshape(lines * columns, -1)
    with torch.no_grad():
        found = made.model.get_image_features(
            torch.tensor(values, dtype=torch.float32),
            torch.tensor([[1, lines, columns]]),
            return_dict=True,
        )
    layers: list[Any] = [found.pooler_output, *(getattr(found, "deepstack_features", None) or [])]
    return np.concatenate([layer[0].numpy() for layer in layers], axis=1)


def errors(made: Made, precision: str) -> dict[tuple[int, int], float]:
    session = made.session(precision)
    found = {}
    for grid in GRIDS:
        tiles = made.tiles(*grid)
        (rows,) = session.encode(tiles)
        expected = reference(made, tiles[0])
        assert rows.dtype == np.float32 and rows.shape == expected.shape
        found[grid] = relative_error(rows, expected)
    session.close()
    return found


def test_fp32_equals_transformers(made: Made) -> None:
    worst = max(errors(made, "fp32").items(), key=lambda item: item[1])
    assert worst[1] < 1e-4, worst


def test_fp16_stays_near(made: Made) -> None:
    """Positions would be far off in float16: those of a long image are sums of large angles."""
    worst = max(errors(made, "fp16").items(), key=lambda item: item[1])
    assert worst[1] < 3e-3, worst


def test_attention_becomes_one_operator(made: Made) -> None:
    """The graph of int8 has it. OpenVINO computes the same; windows keep their mask."""
    model = onnx_ir.load(made.folder / "fp32.onnx")
    settings = made.model.config.vision_config
    layers = getattr(settings, "fullatt_block_indexes", range(settings.depth))
    assert fuse_attention(model) == len(layers)
    assert sum(node.op_type == "Softmax" for node in model.graph) == settings.depth - len(layers)
    onnx_ir.save(model, made.folder / "fused.onnx")
    worst = max(errors(made, "fused").items(), key=lambda item: item[1])
    assert worst[1] < 1e-4, worst
    tiles = made.tiles(5, 7, count=3)
    runtime = OpenVinoVision(
        made.folder / "fused.onnx", input_name=vision.INPUT_NAME, output_name=vision.OUTPUT_NAME
    )
    for tile, rows in zip(tiles, runtime.encode(tiles), strict=True):
        assert relative_error(rows, reference(made, tile)) < 0.02  # bfloat16 on some CPUs
    runtime.close()


def test_tiles_of_a_batch_do_not_see_each_other(made: Made) -> None:
    tiles = made.tiles(5, 7, count=3)
    session = made.session("fp32")
    together = session.encode(tiles)
    for tile, rows in zip(tiles, together, strict=True):
        assert relative_error(rows, reference(made, tile)) < 1e-4
    session.close()


def test_a_large_graph_keeps_the_16_bits_of_its_checkpoint(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that one file cannot hold in float32 computes the same from half the bytes."""
    for path in made.checkpoint.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    weights = tmp_path / "model.safetensors"
    halves = {name: tensor.bfloat16() for name, tensor in load_file(weights).items()}
    weights.unlink()
    save_file(halves, weights, {"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path)
    family = find_family(checkpoint.family)
    whole, small = tmp_path / "whole.onnx", tmp_path / "small.onnx"
    vision.export_fp32(checkpoint, family, made.image, whole)
    parameters = sum(
        entry.parameters for entry in vision.plan_vision(checkpoint, family)[1].values()
    )
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", 4 * parameters - 1)
    vision.export_fp32(checkpoint, family, made.image, small)
    assert small.stat().st_size < whole.stat().st_size - 1.4 * parameters  # small ones are folded
    tiles = [made.tiles(rows, 5) for rows in (3, 4)]
    vision.convert_fp16(small, tmp_path / "fp16.onnx")
    for source in (whole, small):
        activations = measure_activations(source, tiles)
        convert_int8(source, source.with_suffix(".int8.onnx"), activations)
    found = {}
    for name in ("whole", "small", "fp16", "whole.int8", "small.int8"):
        session = OnnxVision(
            tmp_path / f"{name}.onnx",
            input_name=vision.INPUT_NAME,
            output_name=vision.OUTPUT_NAME,
            device="cpu",
        )
        found[name] = session.encode(tiles[0])
        session.close()
    np.testing.assert_array_equal(found["small"], found["whole"])
    np.testing.assert_array_equal(found["small.int8"], found["whole.int8"])
    assert relative_error(found["fp16"], found["whole"]) < 3e-3


@pytest.mark.parametrize("factor", [1.5, 2])
def test_image_processor_of_another_model_is_refused(
    made: Made, tmp_path: Path, factor: float
) -> None:
    for path in made.checkpoint.folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    settings = made.checkpoint.json("preprocessor_config.json")
    path = tmp_path / "preprocessor_config.json"
    path.unlink()
    path.write_text(json.dumps({**settings, "patch_size": int(settings["patch_size"] * factor)}))
    checkpoint = Checkpoint.open(tmp_path)
    family = find_family(checkpoint.family)
    image = plan.plan_image(checkpoint, plan.load_image_processor(checkpoint, family))
    with pytest.raises(
        ExportError, match=r"vision_config in|preprocessor_config.json and config.json must agree"
    ):
        plan.describe_vision(checkpoint, family, image)
