"""Image files, decoded by Pillow, and by pillow-heif where HEIC is asked for.

What a file says about its image never costs the image: only the orientation is read, on its own, and a file
that cannot be opened is tried again without its metadata.
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
from edgevlm.inputs.image_metadata import without_metadata
from edgevlm.inputs.image_sources import MAX_BYTES
from edgevlm.inputs.pixels import check_size, image_to_rgb

_ORIENTATION = 0x0112
"""EXIF's tag."""
_UPRIGHT = {
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
    *(b"mif1", b"msf1"),  # of any codec
}
_AVIF_BRANDS = {b"avif", b"avis"}


def decode(file: BinaryIO, name: str) -> NDArray[np.uint8]:
    """The image in a file, upright, uint8 ``[height, width, 3]``.

    Args:
        file: seekable, at its beginning.
        name: of the file, for messages.

    Raises:
        ImageError: no image, truncated, or too large.
        MissingDependencyError: HEIC without pillow-heif.
    """
    with _open(file, name) as image:
        try:
            return upright_rgb(image, name)
        except ImageError as error:
            plain = _open_without_metadata(file)
            if plain is None:
                raise
            with plain:
                try:
                    return upright_rgb(plain, name)
                except ImageError:
                    raise error from error.__cause__


def stored_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Width and height before the orientation is applied; arguments and errors as `decode`.

    No pixel is decoded.
    """
    with _open(file, name) as image:
        return image.size


def upright_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """A Pillow image as uint8 ``[height, width, 3]``, turned as its EXIF orientation says.

    Raises:
        ImageError: it cannot be decoded, is too large, or has values out of range.
    """
    check_size(*image.size, name)
    try:
        with _without_warnings():
            image, orientation = _loaded(image)
            rgb = image_to_rgb(image, name)
            method = _UPRIGHT.get(orientation)
            return np.array(rgb if method is None else rgb.transpose(method))
    except ImageError:
        raise
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, zlib.error and others.
        raise ImageError(f"{name} cannot be decoded: {_reason(error)}") from error


def _loaded(image: Image.Image) -> tuple[Image.Image, int]:
    """An image whose pixels are decoded, and its orientation."""
    try:
        image.load()
    except Exception:
        # These two read metadata when all pixels are there already.
        if image.format not in ("PNG", "TIFF") or getattr(image, "tile", None):
            raise
        # A TIFF has the size of the upright image meanwhile; a copy has the size of the pixels.
        return image.copy(), _orientation(image)
    return image, _orientation(image)


def _orientation(image: Image.Image) -> int:
    """EXIF's orientation; 1, which is upright, if there is none that can be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # of many kinds, for a broken block or a tag of another type
        return 1


def _open(file: BinaryIO, name: str) -> Image.Image:
    """A Pillow image whose pixels are not decoded yet."""
    try:
        with _without_warnings():  # of many pixels, too: check_size raises for those
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
            why = f"no image format that is known; it begins with {_beginning(file, 8)!r}"
        raise ImageError(f"{name} cannot be read as a picture: {why}") from error


def _open_format(file: BinaryIO, name: str) -> Image.Image:
    brands = _brands(_beginning(file, 256))
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
        # Opened by its class: to register it would let every Image.open of the program read HEIC.
        return HeifImageFile(file)
    return Image.open(file)


def _brands(beginning: bytes) -> set[bytes]:
    """What an ISO base media file, such as HEIC and AVIF, says that it is; empty for other files."""
    if beginning[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(beginning[:4], "big"), len(beginning))
    return {beginning[8:12], *(beginning[at : at + 4] for at in range(16, end, 4))}


def _open_without_metadata(file: BinaryIO) -> Image.Image | None:
    """The image of a file that cannot be opened as it is; None if metadata is not what is wrong."""
    try:
        file.seek(0)
        found = without_metadata(file.read(MAX_BYTES))
        if found is None:
            return None
        data, exif = found
        with _without_warnings():
            image = _open_format(BytesIO(data), "")
    except Exception:  # the first error says what is wrong
        return None
    if exif:
        image.info["exif"] = exif
    return image


def _beginning(file: BinaryIO, count: int) -> bytes:
    file.seek(0)
    beginning = file.read(count)
    file.seek(0)
    return beginning


def _reason(error: Exception) -> str:
    """An error of a library in one short line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
