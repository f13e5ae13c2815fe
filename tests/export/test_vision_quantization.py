"""int8 and int4 vision graphs of towers with massive activations, beside the float32 graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from PIL import Image

from edgevlm.export import vision
from edgevlm.export.calibration import PHOTOGRAPHS, CalibrationImages, find_images
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.parity import relative_error
from edgevlm.export.pipeline import write_vision
from edgevlm.export.plan import make_plan
from edgevlm.export.products import Activation, measure_activations
from edgevlm.export.vision_quantization import (
    BLOCK_LENGTH,
    convert_int4,
    convert_int8,
    quantize_blocks,
    zero_point,
)
from edgevlm.inputs.images import load_image
from edgevlm.runtimes.openvino import OpenVinoVision
from tests.families import internvl, llava
from tests.support import checkpoints
from tests.support.outliers import plant_outliers

TOWERS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "SigLIP": (checkpoints.smolvlm, "layers.0.mlp.fc1", "layers.0.mlp.fc2"),
    "CLIP": (llava.clip_llama, "layers.0.mlp.fc1", "layers.0.mlp.fc2"),
    "InternViT": (internvl.qwen2, "layer.0.mlp.fc1", "layer.0.mlp.fc2"),
}


@dataclass(frozen=True)
class Tower:
    """The graphs of one checkpoint, and a tile of each photograph."""

    name: str
    files: dict[str, Path]
    tiles: list[NDArray[np.uint8]]

    def errors(self, graph: Path) -> NDArray[np.float64]:
        """Return the relative error of each photograph."""
        ours, exact = (run(path, self.tiles) for path in (graph, self.files["fp32"]))
        return np.array([relative_error(*pair) for pair in zip(ours, exact, strict=True)])


def run(graph: Path, tiles: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return [session.run(None, {vision.INPUT_NAME: tile})[0] for tile in tiles]


def cut_parts(size: tuple[int, ...], count: int) -> list[NDArray[np.uint8]]:
    """Return square parts of each photograph, uint8 ``[1, height, width, 3]``."""
    random = np.random.default_rng(0)
    parts = []
    for file in find_images(PHOTOGRAPHS):
        photograph = Image.fromarray(load_image(file))
        for _ in range(count):
            side = int(random.integers(min(photograph.size) // 3, min(photograph.size)))
            left, top = (int(random.integers(0, length - side + 1)) for length in photograph.size)
            part = photograph.resize((size[1], size[0]), box=(left, top, left + side, top + side))
            parts.append(np.asarray(part)[None])
    return parts


@pytest.fixture(scope="module", params=TOWERS)
def tower(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tower:
    make, first, second = TOWERS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = make(folder / "checkpoint")
    images = CalibrationImages.open()
    plan = make_plan(Checkpoint.open(checkpoint))
    tiles = images.tiles(plan.image.tiling)
    (graph,) = write_vision(plan, folder, ["fp32"], images, progress=False).values()
    plant_outliers(checkpoint, first, second, graph, tiles)
    plan = make_plan(Checkpoint.open(checkpoint))
    precisions = ["fp32", "fp16", "int8", "int4"]
    files = write_vision(plan, folder, precisions, images, progress=False)
    return Tower(request.param, files, tiles)


def test_few_tokens_are_far_larger_than_the_rest(tower: Tower) -> None:
    """Otherwise the other tests would say nothing."""
    found = measure_activations(tower.files["fp32"], tower.tiles)
    assert max(a.highest.max() / np.median(a.highest) for a in found.values()) > 30


def test_int8_is_near_on_every_photograph(tower: Tower) -> None:
    assert tower.errors(tower.files["int8"]).max() < 0.08


def test_int8_is_nearer_than_one_scale(tower: Tower, tmp_path: Path) -> None:
    """On many parts of photographs: where the planted neuron just begins to fire, one token is chance."""
    one_scale = tmp_path / "one_scale.onnx"
    quantize_dynamic(tower.files["fp32"], one_scale, per_channel=True, weight_type=QuantType.QInt8)
    parts = replace(tower, tiles=cut_parts(tower.tiles[0].shape[1:3], 6))
    ours, theirs = parts.errors(tower.files["int8"]), parts.errors(one_scale)
    assert np.median(ours) < 1.1 * np.median(theirs)
    assert ours.max() < 0.85 * theirs.max()


def test_outliers_that_calibration_did_not_see_do_not_hurt(tower: Tower, tmp_path: Path) -> None:
    """The graph was fitted to a plain grey image."""
    grey = np.full_like(tower.tiles[0], 128)
    graph = tmp_path / "int8.onnx"
    convert_int8(tower.files["fp32"], graph, measure_activations(tower.files["fp32"], [grey]))
    assert tower.errors(graph).max() < 0.08


def test_int4_and_fp16_stay_near(tower: Tower) -> None:
    assert tower.errors(tower.files["int4"]).max() < 0.5
    assert tower.errors(tower.files["fp16"]).max() < 0.02


def test_attention_becomes_one_operator(tower: Tower) -> None:
    operators = [node.op_type for node in onnx.load(tower.files["int8"]).graph.node]
    assert operators.count("MultiHeadAttention") >= 2
    assert "Softmax" not in operators


def test_openvino_computes_the_same(tower: Tower) -> None:
    runtime = OpenVinoVision(
        tower.files["int8"], input_name=vision.INPUT_NAME, output_name=vision.OUTPUT_NAME
    )
    for tile, exact in zip(tower.tiles, run(tower.files["fp32"], tower.tiles), strict=True):
        assert relative_error(runtime.encode(tile), exact) < 0.1
    runtime.close()


def test_statistics_are_those_of_the_graph(tower: Tower) -> None:
    found = measure_activations(tower.files["fp32"], tower.tiles[:3])
    model = onnx.load(tower.files["fp32"])
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in found)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    runs = [session.run(list(found), {vision.INPUT_NAME: tile}) for tile in tower.tiles[:3]]
    for values, activation in zip(zip(*runs, strict=True), found.values(), strict=True):
        rows = np.concatenate([value.reshape(-1, value.shape[-1]) for value in values])
        assert activation.rows == pytest.approx(len(rows) / 3)
        for name, expected in (
            ("mean", rows.mean(0)),
            ("lowest", rows.min(0)),
            ("highest", rows.max(0)),
        ):
            assert np.allclose(getattr(activation, name), expected, rtol=1e-3, atol=1e-4)


def test_the_sum_of_small_probabilities_is_kept(tmp_path: Path) -> None:
    """One visual token has a tenth of the probability, and thousands share the rest."""
    random = np.random.default_rng(0)
    weights = {
        "logits": random.normal(scale=3 / 3**0.5, size=(3, 8192)).astype(np.float32),
        "table": random.normal(loc=1, size=(8197, 16)).astype(np.float32),
        "more": np.array([0, 0, 0, 0, 0, 5]),
    }
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [vision.INPUT_NAME], "levels", {"to": onnx.TensorProto.FLOAT}),
        ("LayerNormalization", ["levels", "one", "zero"], "pixels", {}),
        ("Reshape", ["pixels", "shape"], "rows", {}),
        ("MatMul", ["rows", "logits"], "scores", {}),
        ("Softmax", ["scores"], "words", {}),
        ("Pad", ["words", "more"], "probabilities", {}),
        ("MatMul", ["probabilities", "table"], vision.OUTPUT_NAME, {}),
    ]
    weights |= {"one": np.ones(3, np.float32), "zero": np.zeros(3, np.float32)}
    weights |= {"shape": np.array([1, 64, 3])}
    tiles = [random.integers(0, 256, (1, 8, 8, 3), dtype=np.uint8) for _ in range(3)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(kind, read, [made], **more) for kind, read, made, more in nodes],
        "vision",
        [
            onnx.helper.make_tensor_value_info(
                vision.INPUT_NAME, onnx.TensorProto.UINT8, [1, 8, 8, 3]
            )
        ],
        [
            onnx.helper.make_tensor_value_info(
                vision.OUTPUT_NAME, onnx.TensorProto.FLOAT, [1, 64, 16]
            )
        ],
        [onnx.numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    opset = [onnx.helper.make_opsetid("", vision.OPSET)]
    source = tmp_path / "fp32.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), source)
    activations = measure_activations(source, tiles)
    for convert, bound in ((convert_int8, 0.02), (convert_int4, 0.1)):
        convert(source, tmp_path / "quantized.onnx", activations)
        pairs = zip(run(tmp_path / "quantized.onnx", tiles), run(source, tiles), strict=True)
        assert max(relative_error(*pair) for pair in pairs) < bound


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(-1, 1, 128), (-0.17, 100, 16), (-3, 0, 239), (0, 0, 16)]
)
def test_the_zero_point_leaves_steps_on_both_sides(low: float, high: float, expected: int) -> None:
    values = [np.full(8, value, np.float32) for value in (0, low, high)]
    assert zero_point(Activation(4, *values)) == expected


def test_blocks_of_4_bits_are_half_a_step_off_at_most() -> None:
    blocks = np.random.default_rng(0).normal(size=(7, BLOCK_LENGTH)).astype(np.float32)
    blocks[3] = 0
    values, scales = quantize_blocks(blocks)
    assert values.min() == 0 and values.max() <= 15
    error = np.abs((values.astype(np.float32) - 8) * scales[:, None] - blocks)
    steps = np.abs(scales)[:, None]
    assert (error <= steps * 1.001).all()
    assert (error <= steps / 2 + 1e-6).mean() > 0.95
    assert not error[3].any()
