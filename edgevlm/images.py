"""Any picture that a caller may have, as an RGB uint8 array.

The conversion to RGB is transformers' (5.23, ``image_transforms.convert_to_rgb``): a picture with
transparency is laid on white, every other mode goes through Pillow's ``convert("RGB")``. EXIF orientation
is applied first. Nothing is fetched from a network.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from edgevlm.errors import ImageError

ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]"
"""A file's path, a file's bytes, a Pillow image, or an RGB uint8 array ``[height, width, 3]``."""

MAX_PIXELS = 89_478_485
"""Larger pictures are refused before they are decoded; Pillow's own limit for decompression bombs."""


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read a picture.

    Returns:
        uint8 ``[height, width, 3]``, RGB, C-contiguous.

    Raises:
        ImageError: no such file, not a picture, truncated, empty, more than `MAX_PIXELS`, or a type or
            array shape that is not an `ImageSource`.
    """
    if isinstance(source, np.ndarray):
        return _check_array(source)
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        data = bytes(source)
        if not data:
            raise ImageError("the picture's bytes are empty; pass a whole PNG, JPEG, WebP ... file")
        return _open(BytesIO(data), f"the picture of {len(data)} bytes")
    if isinstance(source, str | os.PathLike):
        name = os.fspath(source)
        if isinstance(name, str) and name.startswith(("http://", "https://")):
            raise ImageError(
                f"{name!r} is a web address and edgevlm fetches nothing; download it first"
            )
        path = Path(name)
        if not path.is_file():
            raise ImageError(
                f"no picture at {name!r}: {'a folder' if path.is_dir() else 'no such file'}"
            )
        if path.stat().st_size == 0:
            raise ImageError(f"{name!r} is an empty file")
        return _open(path, repr(name))
    raise ImageError(
        f"a picture must be a path, bytes, a Pillow image or a uint8 array [height, width, 3], "
        f"is {type(source).__name__}"
    )


def load_images(sources: ImageSource | Iterable[ImageSource] | None) -> list[NDArray[np.uint8]]:
    """`load_image` of one picture, of each of several, or of none."""
    if sources is None:
        return []
    single = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
    if isinstance(sources, single) or not isinstance(sources, Iterable):
        return [load_image(cast("ImageSource", sources))]
    return [load_image(source) for source in sources]


def _check_array(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ImageError(
            f"an array must be uint8 [height, width, 3] (RGB), is {array.dtype} {list(array.shape)}"
        )
    _check_size(array.shape[1], array.shape[0], "the array")
    return np.ascontiguousarray(array)


def _check_size(width: int, height: int, name: str) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels, which is empty")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; "
            f"make it smaller first"
        )


def _open(file: Path | BytesIO, name: str) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            # Past the limit Pillow first only warns; _check_size raises for those.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name} is refused: {error}") from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise ImageError(f"{name} cannot be read as a picture: {error}") from error
    with image:
        return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> NDArray[np.uint8]:
    _check_size(*image.size, name)
    try:
        upright = ImageOps.exif_transpose(image)
        if "A" in upright.getbands() or upright.info.get("transparency") is not None:
            layer = upright.convert("RGBA")
            white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
            upright = Image.alpha_composite(white, layer)
        return np.array(upright.convert("RGB"))
    except Exception as error:
        # Pillow's decoders raise OSError, ValueError, SyntaxError, struct.error, zlib.error and others.
        raise ImageError(f"{name} cannot be decoded: {error}") from error
