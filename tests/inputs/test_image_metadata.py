"""What a file says about its image never costs the image; the orientation is read where it can be."""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError, features

from edgevlm.errors import ImageError
from edgevlm.inputs.images import load_image, read_image_size
from tests.support.image_writers import PNG, chunk, gradient, orientation_block, png, segment, tiff

PIXELS = gradient(np.uint8, 3)
"""``[7, 9, 3]``, no two rows or columns alike."""
HUGE_TEXT = zlib.compress(b" " * 3_000_000)
"""More than Pillow takes from a chunk of text."""
ODD_TAGS = [(0x010F, 12, 1, 7), (0x011A, 4, 1, 3), (0x0132, 5, 1, 0xFFFFFF), (0x8769, 7, 4, 1)]
"""A maker that is a number, a resolution that is no ratio, a date past the end, an address that is none."""


def upright(pixels: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """What is seen of pixels that were stored with an orientation, by EXIF's own words for it."""
    # Which side of what is seen the first row of the file is, and which the first column.
    first_row, first_column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    if first_row in ("left", "right"):
        pixels = pixels.transpose(1, 0, 2)
    if "bottom" in (first_row, first_column):
        pixels = pixels[::-1]
    if "right" in (first_row, first_column):
        pixels = pixels[:, ::-1]
    return pixels


def saved(form: str, **options: Any) -> bytes:
    """A file of `PIXELS` by Pillow."""
    file = BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return file.getvalue()


def jpeg(*segments: bytes) -> bytes:
    """A JPEG with more segments."""
    data = saved("JPEG")
    return data[:2] + b"".join(segments) + data[2:]


def raw_profile(block: bytes) -> bytes:
    """EXIF as ImageMagick keeps it in a PNG, in hexadecimal."""
    data = b"Exif\0\0" + block
    text = f"\nexif\n{len(data):8}\n{data.hex()}\n".encode()
    return chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))


# Pillow warns a program that opens such an image itself; `load_image` does not.
@pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning")
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["png", "png, profile", "jpeg", "webp", "tiff", "tiff, packed"])
def test_the_orientation_is_applied_whatever_the_other_tags_are(
    form: str, orientation: int
) -> None:
    block = orientation_block(orientation, *ODD_TAGS)
    data, stored = {
        "png": lambda: (png(PIXELS, before=[chunk(b"eXIf", block)]), PIXELS),
        "png, profile": lambda: (png(PIXELS, before=[raw_profile(block)]), PIXELS),
        "jpeg": lambda: (jpeg(segment(0xE1, b"Exif\0\0" + block)), load_image(saved("JPEG"))),
        "webp": lambda: (saved("WEBP", lossless=True, exif=block), PIXELS),
        "tiff": lambda: (tiff(PIXELS, more=[(274, 3, 1, orientation), *ODD_TAGS[1:]]), PIXELS),
        "tiff, packed": lambda: (
            saved("TIFF", compression="tiff_lzw", tiffinfo={274: orientation}),
            PIXELS,
        ),
    }[form]()
    np.testing.assert_array_equal(load_image(data), upright(stored, orientation))
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(image), upright(stored, orientation))


@pytest.mark.parametrize("kind", [3, 4, 5, 9])
def test_the_orientation_may_be_a_number_of_any_type(kind: int) -> None:
    values = {5: struct.pack(">I", 26), 3: b"\0\6\0\0"}
    value = values.get(kind, b"\0\0\0\6")
    block = b"MM\0*" + struct.pack(">IHHHI", 8, 1, 0x0112, kind, 1) + value + bytes(4)
    data = png(PIXELS, before=[chunk(b"eXIf", block + struct.pack(">II", 6, 1))])
    np.testing.assert_array_equal(load_image(data), upright(PIXELS, 6))


BROKEN_BLOCKS = [
    b"",
    b"\0",
    b"Exif\0\0",
    b"MM",
    b"MM\0*",
    b"MM\0*\0\0\0\x08",
    b"MM\0*\0\0\0\x08\0\x09",
    b"MM\0*\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\xff\xff",
    b"no such block" * 9,
    orientation_block(99),
    orientation_block(0),
    b"MM\0*" + struct.pack(">IHHHI4sI", 8, 1, 0x0112, 2, 4, b"six\0", 0),
    b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 0x0112, 3, 2**31, 9, 0),
]


@pytest.mark.parametrize("block", BROKEN_BLOCKS, ids=range(len(BROKEN_BLOCKS)))
def test_a_broken_exif_block_leaves_the_image_as_it_is_stored(block: bytes) -> None:
    exact = [
        png(PIXELS, before=[chunk(b"eXIf", block)]),
        png(PIXELS, after=[chunk(b"eXIf", block)]),
        png(PIXELS, before=[raw_profile(block)]),
        png(PIXELS, before=[chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(block))]),
        saved("WEBP", lossless=True, exif=block or b"x"),
    ]
    for data in exact:
        np.testing.assert_array_equal(load_image(data), PIXELS)
        with Image.open(BytesIO(data)) as image:
            np.testing.assert_array_equal(load_image(image), PIXELS)
    stored = load_image(saved("JPEG"))
    for prefix in (b"Exif\0\0", b"Exif\0", b""):
        np.testing.assert_array_equal(load_image(jpeg(segment(0xE1, prefix + block))), stored)


CHUNKS = {
    "text that is too long": chunk(b"zTXt", b"key\0\0" + HUGE_TEXT),
    "international text that is too long": chunk(b"iTXt", b"key\0\1\0\0\0" + HUGE_TEXT),
    "much text": chunk(b"tEXt", b"key\0" + b"x" * 70_000_000),
    "profile that is too long": chunk(b"iCCP", b"name\0\0" + HUGE_TEXT),
    "profile that is none": chunk(b"iCCP", b"name\0\0none"),
    "profile of unknown compression": chunk(b"iCCP", b"name\0\7none"),
    "text of unknown compression": chunk(b"zTXt", b"key\0\7none"),
    "text that is not packed": chunk(b"zTXt", b"key\0\0none"),
    "short resolution": chunk(b"pHYs", b"\0"),
    "short gamma": chunk(b"gAMA", b""),
    "short colors": chunk(b"cHRM", b"\0\0\0"),
    "short intent": chunk(b"sRGB", b""),
    "short animation": chunk(b"acTL", b"\0"),
    "animation of nothing": chunk(b"acTL", bytes(8)),
    "stray frame": chunk(b"fcTL", bytes(26)),
    "wrong checksum": chunk(b"tEXt", b"key\0value")[:-1] + b"?",
    "unknown": chunk(b"prVt", b"\xff" * 99),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_of_a_png(name: str) -> None:
    turned = chunk(b"eXIf", orientation_block(6))
    for data in (png(PIXELS, before=[CHUNKS[name]]), png(PIXELS, after=[CHUNKS[name]])):
        np.testing.assert_array_equal(load_image(data), PIXELS)
        assert read_image_size(data) == (9, 7)
    for data in (
        png(PIXELS, before=[turned, CHUNKS[name]]),
        png(PIXELS, before=[CHUNKS[name], turned]),
        png(PIXELS, before=[turned], after=[CHUNKS[name]]),
    ):
        np.testing.assert_array_equal(load_image(data), upright(PIXELS, 6))


def test_pillow_alone_refuses_such_a_png() -> None:
    """Otherwise the tests above show nothing."""
    with pytest.raises((ValueError, UnidentifiedImageError)):
        Image.open(BytesIO(png(PIXELS, before=[CHUNKS["text that is too long"]])))


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (
            png(
                PIXELS,
                before=[chunk(b"eXIf", orientation_block(5))],
                after=[CHUNKS["text that is too long"]],
            ),
            5,
        ),
        (tiff(PIXELS, more=[(274, 3, 1, 6), (700, 5, 1, 8)]), 6),  # XMP that is a ratio
        (tiff(PIXELS, more=[(274, 3, 1, 6), (34665, 9, 1, 2**32 - 1)]), 6),  # EXIF before the file
    ],
    ids=["png", "tiff, XMP", "tiff, EXIF"],
)
def test_a_pillow_image_that_fails_after_its_pixels(data: bytes, orientation: int) -> None:
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(load_image(image), upright(PIXELS, orientation))


def test_the_same_of_16_bits() -> None:
    values = gradient(np.uint16)
    with Image.open(
        BytesIO(tiff(values, more=[(274, 3, 1, 6), (34665, 9, 1, 2**32 - 1)]))
    ) as image:
        np.testing.assert_array_equal(load_image(image), upright(load_image(values), 6))


SEGMENTS = {
    "JFIF, cut": segment(0xE0, b"JFIF\0"),
    "Adobe, cut": segment(0xEE, b"Adobe"),
    "profile, cut": segment(0xE2, b"ICC_PROFILE\0"),
    "profile, part 9 of 2": segment(0xE2, b"ICC_PROFILE\0\x09\x02none"),
    "more images, none": segment(0xE2, b"MPF\0none"),
    "more images, cut": segment(0xE2, b"MPF\0" + orientation_block(1)[:12]),
    "Photoshop, cut": segment(0xED, b"Photoshop 3.0\x008BIM\x03\xed\0\0\0\0\0\x10\0"),
    "XMP, none": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0\xff\xfe<x"),
    "comment, empty": segment(0xFE, b""),
    "FlashPix, cut": segment(0xE2, b"FPXR\0"),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_segments_of_a_jpeg(name: str) -> None:
    stored = load_image(saved("JPEG"))
    np.testing.assert_array_equal(load_image(jpeg(SEGMENTS[name])), stored)
    turned = segment(0xE1, b"Exif\0\0" + orientation_block(8))
    for data in (jpeg(turned, SEGMENTS[name]), jpeg(SEGMENTS[name], turned)):
        np.testing.assert_array_equal(load_image(data), upright(stored, 8))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([270, 282, 283, 296, 301, 306, 330, 700, 33723, 34377, 34665, 34675, 34853]),
    st.integers(0, 17),
    st.sampled_from([0, 1, 2, 9, 1000, 2**31]),
    st.sampled_from([0, 1, 6, 8, 2**31, 2**32 - 1]),
    st.sampled_from([1, 6, 7]),
    st.sampled_from(["<", ">"]),
)
def test_tags_of_a_tiff(
    tag: int, kind: int, count: int, value: int, orientation: int, order: Literal["<", ">"]
) -> None:
    shown = orientation if order == "<" else orientation << 16
    data = tiff(PIXELS, order=order, more=[(tag, kind, count, value), (274, 3, 1, shown)])
    np.testing.assert_array_equal(load_image(data), upright(PIXELS, orientation))


def test_an_orientation_of_a_tiff_that_is_none() -> None:
    for kind, count in ((2, 1000), (3, 2**31), (16, 1), (99, 1)):
        data = tiff(PIXELS, more=[(274, kind, count, 6)])
        np.testing.assert_array_equal(load_image(data), PIXELS)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.sampled_from(["png", "profile", "jpeg", "webp"]))
def test_any_exif_block_at_all(block: bytes, form: str) -> None:
    block = b"MM\0*\0\0\0\x08\0\2" + block
    data = {
        "png": lambda: png(PIXELS, before=[chunk(b"eXIf", block)]),
        "profile": lambda: png(PIXELS, before=[raw_profile(block)]),
        "jpeg": lambda: jpeg(segment(0xE1, b"Exif\0\0" + block)),
        "webp": lambda: saved("WEBP", lossless=True, exif=block),
    }[form]()
    assert sorted(load_image(data).shape) == [3, 7, 9]


def test_no_warning_reaches_the_user() -> None:
    block = b"II*\0" + struct.pack("<IHHHIIH", 8, 2, 0x010F, 2, 900, 7, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(jpeg(segment(0xE1, b"Exif\0\0" + block)))


def test_pixels_that_are_cut_are_refused_with_and_without_metadata() -> None:
    data = png(np.tile(PIXELS, (9, 9, 1)), before=[CHUNKS["text that is too long"]])
    end = data.index(b"IDAT") + 40
    with pytest.raises(ImageError, match=r"truncated|cannot be read"):
        load_image(data[:end])
    with pytest.raises(ImageError):
        load_image(PNG + CHUNKS["text that is too long"])
    long_jpeg = BytesIO()
    Image.fromarray(np.tile(PIXELS, (30, 30, 1))).save(long_jpeg, "JPEG")
    cut = long_jpeg.getvalue()[: len(long_jpeg.getvalue()) // 2]
    with pytest.raises(ImageError, match="truncated"):
        load_image(cut[:2] + SEGMENTS["JFIF, cut"] + cut[2:])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "TIFF"])
def test_what_follows_the_image_does_not_matter(form: str) -> None:
    data = saved(form)
    np.testing.assert_array_equal(load_image(data + b"trailing\0\xff" * 99), load_image(data))


def test_several_frames_show_the_first() -> None:
    frames = [Image.fromarray(np.full((7, 9, 3), value, np.uint8)) for value in (200, 40, 90)]
    for form, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        file = BytesIO()
        frames[0].save(file, form, save_all=True, append_images=frames[1:], **options)
        with Image.open(BytesIO(file.getvalue())) as image:
            assert getattr(image, "n_frames", 1) == 3, form
        assert (load_image(file.getvalue()) == 200).all(), form
    file = BytesIO()
    frames[0].save(file, "MPO", save_all=True, append_images=frames[1:])
    assert np.abs(load_image(file.getvalue()).astype(int) - 200).max() <= 1


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_a_broken_exif_block_in_avif() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "some words"
    data = saved("AVIF", quality=100, exif=exif.tobytes())
    at = max(data.rfind(b"MM\0*"), data.rfind(b"II*\0"))
    broken = data[:at] + b"none" + data[at + 4 :]
    with pytest.raises((ValueError, UnidentifiedImageError)):
        Image.open(BytesIO(broken))
    assert load_image(broken).shape == (9, 7, 3)
    np.testing.assert_array_equal(load_image(broken), load_image(data))
