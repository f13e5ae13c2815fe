"""Images of more than 8 bits, and of floats: scaled by their type, the same from everywhere, or refused."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError
from edgevlm.inputs.images import load_image
from tests.support.image_writers import chunk, gradient, pgm, png, tiff

DEEP = gradient(np.uint16)
"""From 0 to 65535."""


def grey(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """``[height, width]`` as RGB."""
    return np.stack([pixels.astype(np.uint8)] * 3, axis=-1)


def on_white(pixels: NDArray[Any], alpha: NDArray[Any]) -> NDArray[np.float64]:
    """What is laid on white, not yet rounded."""
    share = (alpha / 255.0)[..., None]
    return pixels * share + 255 * (1 - share)


def high_byte(values: NDArray[Any]) -> NDArray[Any]:
    return values // 256


def test_the_rule_keeps_both_ends_and_is_near_the_exact_scale() -> None:
    assert load_image(np.array([[0, 65535]], np.uint16))[0, :, 0].tolist() == [0, 255]
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    difference = load_image(every)[..., 0] - every * (255 / 65535)
    assert np.abs(difference).max() < 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.uint64, ">u2", ">u4"])
def test_unsigned_arrays_by_the_range_of_their_type(dtype: Any) -> None:
    values = gradient(dtype).astype(dtype)
    share = values.astype(object) * 256 // (int(np.iinfo(dtype).max) + 1)
    np.testing.assert_array_equal(load_image(values), grey(share))
    np.testing.assert_array_equal(load_image(values[..., None]), grey(share))
    np.testing.assert_array_equal(load_image(values[::-1, ::2]), grey(share)[::-1, ::2])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", np.longdouble])
def test_float_arrays_go_from_0_to_1(dtype: Any) -> None:
    steps = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(load_image((steps / 255).astype(dtype)), grey(steps))
    assert load_image(np.array([[0.0, 0.5, 0.25, 1.0]], dtype))[0, :, 0].tolist() == [
        0,
        128,
        64,
        255,
    ]


def test_true_is_white() -> None:
    mask = np.array([[True, False], [False, True]])
    np.testing.assert_array_equal(load_image(mask), grey(mask * 255))
    np.testing.assert_array_equal(load_image(Image.fromarray(mask)), grey(mask * 255))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_channels_of_arrays(dtype: Any) -> None:
    eight = gradient(np.uint8, 4)
    scale = {np.uint8: 1, np.uint16: 257, np.float32: np.float32(1 / 255)}[dtype]
    values = (eight * np.asarray(scale, dtype)).astype(dtype)
    color, alpha = eight[..., :3], eight[..., 3]
    np.testing.assert_array_equal(load_image(values[..., :3]), color)
    np.testing.assert_array_equal(load_image(values[..., :1]), grey(color[..., 0]))
    laid = on_white(color, alpha)
    assert np.abs(load_image(values) - laid).max() <= 1
    with_alpha = load_image(values[..., [0, 3]])
    assert np.abs(with_alpha - on_white(grey(color[..., 0]), alpha)).max() <= 1
    np.testing.assert_array_equal(load_image(values), load_image(Image.fromarray(eight)))


def test_arrays_are_neither_copied_nor_written() -> None:
    values = gradient(np.uint8, 3)
    values.flags.writeable = False
    assert np.shares_memory(load_image(values), values)
    assert load_image(values[:, ::-1]).flags.c_contiguous


FILES = {
    "png": png(DEEP),
    "png with alpha": png(np.dstack([DEEP, np.full_like(DEEP, 65535)])),
    "tiff": tiff(DEEP),
    "tiff, big-endian": tiff(DEEP, order=">"),
    "tiff, white is 0": tiff(65535 - DEEP, photometric=0),
    "tiff of 32 bits": tiff(DEEP.astype(np.uint32) * 65537),
    "pgm": pgm(DEEP, 65535),
    "pgm, plain": pgm(DEEP, 65535, plain=True),
}


@pytest.mark.parametrize("name", FILES)
def test_grey_files_of_16_bits_are_as_the_array(name: str) -> None:
    expected = grey(high_byte(DEEP))
    np.testing.assert_array_equal(load_image(FILES[name]), expected)
    with Image.open(BytesIO(FILES[name])) as image:
        np.testing.assert_array_equal(load_image(image), expected)
    np.testing.assert_array_equal(load_image(DEEP), expected)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_compressed_tiff(compression: str) -> None:
    file = BytesIO()
    Image.fromarray(DEEP).save(file, "TIFF", compression=compression)
    np.testing.assert_array_equal(load_image(file.getvalue()), grey(high_byte(DEEP)))


@pytest.mark.parametrize("write", [png, tiff, lambda values: tiff(values, order=">")])
def test_color_files_of_16_bits_are_as_the_array(write: Any) -> None:
    values = gradient(np.uint16, 3)
    np.testing.assert_array_equal(load_image(write(values)), high_byte(values))
    np.testing.assert_array_equal(load_image(values), high_byte(values))


@pytest.mark.parametrize("write", [png, tiff, lambda values: tiff(values, order=">")])
def test_color_and_alpha_of_16_bits_are_as_the_array(write: Any) -> None:
    values = gradient(np.uint16, 4)
    np.testing.assert_array_equal(load_image(write(values)), load_image(values))
    laid = on_white(high_byte(values[..., :3]), high_byte(values[..., 3]))
    assert np.abs(load_image(values) - laid).max() <= 1


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N", "I"])
def test_pillow_images_of_16_bits_are_as_the_array(mode: str) -> None:
    image = Image.new(mode, (2, 3), 40_000)
    assert (image.mode, load_image(image).tolist()) == (mode, [[[40_000 // 256] * 3] * 2] * 3)


def test_pillow_images_made_of_arrays() -> None:
    for values in (DEEP, DEEP.astype(">u2")):
        np.testing.assert_array_equal(load_image(Image.fromarray(values)), load_image(DEEP))
    # As a file that was opened, cropped, turned or converted before.
    derived = Image.fromarray(DEEP).convert("I").transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(load_image(derived), np.rot90(load_image(DEEP)))
    floats = np.linspace(0, 1, 63, dtype=np.float32).reshape(7, 9)
    np.testing.assert_array_equal(load_image(Image.fromarray(floats)), load_image(floats))
    np.testing.assert_array_equal(load_image(tiff(floats)), load_image(floats))
    np.testing.assert_array_equal(load_image(tiff(floats, order=">")), load_image(floats))
    np.testing.assert_array_equal(load_image(floats), grey(np.rint(floats * 255)))


def test_12_bits_of_a_tiff_are_their_own_range() -> None:
    values = np.array([[0, 4095, 2048, 16]], np.uint16)
    packed = b"".join(
        ((int(first) << 12) | int(second)).to_bytes(3, "big")
        for first, second in values.reshape(-1, 2)
    )
    assert load_image(tiff(values, pixels=packed, bits=12))[0, :, 0].tolist() == [0, 255, 128, 1]


def test_a_grey_map_is_scaled_to_its_own_white() -> None:
    values = np.array([[0, 4095, 2048]], np.uint16)
    assert load_image(pgm(values, 4095))[0, :, 0].tolist() == [0, 255, 128]


def test_a_dark_file_stays_dark() -> None:
    """As a depth camera's near pixels: what white is does not depend on the values."""
    dark = DEEP // 300
    for data in (png(dark), tiff(dark), pgm(dark, 65535)):
        np.testing.assert_array_equal(load_image(data), grey(high_byte(dark)))


def test_the_transparent_value_of_16_bits_is_white() -> None:
    values = np.array([[0, 1000, 30_000, 65535]], np.uint16)
    data = png(values, before=[chunk(b"tRNS", (1000).to_bytes(2, "big"))])
    assert load_image(data)[0, :, 0].tolist() == [0, 255, 117, 255]


SIGNED = np.array([[-5, 300]], np.int16)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.array([[0, 200]]), "int64 with values from 0 to 200"),
        (SIGNED, "int16 with values from -5 to 300"),
        (tiff(SIGNED), "int32 with values from -5 to 300"),
        (tiff(SIGNED, order=">"), "int32 with values from -5 to 300"),
        (np.array([[0.0, 255.0]]), "float64 with values from 0 to 255; floats must be from 0"),
        (np.array([[-0.5, 0.5]], np.float16), "float16 with values from -0.5 to 0.5"),
        (tiff(np.array([[0.25, 7.5]], np.float32)), "float32 with values from 0.25 to 7.5"),
        (Image.new("F", (2, 2), 255), "Pillow image is float32 with values from 255 to 255"),
        (np.array([[0.5, np.nan]]), "from 0.5 to 0.5 and not finite"),
        (np.full((2, 2), np.inf), "values not finite"),
        (Image.new("I", (2, 2), 200), "from 200 to 200, .* 255 or 65535"),
        (Image.new("I", (2, 2), 70_000), "int32 with values from 70000 to 70000"),
        (Image.new("I", (2, 2), -1), "int32 with values from -1 to -1"),
        (np.zeros((2, 2), complex), "complex128"),
        (np.full((2, 2), None), "object"),
        (np.zeros((2, 2), "u1,u1"), "f0"),
        (np.ma.masked_greater(DEEP, 9), "masked"),
    ],
)
def test_what_has_no_range_is_refused_with_the_one_found(source: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(source)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), r"uint8 \[\]"),
        ((0, 4, 3), "empty"),
        ((4, 0), "empty"),
        ((5,), "tobytes"),
        ((4, 4, 5), r"\[4, 4, 5\]"),
        ((3, 8, 9), "channels first.*transpose"),
        ((2, 8, 9, 3), "a batch; .*list"),
        ((1, 1, 2, 2, 3), r"\[1, 1, 2, 2, 3\]"),
        ((9_500, 9_500), "90250000|9500 x 9500"),
    ],
)
def test_shapes_that_are_no_image_are_refused(shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_image(np.broadcast_to(np.uint8(0), shape))


@given(st.integers(0, 65535), st.sampled_from(["png", "tiff", "array", "Pillow"]))
def test_any_value_from_anywhere(value: int, kind: str) -> None:
    values = np.full((2, 3), value, np.uint16)
    source: Any = {
        "png": lambda: png(values),
        "tiff": lambda: tiff(values),
        "array": lambda: values,
        "Pillow": lambda: Image.fromarray(values),
    }[kind]()
    assert load_image(source).tolist() == [[[value // 256] * 3] * 3] * 2
