"""Images of a question: the page shows what the model sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgevlm.demo import attachments
from edgevlm.errors import ImageError
from edgevlm.inputs.images import load_image

SHOWN = {"JPEG", "MPO", "PNG", "WEBP"}


def color(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Return an image without symmetry, so that a turned or mirrored copy differs."""
    width, height = size
    values = np.zeros((height, width, 3), np.uint8)
    values[..., 0] = np.linspace(0, 255, width)[None, :]
    values[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(values)


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 65535, 2400).reshape(40, 60).astype(np.uint16))


def turned() -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


def animation() -> dict[str, Any]:
    return {"save_all": True, "append_images": [color().rotate(90), color().rotate(180)]}


def transparent() -> Image.Image:
    image = color().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


FILES: dict[str, tuple[Callable[[], Image.Image], dict[str, Any], int]] = {
    "plain.png": (color, {}, 1),
    "plain.jpg": (color, {"quality": 90}, 1),
    "grey.jpg": (lambda: color().convert("L"), {}, 1),
    "plain.webp": (color, {"lossless": True}, 1),
    "plain.bmp": (color, {}, 1),
    "plain.tif": (color, {"compression": "tiff_lzw"}, 1),
    "pages.tif": (color, animation(), 3),
    "deep.png": (deep, {}, 1),
    "deep.tif": (deep, {}, 1),
    "palette.png": (lambda: color().quantize(16), {}, 1),
    "alpha.png": (transparent, {}, 1),
    "alpha.webp": (transparent, {"lossless": True}, 1),
    "print.jpg": (lambda: color().convert("CMYK"), {}, 1),
    "turned.jpg": (color, turned(), 1),
    "turned.png": (color, turned(), 1),
    "turned.tif": (color, turned(), 1),
    "moving.gif": (color, animation(), 3),
    "moving.webp": (color, {**animation(), "lossless": True}, 3),
    "moving.png": (color, animation(), 3),
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_shown_is_what_the_model_sees(name: str, tmp_path: Path) -> None:
    make, options, frames = FILES[name]
    path = tmp_path / name
    make().save(path, **options)
    (found,) = attachments.read([str(path)])
    assert found.frames == frames
    np.testing.assert_array_equal(load_image(found.path), load_image(path))
    with Image.open(found.path) as image:
        assert image.format in SHOWN and getattr(image, "n_frames", 1) == 1
        assert image.mode in ("L", "RGB")
        if image.format != "JPEG":  # of which every browser reads the orientation
            assert image.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "grey.jpg", "turned.jpg", "plain.webp"])
def test_what_browsers_show_stays_as_it_is(name: str, tmp_path: Path) -> None:
    make, options, _ = FILES[name]
    make().save(tmp_path / name, **options)
    (found,) = attachments.read([str(tmp_path / name)])
    assert found.path == str(tmp_path / name)


def test_a_photograph_of_an_iphone(tmp_path: Path) -> None:
    import pillow_heif

    path = tmp_path / "photo.heic"
    pillow_heif.from_pillow(color()).save(path)
    (found,) = attachments.read([str(path)])
    assert found.path.endswith("photo.png")
    np.testing.assert_array_equal(load_image(found.path), load_image(path))


def test_every_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The message has the name of the file, not Gradio's long path."""
    tmp_path = tmp_path / ("f" * 64)
    tmp_path.mkdir()
    color().save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("good", "short", "empty", "text", "huge")]
    with pytest.raises(ImageError) as caught:
        attachments.read(paths)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for name, line in zip(("short", "empty", "text", "huge"), lines, strict=True):
        assert f"{name}.png" in line and "ffff" not in line


def test_a_long_name_stays_a_name(tmp_path: Path) -> None:
    path = tmp_path / ("щ" * 100 + ".bmp")
    color().save(path)
    (found,) = attachments.read([str(path)])
    assert Path(found.path).is_file()
