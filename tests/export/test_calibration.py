"""Images that fix the scales of int8-static: which are read, which tiles they give, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper
from PIL import Image
from transformers import AutoImageProcessor

from edgevlm.cli.inspect import format_manifest
from edgevlm.errors import ExportError
from edgevlm.export import vision
from edgevlm.export.calibration import PHOTOGRAPHS, CalibrationImages, find_images
from edgevlm.export.int8_static import (
    convert_int8_static,
    find_coarse_activations,
    matrix_products,
)
from edgevlm.export.pipeline import export
from edgevlm.inputs.images import load_image
from edgevlm.manifest import Manifest
from tests.conftest import Export, Exported
from training.calibration import draw_calibration_images


@pytest.fixture(scope="module")
def made(exported: Export) -> Exported:
    """A checkpoint and its bundle without int8-static."""
    return exported("smolvlm")


def folder_of(folder: Path, *values: int) -> Path:
    """Make a folder of plain grey images, one of each value from 0 to 255."""
    folder.mkdir()
    for value in values:
        Image.new("RGB", (64, 48), (value, value, value)).save(folder / f"{value:03}.png")
    return folder


def activation_scales(graph: Path) -> list[float]:
    """Return the scales of all activations in a quantized graph; weights have one a channel."""
    model = onnx.load(graph)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    return [float(constants[node.input[1]]) for node in nodes]


def test_every_photograph_is_small_and_attributed() -> None:
    files = find_images(PHOTOGRAPHS)
    assert len(files) >= 8
    assert sum(file.stat().st_size for file in files) < 600_000
    assert max(file.stat().st_size for file in files) <= 100_000
    for file in files:
        with Image.open(file) as image:
            assert 390 <= max(image.size) <= 512
    text = (PHOTOGRAPHS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == [file.name for file in files]
    for _, _, author, licence, package, stated in rows:
        assert author and stated.startswith("`")
        assert re.search(r" \d[\d.-]*, `", package), "the package has a version and a path"
        assert re.match(r"public domain$|\[CC0 1\.0]|\[CC BY 4\.0]", licence)
    others = {path.name for path in PHOTOGRAPHS.iterdir()} - {file.name for file in files}
    assert others == {"ATTRIBUTION.md"}


@pytest.mark.parametrize("family", ["smolvlm", "paligemma"])
def test_tiles_equal_transformers(exported: Export, family: str) -> None:
    made = exported(family)
    image = Manifest.load(made.bundle).image
    scaling = image.normalization
    processor = AutoImageProcessor.from_pretrained(made.checkpoint, backend="pil")
    images = CalibrationImages.open()
    for file, tile in zip(images.files, images.tiles(image.tiling), strict=True):
        ours = (tile * scaling.rescale_factor - scaling.mean) / scaling.std
        found = processor(images=[load_image(file)], return_tensors="np")["pixel_values"]
        theirs = found.reshape(-1, *found.shape[-3:])[-1]
        assert ours.shape[0] == 1
        assert np.abs(ours[0] - np.moveaxis(theirs, 0, -1)).max() < 1e-5


def test_the_folder_fixes_the_scales(made: Exported, tmp_path: Path) -> None:
    tiling = Manifest.load(made.bundle).image.tiling
    fp32 = made.bundle / "vision.fp32.onnx"
    scales = {}
    for name, values in (("dark", (0, 20)), ("bright", (100, 255)), ("same", (100, 255))):
        images = CalibrationImages.open(folder_of(tmp_path / name, *values))
        graph = tmp_path / f"{name}.onnx"
        convert_int8_static(fp32, graph, images.tiles(tiling))
        scales[name] = activation_scales(graph)
    assert len(scales["dark"]) > 8
    assert scales["dark"] != scales["bright"] == scales["same"]


def test_the_scales_span_what_the_images_cause(made: Exported, tmp_path: Path) -> None:
    """The first scale is that of what the first matrix product gets, computed here in float32."""
    tiling = Manifest.load(made.bundle).image.tiling
    images = CalibrationImages.open()
    model = onnx.load(made.bundle / "vision.fp32.onnx")
    weights = {entry.name for entry in model.graph.initializer}
    first = next(
        node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in weights
    )
    model.graph.output.append(onnx.ValueInfoProto(name=first.input[0]))
    onnx.save(model, tmp_path / "watched.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "watched.onnx")
    values = [
        session.run([first.input[0]], {vision.INPUT_NAME: tiles})[0]
        for tiles in images.tiles(tiling)
    ]
    low, high = min(value.min() for value in values), max(value.max() for value in values)
    graph = tmp_path / "static.onnx"
    convert_int8_static(made.bundle / "vision.fp32.onnx", graph, images.tiles(tiling))
    static = onnx.load(graph)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in static.graph.initializer}
    quantize = next(
        node
        for node in static.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == first.input[0]
    )
    scale = (max(high, 0) - min(low, 0)) / 255
    assert float(constants[quantize.input[1]]) == pytest.approx(scale, rel=1e-3)


def test_a_product_whose_input_has_outliers_stays_in_float32(tmp_path: Path) -> None:
    """One value of 255 among 3071 of at most 2: its fourth power leaves nothing of them in 8 bits."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(3, 4)).astype(np.float32) for name in ("even", "uneven")}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["tiles"], ["pixels"], to=onnx.TensorProto.FLOAT),
            helper.make_node("MatMul", ["pixels", "even"], ["first"], "first"),
            helper.make_node("Pow", ["pixels", "four"], ["powers"]),
            helper.make_node("MatMul", ["powers", "uneven"], ["second"], "second"),
            helper.make_node("Add", ["first", "second"], ["embeddings"]),
        ],
        "graph",
        [helper.make_tensor_value_info("tiles", onnx.TensorProto.UINT8, ["n", 32, 32, 3])],
        [helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", 32, 32, 4])],
        [
            *(numpy_helper.from_array(weight, name) for name, weight in weights.items()),
            numpy_helper.from_array(np.array(4, np.float32), "four"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", vision.OPSET)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "fp32.onnx")
    tiles = random.integers(0, 3, (1, 32, 32, 3), np.uint8)
    tiles[0, 3, 4, 0] = 255
    products = matrix_products(model)
    assert [node.name for node in products] == ["first", "second"]
    assert find_coarse_activations(model, products, [tiles]) == {"powers"}
    convert_int8_static(tmp_path / "fp32.onnx", tmp_path / "static.onnx", [tiles])
    kept = {entry.name: entry for entry in onnx.load(tmp_path / "static.onnx").graph.initializer}
    assert np.array_equal(numpy_helper.to_array(kept["uneven"]), weights["uneven"])
    assert "even" not in kept, "it became int8"


def test_an_export_records_its_images(made: Exported, tmp_path: Path) -> None:
    kitchen = folder_of(tmp_path / "kitchen", 30, 220)
    (kitchen / "notes.txt").write_text("not an image")
    (kitchen / ".hidden.png").write_text("not an image")
    (kitchen / "more").mkdir()
    hashes: set[str] = set()
    for calibration, text in (
        (kitchen, "2 images of the folder kitchen"),
        (None, f"{len(find_images(PHOTOGRAPHS))} photographs that come with edgevlm"),
    ):
        out = tmp_path / f"bundle-{len(hashes)}"
        manifest = export(
            made.checkpoint,
            out,
            vision=["int8-static"],
            calibration=calibration,
            quick=True,
            allow_drift=True,  # two plain images are too few
            progress=False,
        )
        hashes.add(manifest.vision.files["int8-static"].sha256)
        assert Manifest.load(out).vision.calibration == text
        assert f"were fitted to {text}." in (out / "README.md").read_text(encoding="utf-8")
        assert text in format_manifest(manifest)
    assert len(hashes) == 2
    assert Manifest.load(made.bundle).vision.calibration is not None
    assert "were fitted to" in (made.bundle / "README.md").read_text(encoding="utf-8")


def test_drawings_for_the_built_in_model_are_always_the_same(tmp_path: Path) -> None:
    for name in ("first", "second"):
        draw_calibration_images(tmp_path / name)
    first, second = (CalibrationImages.open(tmp_path / name) for name in ("first", "second"))
    assert len(first.files) == len(second.files) == 16
    for one, other in zip(first.files, second.files, strict=True):
        assert np.array_equal(load_image(one), load_image(other))


def test_what_cannot_be_used_is_refused_before_any_work(made: Exported, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", 100, 200)
    damaged = folder / "200.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("not an image")
    refused = {
        folder: rf"cannot calibrate with {re.escape(str(damaged))}: .*; repair the file or remove it",
        empty: rf"the calibration folder {re.escape(str(empty))} has no image .*\.jpg, .*; put some",
        tmp_path / "missing": r"cannot read the calibration folder .*missing: No such file",
        damaged: r"cannot read the calibration folder .*200\.png: Not a directory",
    }
    out = tmp_path / "out"
    for calibration, message in refused.items():
        with pytest.raises(ExportError, match=message):
            export("nowhere", out, vision=["int8-static"], calibration=calibration)
    with pytest.raises(ExportError, match="are for int8, int8-static, int4 and for decoders"):
        export(made.checkpoint, out, vision=["fp32", "fp16"], calibration=folder)
    assert not out.exists()


def test_images_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "folder", 200, 3, 40)
    Image.new("L", (20, 20)).save(folder / "010.JPEG")
    assert [file.name for file in find_images(folder)] == [
        "003.png",
        "010.JPEG",
        "040.png",
        "200.png",
    ]
