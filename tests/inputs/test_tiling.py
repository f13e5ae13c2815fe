"""Images become the pixels that transformers' Pillow image processors compute, whatever their kind."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from edgevlm.errors import ImageError, InputError
from edgevlm.inputs.images import MAX_PIXELS, load_image, load_images
from edgevlm.inputs.tiling import (
    Detail,
    ImageBudget,
    Tiles,
    longest_edge_size,
    split_image,
    tile_multiple_size,
)
from edgevlm.manifest import ImagePreparation

HALF = (0.5, 0.5, 0.5)
# A small tile and edge in SmolVLM's proportions (512 and 2048) keep the suite quick.
SPLIT = ImagePreparation("grid", (64, 64), "lanczos", 256, HALF, HALF, 1 / 255)
WHOLE = ImagePreparation("stretch", (64, 64), "lanczos", 256, HALF, HALF, 1 / 255)
STRETCH = ImagePreparation("stretch", (56, 56), "bicubic", None, HALF, HALF, 1 / 255)

IDEFICS3 = {"size": {"longest_edge": 256}, "max_image_size": {"longest_edge": 64}}
REFERENCES = {
    "smolvlm split": (SPLIT, SmolVLMImageProcessorPil(**IDEFICS3)),
    "smolvlm whole": (WHOLE, SmolVLMImageProcessorPil(**IDEFICS3, do_image_splitting=False)),
    "idefics3 split": (SPLIT, Idefics3ImageProcessorPil(**IDEFICS3)),
    "siglip": (
        STRETCH,
        SiglipImageProcessorPil(
            size={"height": 56, "width": 56},
            resample=3,
            image_mean=HALF,
            image_std=HALF,
            do_convert_rgb=True,
        ),
    ),
}
SIZES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 1),
    (1, 300),
    (300, 1),
    (2, 999),
    (999, 3),
    (63, 64),
    (64, 64),
    (64, 65),
    (65, 64),
    (127, 129),
    (255, 256),
    (256, 255),
    (257, 256),
    (100, 33),
    (33, 100),
    (640, 480),
    (480, 640),
    (641, 479),
    (97, 389),
    (512, 512),
    (513, 512),
    (320, 200),
    (1000, 250),
    (250, 1001),
    (31, 57),
    (190, 191),
    (1500, 7),
]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"]


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * 10_007 + height)
    if mode == "PA":
        return random_image(width, height, "P").convert("PA")
    if mode == "LAB":
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.frombytes("LAB", (width, height), pixels.tobytes())
    image = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def reference_pixels(processor: Any, image: Image.Image) -> tuple[np.ndarray, int, int]:
    """transformers' pixel_values ``[n, 3, height, width]``, rows and columns."""
    if isinstance(processor, SiglipImageProcessorPil):
        return np.asarray(processor(image, return_tensors="np")["pixel_values"]), 0, 0
    output = processor([[image]], return_row_col_info=True, return_tensors="np")
    return np.asarray(output["pixel_values"][0]), output["rows"][0][0], output["cols"][0][0]


def assert_same(ours: Tiles, theirs: tuple[np.ndarray, int, int]) -> None:
    pixel_values, rows, columns = theirs
    assert (ours.rows, ours.columns) == (rows, columns)
    as_bytes = np.rint((pixel_values * 0.5 + 0.5) * 255)
    assert np.abs((pixel_values * 0.5 + 0.5) * 255 - as_bytes).max() < 1e-3
    np.testing.assert_array_equal(ours.pixels.transpose(0, 3, 1, 2), as_bytes.astype(np.uint8))


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_size_as_transformers(name: str, size: tuple[int, int]) -> None:
    preparation, processor = REFERENCES[name]
    image = random_image(*size)
    assert_same(split_image(load_image(image), preparation), reference_pixels(processor, image))


def edge_of(size: tuple[int, int], detail: str | None) -> int:
    """The longest edge, in tiles of 64, that stands for a detail."""
    own = max(1, min(4, max(size) // 64))
    return 64 * {"low": 1, "high": 4, "auto": own, None: 4}[detail]


@pytest.mark.parametrize("detail", [None, "low", "high", "auto"])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_detail_is_a_longest_edge_of_transformers(
    detail: Detail | None, size: tuple[int, int]
) -> None:
    image = random_image(*size)
    edge = {"longest_edge": edge_of(size, detail)}
    processor = SmolVLMImageProcessorPil(size=edge, max_image_size={"longest_edge": 64})
    ours = split_image(load_image(image), SPLIT, detail)
    assert_same(ours, reference_pixels(processor, image))
    if detail == "low":
        assert len(ours) == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 30))
def test_never_more_tiles_than_allowed_nor_fewer_than_possible(
    width: int, height: int, limit: int
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    tiles = len(split_image(image, SPLIT, max_tiles=limit))
    possible = [len(split_image(image, replace(SPLIT, longest_edge=64 * n))) for n in (1, 2, 3, 4)]
    assert tiles == max(n for n in possible if n <= limit)


@pytest.mark.parametrize("name", ["smolvlm whole", "siglip"])
def test_a_model_that_never_splits_takes_any_detail(name: str) -> None:
    image = load_image(random_image(300, 200))
    whole = split_image(image, REFERENCES[name][0])
    for detail in get_args(Detail):
        np.testing.assert_array_equal(
            split_image(image, REFERENCES[name][0], detail, 1).pixels, whole.pixels
        )


def test_a_budget_is_checked() -> None:
    with pytest.raises(InputError, match="detail must be low, high, auto or None, is 'medium'"):
        ImageBudget("medium")  # type: ignore[arg-type]  # what a user might write
    with pytest.raises(InputError, match="max_image_tokens must be from 1"):
        ImageBudget(max_tokens=0)
    with pytest.raises(InputError, match=r"max_image_tokens is 63, .* takes at least 64"):
        ImageBudget(max_tokens=63).max_tiles(64)
    assert ImageBudget(max_tokens=200).max_tiles(64) == 3
    assert ImageBudget().max_tiles(64) is None


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_as_transformers(name: str, mode: str) -> None:
    preparation, processor = REFERENCES[name]
    image = random_image(90, 71, mode)
    assert image.mode == mode
    assert_same(split_image(load_image(image), preparation), reference_pixels(processor, image))


@pytest.mark.parametrize("transparency", [0, 7])
def test_palette_with_a_transparent_colour_as_transformers(
    tmp_path: Path, transparency: int
) -> None:
    random_image(40, 30, "P").save(tmp_path / "p.png", transparency=transparency)
    preparation, processor = REFERENCES["smolvlm split"]
    image = Image.open(tmp_path / "p.png")
    assert image.info["transparency"] == transparency
    assert_same(
        split_image(load_image(tmp_path / "p.png"), preparation), reference_pixels(processor, image)
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(["smolvlm split", "siglip"]))
def test_any_size_as_transformers(width: int, height: int, name: str) -> None:
    preparation, processor = REFERENCES[name]
    image = random_image(width, height)
    assert_same(split_image(load_image(image), preparation), reference_pixels(processor, image))


@settings(deadline=None)
@given(st.integers(1, 30_000), st.integers(1, 30_000))
def test_geometry_stays_in_bounds(width: int, height: int) -> None:
    resized = longest_edge_size(width, height, 2048)
    assert max(resized) == 2048 and min(resized) >= 1
    columns, rows = (side / 512 for side in tile_multiple_size(*resized, 512))
    assert columns == int(columns) and rows == int(rows) and 1 <= rows <= 4 and 1 <= columns <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.asarray(random_image(5, 3))
    undo = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(upright, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation])).save(tmp_path / "o.png", exif=exif)
    np.testing.assert_array_equal(load_image(tmp_path / "o.png"), upright)
    np.testing.assert_array_equal(load_image((tmp_path / "o.png").read_bytes()), upright)
    np.testing.assert_array_equal(load_image(Image.open(tmp_path / "o.png")), upright)


def test_all_sources_give_the_same_pixels(tmp_path: Path) -> None:
    image = random_image(20, 10)
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png").read_bytes(),
        image,
        array,
    ):
        np.testing.assert_array_equal(load_image(source), array)
    np.testing.assert_array_equal(load_image(array[::-1, ::2]), array[::-1, ::2])
    assert len(load_images([image, array])) == 2
    assert len(load_images(array)) == 1
    assert load_images(None) == []


def encoded(width: int, height: int, form: str) -> bytes:
    buffer = BytesIO()
    random_image(width, height).save(buffer, form)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_refused(tmp_path: Path, form: str) -> None:
    whole = encoded(64, 64, form)
    load_image(whole)
    path = tmp_path / "cut"
    for kept in (1, 4, 20, len(whole) // 2):
        path.write_bytes(whole[:kept])
        with pytest.raises(ImageError, match="cut"):
            load_image(path)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header promises more than it holds."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(9_500, 9_500), (20_000, 20_000), (2**31 - 1, 2**31 - 1)])
def test_decompression_bombs_are_refused_undecoded(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(ImageError):
        load_image(bomb(*size))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (b"", "empty"),
        (b"not an image", "12 bytes"),
        ("no/such/file.png", "no such file"),
        (".", "a folder"),
        ("https://example.com/a.png", "fetches nothing"),
        (7, "is int"),
        (np.zeros((0, 4, 3), np.uint8), "empty"),
    ],
)
def test_what_is_no_image_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        load_image(source)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="empty file"):
        load_image(tmp_path / "empty.png")
