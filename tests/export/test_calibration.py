"""Images that quantized graphs are fitted to: which are read, which tiles they give, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from edgevlm.cli.inspect import format_manifest
from edgevlm.errors import ExportError
from edgevlm.export.calibration import PHOTOGRAPHS, CalibrationImages, find_images
from edgevlm.export.pipeline import export
from edgevlm.inputs.images import load_image
from edgevlm.manifest import Manifest
from tests.conftest import Export, Exported
from training.calibration import draw_calibration_images


@pytest.fixture(scope="module")
def made(exported: Export) -> Exported:
    """A checkpoint and its bundle."""
    return exported("smolvlm")


def folder_of(folder: Path, *values: int) -> Path:
    """Make a folder of plain grey images, one of each value from 0 to 255."""
    folder.mkdir()
    for value in values:
        Image.new("RGB", (64, 48), (value, value, value)).save(folder / f"{value:03}.png")
    return folder


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
            vision=["int8"],
            calibration=calibration,
            quick=True,
            allow_drift=True,  # two plain images are too few
            progress=False,
        )
        hashes.add(manifest.vision.files["int8"].sha256)
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
            export("nowhere", out, vision=["int8"], calibration=calibration)
    with pytest.raises(ExportError, match="are for int8, int4 and for decoders"):
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
