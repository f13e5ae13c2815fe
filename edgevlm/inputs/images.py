"""Load images of every supported type as RGB uint8 arrays.

`ImageSource` lists the types. The conversion to RGB is that of transformers 5.24
(``image_transforms.convert_to_rgb``): transparent pixels are put on white, and every other mode of 8 bits
goes through Pillow's ``convert("RGB")``. Deeper integers are scaled from the whole range of their type, and
floats from 0 to 1; see `edgevlm.inputs.pixels`. EXIF orientation is applied. Nothing is fetched from the
network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from typing import IO, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError, PromptError
from edgevlm.inputs.data_uri import decode_base64, is_data_uri, shorten
from edgevlm.inputs.image_files import decode_image, read_size, to_upright_rgb
from edgevlm.inputs.image_sources import (
    is_bytes_like,
    is_file_object,
    is_url,
    open_source,
    type_name,
)
from edgevlm.inputs.pixels import MAX_PIXELS, array_to_rgb

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "SupportsArray",
    "load_image",
    "load_image_part",
    "load_images",
    "read_image_size",
]


class SupportsArray(Protocol):
    """An object that numpy can convert to an array, such as a tensor."""

    def __array__(self) -> NDArray[Any]: ...


ImageSource: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | SupportsArray
)
"""One image, as one of these types:

- the path of a file, in which ``~`` is the home folder, a ``file://`` URL, or a data URI
  (``data:image/png;base64,...``);
- the bytes of a file, or a binary file object, which is read from its position to its end and stays open;
- a Pillow image;
- an array ``[height, width, 3]`` (RGB) or ``[height, width]`` (grey), or with an alpha channel after these:
  unsigned integers from 0 to the maximum of their type, or floats from 0 to 1. Objects that numpy can convert
  to an array, such as tensors, are supported, too.
"""


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Load an image.

    Returns:
        RGB, uint8 ``[height, width, 3]``, C-contiguous.

    Raises:
        ImageError: the file does not exist, is not an image, is truncated or empty, the image has more than
            `MAX_PIXELS` or values out of range, or the type or the shape of an array is not supported.
        MissingDependencyError: the file is HEIC, and pillow-heif is not installed.
    """
    if isinstance(source, Image.Image):
        return to_upright_rgb(source, "the Pillow image")
    if is_array(source):
        return array_to_rgb(_as_array(source))
    with open_source(source) as (file, name):
        return decode_image(file, name)


def load_images(sources: ImageSource | Iterable[ImageSource] | None) -> list[NDArray[np.uint8]]:
    """Load one image, the images of a list or another iterable, or none.

    Returns:
        RGB images, each uint8 ``[height, width, 3]``.

    Raises:
        ImageError: the images are in a mapping or a set, which have no order.
        ImageError, MissingDependencyError: as `load_image`.
    """
    if sources is None:
        return []
    if _is_single_image(sources):
        return [load_image(cast("ImageSource", sources))]
    if isinstance(sources, Mapping | Set):
        raise ImageError(
            f"images must be in a list, which has an order; is {type(sources).__name__}"
        )
    return [load_image(source) for source in cast("Iterable[ImageSource]", sources)]


def read_image_size(data: bytes) -> tuple[int, int]:
    """Return width and height of an image file, in pixels, before its EXIF orientation is applied.

    No pixel is decoded.

    Args:
        data: the bytes of the file.

    Raises:
        ImageError, MissingDependencyError: as `load_image`, except for errors in the pixels.
    """
    with open_source(data) as (file, name):
        return read_size(file, name)


def load_image_part(part: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Load the image of a content part, which has the keys that transformers defines.

    Args:
        part: has one of the keys ``image`` (any `ImageSource`), ``path``, ``url`` (a data URI or a
            ``file://`` URL) and ``base64`` (a file in base64, or a data URI).

    Returns:
        RGB, uint8 ``[height, width, 3]``, C-contiguous.

    Raises:
        PromptError: the part has none of these keys, or several.
        ImageError, MissingDependencyError: as `load_image`.
    """
    keys = [key for key in _KEYS if part.get(key) is not None]
    if len(keys) != 1:
        found = " and ".join(map(repr, keys)) or "none of them"
        raise PromptError(
            f"an image part needs its image under 'image', 'path', 'url' or 'base64', has {found}"
        )
    (key,) = keys
    source = part[key]
    if key == "base64" and isinstance(source, str | bytes):
        is_uri = isinstance(source, str) and is_data_uri(source)
        return load_image(source if is_uri else decode_base64(source))
    fits = {
        "image": True,
        "path": isinstance(source, str | os.PathLike),
        "url": isinstance(source, str) and is_url(source),
    }
    if not fits.get(key, False):
        given = shorten(source) if isinstance(source, str) else type_name(source)
        raise ImageError(f"'{key}' of an image part must be {_KEYS[key]}, is {given}")
    return load_image(source)


_KEYS = {
    "image": "any image source",
    "path": "the path of a file",
    "url": "a data URI or a file:// URL, as edgevlm fetches nothing",
    "base64": "a text in base64",
}


def _is_single_image(sources: object) -> bool:
    """Return False for an iterable of images."""
    if isinstance(sources, str | os.PathLike | Image.Image):
        return True
    if is_array(sources):
        # An array of one dimension may hold paths or other objects.
        kind = sources.dtype.kind if isinstance(sources, np.ndarray) else "O"
        return getattr(sources, "ndim", 0) != 1 or kind not in "OSTU"
    return is_bytes_like(sources) or is_file_object(sources) or not isinstance(sources, Iterable)


def is_array(source: object) -> bool:
    """Return True if numpy can convert this to an array; its scalars, also texts, are not arrays."""
    return not isinstance(source, np.generic) and (
        hasattr(source, "__array__") or hasattr(source, "__array_interface__")
    )


def _as_array(source: Any) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    try:
        return np.asarray(source)
    except Exception as error:  # any type: the object's conversion is not ours
        reason = " ".join(str(error).split())[:200]
        raise ImageError(
            f"the {type_name(source)} cannot be converted to an array: {reason}"
        ) from error
