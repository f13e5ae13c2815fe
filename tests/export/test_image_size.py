"""``--image-size``: the sizes that a checkpoint takes, errors, and all precisions of the graph."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from edgevlm.cli import main
from edgevlm.errors import ExportError
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.image_size import fix_image_size
from edgevlm.export.parity import relative_error
from edgevlm.export.pipeline import export, write_vision
from edgevlm.export.plan import make_plan
from edgevlm.export.sizes import parse_image_size
from edgevlm.inputs.packing import max_image_tokens
from edgevlm.manifest import (
    ImageSpec,
    LinesPacking,
    LongestEdgeTiling,
    Normalization,
    OwnSizeGridTiling,
    OwnSizeTiling,
    SmartResizeTiling,
    StretchTiling,
    TiledPacking,
    VisionSpec,
)
from edgevlm.runtimes.onnx.vision import OnnxVision
from tests.families.lfm2_vl import lfm2_vl
from tests.families.llava import padded
from tests.families.qwen2_5_vl import qwen2_5_vl
from tests.families.row import picture

QWEN2 = SmartResizeTiling(28, 3136, 12845056, "bicubic")
QWEN3 = SmartResizeTiling(32, 65536, 16777216, "bicubic")
LFM2 = OwnSizeGridTiling(32, 65536, 262144, "bilinear", 512, 2, 10, 2.0, overview=True)
PIXTRAL = LongestEdgeTiling(16, 1024, "bicubic")
"""Settings of public checkpoints."""
PRECISIONS = ("fp32", "fp16", "int8", "int4")


def fix(
    tiling: SmartResizeTiling | OwnSizeGridTiling | LongestEdgeTiling, size: tuple[int, int]
) -> tuple[ImageSpec, VisionSpec]:
    normalization = Normalization((0.5,) * 3, (0.5,) * 3, 1 / 255)
    packing = LinesPacking() if isinstance(tiling, LongestEdgeTiling) else TiledPacking()
    spec = VisionSpec("tiles", "rows", None, 0, 8, packing, {}, pixels_per_token=tiling.factor)
    return fix_image_size(ImageSpec(tiling, normalization, 1024), spec, size)


@pytest.mark.parametrize(
    ("tiling", "size", "tokens"),
    [
        (QWEN2, (644, 476), 23 * 17),
        (QWEN3, (640, 480), 300),
        (QWEN3, (256, 256), 64),
        (LFM2, (576, 448), 252),
        (LFM2, (512, 512), 256),
        (PIXTRAL, (640, 480), 1200),
    ],
)
def test_sizes_that_a_checkpoint_leaves_as_they_are(
    tiling: SmartResizeTiling, size: tuple[int, int], tokens: int
) -> None:
    image, vision = fix(tiling, size)
    assert image.tiling == StretchTiling(size[::-1], tiling.resample)
    assert image.default_max_tokens is None
    assert vision.tokens_per_tile == tokens and vision.pixels_per_token == tiling.factor
    assert max_image_tokens(image, vision) == tokens


@pytest.mark.parametrize(
    ("tiling", "size", "taken"),
    [
        (QWEN2, (640, 480), "644x476"),  # no multiples
        (QWEN2, (10, 20), "56x84"),  # too small
        (QWEN3, (100, 100), "256x256"),
        (LFM2, (640, 480), "576x416"),  # more embeddings than the checkpoint takes
        (LFM2, (1920, 1080), "672x384"),  # the checkpoint splits it
        (PIXTRAL, (1920, 1080), "1024x576"),
    ],
)
def test_other_sizes_are_refused_with_one_that_is_taken(
    tiling: SmartResizeTiling, size: tuple[int, int], taken: str
) -> None:
    with pytest.raises(ExportError, match=f"is {size[0]}x{size[1]}, .*--image-size {taken}$"):
        fix(tiling, size)
    fix(tiling, parse_image_size(taken))


@pytest.mark.parametrize("tiling", [QWEN2, QWEN3, LFM2, PIXTRAL], ids=lambda one: str(one.factor))
def test_every_size_that_is_named_is_taken(tiling: SmartResizeTiling) -> None:
    rng = np.random.default_rng(0)
    for width, height in rng.integers(1, 3000, (300, 2)).tolist():
        try:
            fix(tiling, (width, height))
        except ExportError as error:
            message = str(error)
            if "aspect ratio" not in message:
                fix(tiling, parse_image_size(message.rpartition(" ")[2]))


def test_sizes_without_an_image_are_refused() -> None:
    with pytest.raises(ExportError, match="is 8000x20, and the checkpoint refuses this aspect"):
        fix(QWEN2, (8000, 20))
    with pytest.raises(ExportError, match="is 0x480; both sides must be positive"):
        fix(QWEN2, (0, 480))


@pytest.mark.parametrize(
    "text", ["640", "640x", "x480", "640x480x3", "0x480", "-640x480", "6.4x4", ""]
)
def test_texts_that_are_no_size(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="write width and height in pixels: 640x480"):
        parse_image_size(text)
    with pytest.raises(SystemExit):
        main(["export", "checkpoint", "out", f"--image-size={text}"])
    assert "write width and height in pixels: 640x480" in capsys.readouterr().err


def test_the_command_refuses_it_for_tiles_of_one_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = padded(tmp_path / "checkpoint"), tmp_path / "out"
    assert main(["export", str(checkpoint), str(out), "--image-size", "640x480"]) == 1
    assert "tiles of 56 x 56 pixels only; leave the option out" in capsys.readouterr().err
    assert not out.exists()


def test_an_image_must_fit_into_the_context(tmp_path: Path) -> None:
    checkpoint = qwen2_5_vl(tmp_path / "checkpoint")
    path = checkpoint / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "max_pixels": 10**8}))
    with pytest.raises(ExportError, match="choose a smaller --image-size"):
        export(checkpoint, tmp_path / "out", image_size=(2800, 2800), progress=False)


@pytest.mark.parametrize("build", [qwen2_5_vl, lfm2_vl])
def test_all_precisions_compute_what_those_for_any_size_do(
    build: Callable[[Path], Path], tmp_path: Path
) -> None:
    checkpoint = Checkpoint.open(build(tmp_path / "checkpoint"))
    free = make_plan(checkpoint)
    assert isinstance(free.image.tiling, OwnSizeTiling)
    side = free.image.tiling.factor
    fixed = make_plan(checkpoint, (5 * side, 3 * side))
    (tmp_path / "images").mkdir()
    for seed in range(3):
        picture(seed, (90, 70)).save(tmp_path / "images" / f"{seed}.png")
    images = CalibrationImages.open(tmp_path / "images")
    found: dict[str, Mapping[str, NDArray[np.float32]]] = {}
    tile = np.random.default_rng(0).integers(0, 256, (1, 3 * side, 5 * side, 3), np.uint8)
    for name, plan in (("free", free), ("fixed", fixed)):
        folder = tmp_path / name
        folder.mkdir()
        files = write_vision(plan, folder, PRECISIONS, images, progress=False)
        found[name] = {precision: encode(path, tile) for precision, path in files.items()}
    int8 = onnx.load(tmp_path / "fixed" / "vision.int8.onnx").graph
    fused = sum(node.op_type == "MultiHeadAttention" for node in int8.node)
    assert fused == (2 if build is lfm2_vl else 1), "attention outside windows is one operator"
    exact = found["free"]["fp32"]
    assert relative_error(found["fixed"]["fp32"], exact) < 1e-5
    for precision, bound in (("fp16", 3e-3), ("int8", 0.05), ("int4", 0.4)):
        errors = [relative_error(found[name][precision], exact) for name in ("free", "fixed")]
        assert max(errors) < bound and errors[1] < 1.5 * errors[0], (precision, errors)


def encode(path: Path, tile: NDArray[np.uint8]) -> NDArray[np.float32]:
    runtime = OnnxVision(path, input_name="tiles", output_name="embeddings", device="cpu")
    rows = runtime.encode(tile)
    runtime.close()
    return rows
