"""Images from wherever a caller has them: one function reads them all, and says what it cannot read."""

from __future__ import annotations

import array
import base64
import gzip
import io
import mmap
import os
import re
import socket
import stat
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features

from edgevlm.errors import ImageError, MissingDependencyError, PromptError
from edgevlm.inputs import image_sources
from edgevlm.inputs.images import load_image, load_image_part, load_images, read_image_size
from tests.support.image_writers import gradient, png

PIXELS = gradient(np.uint8, 3)
DATA = png(PIXELS)
URI = "data:image/png;base64," + base64.b64encode(DATA).decode()
posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory and home, with ``a.png``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.png").write_bytes(DATA)
    return tmp_path


def assert_read(source: Any) -> None:
    np.testing.assert_array_equal(load_image(source), PIXELS)


def refusal(source: Any) -> str:
    """What is said of a source, which is one short line."""
    with pytest.raises(ImageError) as caught:
        load_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    assert "object at 0x" not in message
    return message


# Paths and URIs


def test_paths(folder: Path) -> None:
    for source in ("a.png", Path("a.png"), "~/a.png", Path("~/a.png"), str(folder / "a.png"), URI):
        assert_read(source)
    (folder / "~").mkdir()
    (folder / "~" / "b.png").write_bytes(DATA)
    assert_read("~/b.png")  # a file of that very name
    assert_read(np.str_("a.png"))


@posix
def test_a_path_of_bytes_behind_a_path_like(folder: Path) -> None:
    name = os.fsencode(folder) + b"/\xff.png"
    Path(os.fsdecode(name)).write_bytes(DATA)

    class Entry:
        def __fspath__(self) -> bytes:
            return name

    assert_read(Entry())
    assert_read(os.fsdecode(name))
    with os.scandir(folder) as entries:
        for entry in entries:
            assert_read(entry)


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.characters(exclude_characters='/\0\\:*?"<>|', exclude_categories=["Cs"]), min_size=1)
)
def test_file_urls_of_any_name(name: str) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, f"{name[:40]}.png")
        path.write_bytes(DATA)
        assert_read(path.as_uri())
        assert_read(path.as_uri().replace("file://", "FILE://LocalHost"))
        assert_read(path.as_uri().replace("file://", "file:"))
        assert_read(str(path))


def test_a_file_url_that_was_not_encoded(folder: Path) -> None:
    (folder / "my photo #1?.png").write_bytes(DATA)
    assert_read(f"file://{folder.as_posix()}/my photo #1?.png")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "no image at '': no such file"),
        ("gone.png", "no image at 'gone.png': no such file"),
        ("a.png/b.png", "no such file"),
        (".", "a folder"),
        (Path("."), "a folder"),
        ("a\0b", "null character"),
        ("a\ud800b", "lone surrogate"),
        ("x" * 300, "too long for a path"),
        (Path("x" * 300), "too long for a path"),
        (base64.b64encode(DATA * 99).decode(), "must begin with 'data:image/png;base64,'"),
        ("https://example.com/a.png", "fetches nothing"),
        ("HTTP://example.com/a.png", "fetches nothing"),
        ("file://nas/a.png", "machine 'nas'"),
        ("file:a.png", "no absolute path"),
        ("file:///a%00b", "null character"),
        ("file:///no/such%20file.png", "no such file"),
        ("data:image/png", "no comma"),
        ("data:image/png;base64," + "A" * 400_000 + "?", "not base64: '\\?' at position 400000"),
        ("data:text/plain,no%20image", r"cannot be read as an image: .* begins with b'no image'"),
        (Path(URI[:80]), "no such file"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "replace").decode(),
)
def test_paths_that_name_no_image(folder: Path, source: Any, words: str) -> None:
    assert re.search(words, refusal(source))


@posix
def test_things_that_are_no_files(folder: Path) -> None:
    Path("broken").symlink_to("gone")
    Path("loop").symlink_to("loop")
    Path("empty").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert "a socket" in refusal("socket")
    assert "a link to a file that does not exist" in refusal("broken")
    assert "symbolic link" in refusal("loop")
    assert "'empty' is an empty file" in refusal("empty")
    assert "'/dev/null' is empty" in refusal("/dev/null")


@posix
def test_pipes_are_paths_too(folder: Path) -> None:
    os.mkfifo("fifo")
    assert stat.S_ISFIFO(os.stat("fifo").st_mode)
    writer = threading.Thread(target=Path("fifo").write_bytes, args=[DATA])
    writer.start()
    assert_read("fifo")
    writer.join()
    reading, writing = os.pipe()
    with open(reading, "rb"):
        with open(writing, "wb") as file:
            file.write(DATA)
        assert_read(f"/dev/fd/{reading}")  # what <(command) is


@posix
def test_a_device_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_sources, "MAX_BYTES", 10_000)
    assert "more than 10,000 bytes" in refusal("/dev/zero")


@posix
@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may read all")
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    Path("a.png").chmod(0)
    assert "permission denied" in refusal("a.png")


# Bytes and files


def test_bytes_of_any_kind(folder: Path) -> None:
    for source in (
        DATA,
        bytearray(DATA),
        memoryview(DATA * 2)[: len(DATA)],
        array.array("B", DATA),
    ):
        assert_read(source)
    with open("a.png", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        assert_read(data)
    assert "empty" in refusal(bytearray())
    assert "array.array" in refusal(array.array("f", [1.0]))


def test_binary_files_of_any_kind(folder: Path) -> None:
    with zipfile.ZipFile("a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", DATA)
    with gzip.open("a.png.gz", "wb") as file:
        file.write(DATA)
    spooled = tempfile.SpooledTemporaryFile()  # noqa: SIM115  (left open on purpose)
    spooled.write(DATA)
    spooled.seek(0)
    archive = zipfile.ZipFile("a.zip")
    files: list[Any] = [
        io.BytesIO(DATA),
        open("a.png", "rb"),  # noqa: SIM115  (left open on purpose)
        open("a.png", "rb", buffering=0),  # noqa: SIM115  (left open on purpose)
        archive.open("a.png"),
        gzip.open("a.png.gz"),  # noqa: SIM115  (left open on purpose)
        spooled,
    ]
    for file in files:
        assert_read(file)
        assert not file.closed
        assert "already at its end" in refusal(file)
        file.close()
    archive.close()


def test_a_file_is_read_from_its_position_to_its_end() -> None:
    file = io.BytesIO(b"header" + DATA)
    file.seek(6)
    assert_read(file)
    assert file.read() == b""


def test_a_file_that_gives_little_at_a_time() -> None:
    class Slow(io.RawIOBase):
        def __init__(self) -> None:
            self.rest = DATA

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            piece, self.rest = self.rest[:7], self.rest[7:]
            buffer[: len(piece)] = piece
            return len(piece)

    assert_read(Slow())


class Reader:
    """Something with a `read` of its own."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def read(self, size: int = -1) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


async def nothing() -> None:
    pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: io.TextIOWrapper(io.FileIO(__file__)), "'.*' is open as text; .* 'rb'"),
        (lambda: io.StringIO("text"), "is open as text"),
        (lambda: io.StringIO(""), "is open as text"),
        (lambda: Reader("text"), "is open as text"),
        (lambda: Reader(None), "returns NoneType"),
        (lambda: Reader(nothing()), "returns coroutine"),
        (lambda: Reader(OSError(5, "broken disk")), "broken disk"),
        (lambda: Reader(KeyError()), "KeyError"),
        (lambda: io.BytesIO(), "is empty"),
        (lambda: io.BytesIO(b"text"), "begins with b'text'"),
    ],
)
def test_files_that_hold_no_image(make: Any, words: str) -> None:
    source = make()
    message = refusal(source)
    assert re.search(words, message)
    if isinstance(source, io.TextIOWrapper):
        source.close()


def test_a_closed_file() -> None:
    file = io.BytesIO(DATA)
    file.close()
    assert "closed" in refusal(file)


# Arrays


class Matrix(np.ndarray[Any, Any]):
    """An array that has two dimensions whatever is done to it, as ``numpy.matrix``."""

    def __getitem__(self, key: Any) -> Any:
        return np.atleast_2d(super().__getitem__(key))


class Convertible:
    """What numpy makes an array of."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return self.result


def test_what_numpy_makes_an_array_of() -> None:
    assert_read(Convertible(PIXELS))
    np.testing.assert_array_equal(
        load_image(PIXELS[..., 0].view(Matrix)), load_image(PIXELS[..., 0])
    )
    assert "of two lines" in refusal(Convertible(RuntimeError("an error\nof two lines")))


# One or several


def test_one_image_is_never_taken_for_several(folder: Path) -> None:
    with open("a.png", "rb") as file, zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.png", DATA)
        for source in (
            "a.png",
            URI,
            Path("a.png"),
            DATA,
            bytearray(DATA),
            io.BytesIO(DATA),
            file,
            PIXELS,
            Image.fromarray(PIXELS),
            Convertible(PIXELS),
        ):
            (found,) = load_images(source)
            np.testing.assert_array_equal(found, PIXELS)
    assert load_images(None) == []
    assert load_images([]) == []


def test_several_images_in_anything_that_has_an_order(folder: Path) -> None:
    sources: list[Any] = ["a.png", DATA, PIXELS, io.BytesIO(DATA), Image.fromarray(PIXELS)]
    for several in (
        sources[:2],
        tuple(sources[:2]),
        iter(sources[:2]),
        dict.fromkeys("ab", DATA).values(),
    ):
        assert len(load_images(several)) == 2
    assert len(load_images(source for source in sources)) == 5
    assert len(load_images(np.array(["a.png", URI]))) == 2
    objects = np.empty(2, object)
    objects[:] = ["a.png", DATA]
    assert len(load_images(objects)) == 2


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ({"image": DATA}, "in a list, which has an order; is dict"),
        ({DATA}, "in a list, which has an order; is set"),
        (frozenset([DATA]), "is frozenset"),
        ([[DATA]], "is list"),
        (PIXELS.tolist(), "is list"),
        ([1, 2], "is int"),
        (7, "is int"),
        (range(3), "is int"),
        (np.zeros(5), r"float64 \[5\]"),
        (PIXELS[None], "a batch"),
        (str, "is type"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_is_neither_one_image_nor_several(sources: Any, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        load_images(sources)


# Parts of messages


def test_parts_as_transformers_spells_them(folder: Path) -> None:
    text = base64.b64encode(DATA).decode()
    for part in (
        {"image": "a.png"},
        {"image": Image.fromarray(PIXELS)},
        {"image": URI, "url": None},
        {"path": "a.png"},
        {"path": Path("a.png")},
        {"url": URI},
        {"url": (folder / "a.png").as_uri()},
        {"base64": text},
        {"base64": text.rstrip("=").encode()},
        {"base64": URI},
    ):
        np.testing.assert_array_equal(load_image_part({"type": "image", **part}), PIXELS)


@pytest.mark.parametrize(
    ("part", "error", "words"),
    [
        ({}, PromptError, "'path', 'url' or 'base64', has none of them"),
        ({"image": None}, PromptError, "has none of them"),
        ({"image": DATA, "url": URI}, PromptError, "has 'image' and 'url'"),
        ({"url": "https://example.com/a.png"}, ImageError, "fetches nothing, is 'https://"),
        ({"url": "a.png"}, ImageError, "'url' .* a data URI or a file:// URL, .* is 'a.png'"),
        ({"url": DATA}, ImageError, "'url' .* must be"),
        ({"path": DATA}, ImageError, "'path' .* must be the path of a file"),
        ({"base64": "a.png"}, ImageError, "not base64: '.' at position 1"),
        ({"base64": PIXELS}, ImageError, "'base64' .* is numpy.ndarray"),
        ({"base64": ""}, ImageError, "empty"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_parts_without_an_image(part: dict[str, Any], error: type, words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        load_image_part({"type": "image", **part})
    assert len(str(caught.value)) < 250


# HEIC


def heic(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    import pillow_heif

    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=-1, **options)
    return file.getvalue()


QUARTERS = np.zeros((40, 64, 3), np.uint8)
QUARTERS[:20, :32], QUARTERS[20:, 32:] = (255, 0, 0), (0, 0, 255)


def test_heic_as_a_path_bytes_and_file(folder: Path) -> None:
    data = heic(QUARTERS)
    Path("photo.jpg").write_bytes(data)  # what it is called does not matter
    for source in ("photo.jpg", data, io.BytesIO(data)):
        found = load_image(source).astype(int)
        assert found.shape == QUARTERS.shape
        assert np.abs(found - QUARTERS)[:, :28].max() < 20
    assert read_image_size(data) == (64, 40)
    assert "HEIF" not in Image.OPEN  # Pillow itself is as it was


def test_heic_is_turned_as_its_camera_was_and_laid_on_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = load_image(heic(QUARTERS, exif=exif.tobytes()))
    assert np.abs(turned.astype(int) - np.rot90(QUARTERS, -1)).mean() < 3
    alpha = np.where(np.arange(64) < 32, 0, 255).astype(np.uint8)
    laid = load_image(heic(np.dstack([QUARTERS, np.tile(alpha, (40, 1))])))
    assert (laid[:, :28] == 255).all()
    assert np.abs(laid[:, 36:].astype(int) - QUARTERS[:, 36:]).max() < 20


def test_heic_that_is_broken() -> None:
    data = heic(QUARTERS)
    for kept in (16, 100, len(data) // 2, len(data) - 20):
        assert "the image of" in refusal(data[:kept])


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1", b"msf1"])
def test_heic_without_its_library_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, brand: bytes
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(99)
    for read in (load_image, read_image_size):
        with pytest.raises(MissingDependencyError, match=r"pip install 'edgevlm\[heic\]'"):
            read(data)


def test_avif_needs_no_library_but_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    data = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf" + bytes(99)
    if features.check("avif"):
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        file = io.BytesIO()
        Image.fromarray(QUARTERS).save(file, "AVIF", quality=100)
        assert np.abs(load_image(file.getvalue()).astype(int) - QUARTERS).mean() < 3
        assert "cannot be read as an image" in refusal(data)
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'pillow>=11\.3'"):
        load_image(data)
