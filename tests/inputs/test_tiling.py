"""Reading and splitting images; `tests/reference/test_tiling.py` compares pixels with transformers'."""

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

from edgevlm.errors import ImageError, InputError
from edgevlm.inputs.images import MAX_PIXELS, load_image, load_images
from edgevlm.inputs.tiling import Detail, ImageBudget, split_image
from edgevlm.inputs.tiling.sizes import longest_edge_size, tile_multiple_size
from edgevlm.manifest import StretchTiling
from tests.support.tiling import GRID, STRETCH, WHOLE, random_image


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 30))
def test_never_more_tiles_than_allowed_nor_fewer_than_possible(
    width: int, height: int, limit: int
) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    tiles = len(split_image(image, GRID, max_tiles=limit))
    possible = [len(split_image(image, replace(GRID, longest_edge=64 * n))) for n in (1, 2, 3, 4)]
    assert tiles == max(n for n in possible if n <= limit)


@pytest.mark.parametrize("tiling", [WHOLE, STRETCH], ids=["whole", "stretch"])
def test_a_model_that_never_splits_takes_any_detail(tiling: StretchTiling) -> None:
    image = load_image(random_image(300, 200))
    whole = split_image(image, tiling)
    for detail in get_args(Detail):
        np.testing.assert_array_equal(split_image(image, tiling, detail, 1).pixels, whole.pixels)


def test_a_budget_is_checked() -> None:
    with pytest.raises(InputError, match="detail must be low, high, auto or None, is 'medium'"):
        ImageBudget("medium")  # type: ignore[arg-type]  # what a user might write
    with pytest.raises(InputError, match="max_image_tokens must be from 1"):
        ImageBudget(max_tokens=0)
    with pytest.raises(InputError, match=r"max_image_tokens is 63, .* takes at least 64"):
        ImageBudget(max_tokens=63).max_tiles(64)
    assert ImageBudget(max_tokens=200).max_tiles(64) == 3
    assert ImageBudget().max_tiles(64) is None


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
