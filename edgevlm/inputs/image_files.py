"""Decode image files with Pillow, and HEIC files with pillow-heif.

Broken metadata never makes an image unreadable. Only the orientation is read, in a step of its own, and a
file that cannot be opened is opened again without its metadata.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from edgevlm.errors import ImageError, MissingDependencyError
from edgevlm.inputs.image_metadata import strip_metadata
from edgevlm.inputs.image_sources import MAX_BYTES
from edgevlm.inputs.pixels import check_size, image_to_rgb

_ORIENTATION = 0x0112
"""Tag of EXIF's orientation."""
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIC_BRANDS = {
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"mif1", b"msf1"),  # HEIF with any codec
}
_AVIF_BRANDS = {b"avif", b"avis"}


def decode_image(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """Decode an image file to an upright image, RGB uint8 ``[height, width, 3]``.

    Args:
        file: a seekable file at its beginning.
        name: the name of the file in error messages.

    Raises:
        ImageError: the file is not an image, is truncated, or has too many pixels.
        MissingDependencyError: the file is HEIC, and pillow-heif is not installed.
    """
    with _open(file, name) as image:
        try:
            return to_upright_rgb(image, name)
        except ImageError as error:
            plain = _open_without_metadata(file)
            if plain is None:
                raise
            with plain:
                try:
                    return to_upright_rgb(plain, name)
                except ImageError:
                    raise error from error.__cause__


def read_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Return width and height before the orientation is applied. No pixel is decoded.

    Args:
        file: a seekable file at its beginning.
        name: the name of the file in error messages.

    Raises:
        ImageError, MissingDependencyError: as `decode_image`, except for errors in the pixels.
    """
    with _open(file, name) as image:
        return image.size


def to_upright_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Convert a Pillow image to RGB uint8 ``[height, width, 3]`` and apply its EXIF orientation.

    Args:
        image: the image; its pixels may still be encoded.
        name: the name of the image in error messages.

    Raises:
        ImageError: the image cannot be decoded, has too many pixels, or has values out of range.
    """
    check_size(*image.size, name)
    try:
        with _without_warnings():
            image, orientation = _load_pixels(image)
            rgb = image_to_rgb(image, name)
            method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
            return np.array(rgb if method is None else rgb.transpose(method))
    except ImageError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, zlib.error and others.
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _load_pixels(image: Image.Image) -> tuple[Image.Image, int]:
    """Decode the pixels of an image. Return the image and its orientation."""
    try:
        image.load()
    except Exception:
        # Pillow reads metadata of these two formats after the last pixel.
        if image.format not in ("PNG", "TIFF") or getattr(image, "tile", None):
            raise
        # Now a TIFF has the size of the upright image; a copy has the size of the pixels.
        return image.copy(), _orientation(image)
    return image, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """Return EXIF's orientation, or 1 (upright) if it is missing or cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow raises many types for a broken block or a tag of another type
        return 1


def _open(file: BinaryIO, name: str) -> Image.Image:
    """Open an image without decoding its pixels."""
    try:
        with _without_warnings():  # check_size raises an error for too many pixels
            return _open_format(file, name)
    except MissingDependencyError:
        raise
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {_reason(error)}") from error
    except Exception as error:
        image = _open_without_metadata(file)
        if image is not None:
            return image
        why = _reason(error)
        if isinstance(error, UnidentifiedImageError):
            why = f"its format is not known; it begins with {_read_start(file, 8)!r}"
        raise ImageError(f"{name} cannot be read as an image: {why}") from error


def _open_format(file: BinaryIO, name: str) -> Image.Image:
    brands = _brands(_read_start(file, 256))
    if brands & _AVIF_BRANDS:
        if not features.check("avif"):
            raise MissingDependencyError(
                f"{name} is AVIF, which this Pillow does not read; pip install 'pillow>=11.3'"
            )
    elif brands & _HEIC_BRANDS:
        try:
            from pillow_heif import HeifImageFile
        except ImportError as error:
            raise MissingDependencyError(
                f"{name} is HEIC, which needs pillow-heif; pip install 'edgevlm[heic]' (or save it as JPEG)"
            ) from error
        # Do not register the plug-in: it would change every Image.open of the program.
        return HeifImageFile(file)
    return Image.open(file)


def _brands(start: bytes) -> set[bytes]:
    """Return the brands of an ISO base media file, such as HEIC or AVIF; none for other files."""
    if start[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(start[:4], "big"), len(start))
    return {start[8:12], *(start[at : at + 4] for at in range(16, end, 4))}


def _open_without_metadata(file: BinaryIO) -> Image.Image | None:
    """Open an image without its metadata. Return None if the metadata is not the reason of the error."""
    try:
        file.seek(0)
        stripped = strip_metadata(file.read(MAX_BYTES))
        if stripped is None:
            return None
        data, exif = stripped
        with _without_warnings():
            image = _open_format(BytesIO(data), "")
    except Exception:  # the caller reports the first error
        return None
    if exif:
        image.info["exif"] = exif
    return image


def _read_start(file: BinaryIO, count: int) -> bytes:
    file.seek(0)
    start = file.read(count)
    file.seek(0)
    return start


def _reason(error: Exception) -> str:
    """Return the message of a library's error as one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
