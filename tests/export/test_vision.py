"""Vision graphs return what transformers' tower and connector return."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ExportError
from edgevlm.export import vision
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import make_plan
from edgevlm.manifest import ImageSpec, Manifest
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.openvino import OpenVinoVision
from tests.conftest import Export
from tests.support import checkpoints

FAMILIES = ("smolvlm", "idefics3", "paligemma")


class Made(NamedTuple):
    """A checkpoint and its graphs."""

    checkpoint: Checkpoint
    image: ImageSpec
    folder: Path

    def encode(self, precision: str, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        runtime = OnnxVision(
            self.folder / f"{precision}.onnx",
            input_name=vision.INPUT_NAME,
            output_name=vision.OUTPUT_NAME,
            device="cpu",
        )
        found = runtime.encode(tiles)
        runtime.close()
        return found

    def tiles(self, count: int) -> NDArray[np.uint8]:
        assert self.image.tile_size is not None
        shape = (count, *self.image.tile_size, 3)
        return np.random.default_rng(count).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module", params=FAMILIES)
def made(
    request: pytest.FixtureRequest, exported: Export, tmp_path_factory: pytest.TempPathFactory
) -> Made:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint, bundle = exported(request.param)
    for precision in ("fp32", "int8"):
        shutil.copy(bundle / f"vision.{precision}.onnx", folder / f"{precision}.onnx")
    image = Manifest.load(bundle).image
    vision.convert_fp16(folder / "fp32.onnx", folder / "fp16.onnx")
    return Made(Checkpoint.open(checkpoint), image, folder)


def reference(made: Made, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """``get_image_features`` of the whole model on pixels prepared in float64."""
    model = AutoModelForImageTextToText.from_pretrained(made.checkpoint.folder).eval()
    scaling = made.image.normalization
    pixels = tiles.transpose(0, 3, 1, 2) * scaling.rescale_factor
    pixels = (pixels - np.reshape(scaling.mean, (3, 1, 1))) / np.reshape(scaling.std, (3, 1, 1))
    values = torch.tensor(pixels, dtype=torch.float32)
    if made.checkpoint.family != "paligemma":
        values = values[None]  # one prompt with n tiles
    with torch.no_grad():
        features = model.get_image_features(values, return_dict=True).pooler_output
    joined = torch.cat(list(features)).numpy()
    return joined.reshape(len(tiles), -1, joined.shape[-1])


@pytest.mark.parametrize("count", [1, 3, 64])
def test_fp32_equals_transformers(made: Made, count: int) -> None:
    tiles = made.tiles(count)
    expected = reference(made, tiles)
    found = made.encode("fp32", tiles)
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert relative_error(found, expected) < 1e-4


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("int8", 0.04)])
def test_fewer_bits_stay_near(made: Made, precision: str, bound: float) -> None:
    tiles = made.tiles(3)
    found = made.encode(precision, tiles)
    assert found.dtype == np.float32
    assert relative_error(found, reference(made, tiles)) < bound


def test_fp16_keeps_norms_and_softmax_in_fp32(made: Made) -> None:
    model = onnx.shape_inference.infer_shapes(onnx.load(made.folder / "fp16.onnx"))
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    kept = [node for node in model.graph.node if node.op_type in ("LayerNormalization", "Softmax")]
    assert len(kept) >= 6
    assert {types[node.output[0]] for node in kept} == {onnx.TensorProto.FLOAT}
    halves = [w for w in model.graph.initializer if w.data_type == onnx.TensorProto.FLOAT16]
    assert sum(np.prod(w.dims) for w in halves) > 10_000


def test_int8_holds_its_matrices_in_int8(made: Made) -> None:
    model = onnx.load(made.folder / "int8.onnx")
    wide = [w for w in model.graph.initializer if len(w.dims) == 2 and np.prod(w.dims) > 1000]
    bytes_kept = [w for w in wide if w.data_type == onnx.TensorProto.INT8]
    assert len(bytes_kept) >= 13  # six in each of two layers, and the connector


def test_openvino_computes_int8_as_onnx_runtime_does(made: Made) -> None:
    tiles = made.tiles(2)
    runtime = OpenVinoVision(
        made.folder / "int8.onnx",
        input_name=vision.INPUT_NAME,
        output_name=vision.OUTPUT_NAME,
    )
    assert relative_error(runtime.encode(tiles), made.encode("int8", tiles)) < 0.03
    runtime.close()


def test_one_tile_at_a_time_equals_all_at_once(made: Made) -> None:
    tiles = made.tiles(4)
    together = made.encode("fp32", tiles)
    alone = np.concatenate([made.encode("fp32", tile[None]) for tile in tiles])
    assert relative_error(alone, together) < 1e-6


def test_patches_that_do_not_divide_evenly_take_transformers_positions(tmp_path: Path) -> None:
    """With 25 patches a side the reference's buckets are not 0, 1, 2, ..., which this pins."""
    checkpoint = Checkpoint.open(checkpoints.idefics3(tmp_path / "checkpoint"))
    module, _ = vision.plan_vision(checkpoint, find_family("idefics3"))
    ids = module.position_ids
    assert isinstance(ids, torch.Tensor) and ids.shape == (25 * 25,)
    assert not torch.equal(ids, torch.arange(25 * 25))


def test_only_the_vision_part_is_read(tmp_path: Path) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", max_shard_size="150KB")
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    shards = {entry.file for entry in checkpoint.tensors.values()}
    needed = {entry.file for name, entry in checkpoint.tensors.items() if "text" not in name}
    unneeded = shards - needed
    assert unneeded, "the checkpoint must be split so that a shard holds language only"
    for shard in unneeded:
        shard.unlink()
    vision.export_fp32(checkpoint, plan.family, plan.image, tmp_path / "graph.onnx")


def test_weights_that_do_not_fit_the_configuration_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints.smolvlm(tmp_path / "checkpoint"))
    checkpoint.config.vision_config.num_hidden_layers = 1
    with pytest.raises(ExportError, match=r"layers\.1"):
        vision.plan_vision(checkpoint, find_family("smolvlm"))
    checkpoint.config.vision_config.num_hidden_layers = 3
    with pytest.raises(ExportError, match="lacks 16 tensors"):
        vision.plan_vision(checkpoint, find_family("smolvlm"))
