"""Any image that a caller may have, as an RGB uint8 array.

`ImageSource` says what that is; every place that takes an image takes all of it. The conversion to RGB is
transformers' (5.24, ``image_transforms.convert_to_rgb``): what is transparent is laid on white, every other
mode of 8 bits goes through Pillow's ``convert("RGB")``. Deeper integers are scaled from the whole range of
their type, floats from 0 to 1 (`edgevlm.inputs.pixels` has the rule). EXIF orientation is applied. Nothing is
fetched from a network.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Set
from typing import IO, Any, Protocol, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError, PromptError
from edgevlm.inputs.data_uri import decode_base64, is_data_uri, shortened
from edgevlm.inputs.image_files import decode, stored_size, upright_rgb
from edgevlm.inputs.image_sources import holds_bytes, is_file, is_url, opened, type_name
from edgevlm.inputs.pixels import MAX_PIXELS, array_to_rgb

__all__ = [
    "MAX_PIXELS",
    "ImageSource",
    "SupportsArray",
    "image_of_part",
    "load_image",
    "load_images",
    "stored_image_size",
]


class SupportsArray(Protocol):
    """What numpy makes an array of, such as a tensor."""

    def __array__(self) -> NDArray[Any]: ...


ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | Image.Image "
    "| SupportsArray"
)
"""One of

- a file's path, in which ``~`` is the home folder, a ``file://`` URL, or a data URI
  (``data:image/png;base64,...``);
- a file's bytes, or a binary file object, which is read from its position to its end and left open;
- a Pillow image;
- an array ``[height, width, 3]``, RGB, or ``[height, width]``, grey, or with an alpha channel after these;
  unsigned integers from 0 to the greatest of their type, or floats from 0 to 1. What numpy makes an array
  of, such as a tensor, is one, too.
"""


def load_image(source: ImageSource) -> NDArray[np.uint8]:
    """Read an image.

    Returns:
        uint8 ``[height, width, 3]``, RGB, C-contiguous.

    Raises:
        ImageError: no such file, not an image, truncated, empty, more than `MAX_PIXELS`, values out of
            range, or a type or array shape that is not an `ImageSource`.
        MissingDependencyError: a HEIC file without pillow-heif.
    """
    if isinstance(source, Image.Image):
        return upright_rgb(source, "the Pillow image")
    if _is_array(source):
        return array_to_rgb(_as_array(source))
    with opened(source) as (file, name):
        return decode(file, name)


def load_images(sources: ImageSource | Iterable[ImageSource] | None) -> list[NDArray[np.uint8]]:
    """`load_image` of one image, of each of several in a list or another iterable, or of none."""
    if sources is None:
        return []
    if _is_one(sources):
        return [load_image(cast("ImageSource", sources))]
    if isinstance(sources, Mapping | Set):
        raise ImageError(f"images must come in order, in a list; is {type(sources).__name__}")
    return [load_image(source) for source in cast("Iterable[ImageSource]", sources)]


def stored_image_size(data: bytes) -> tuple[int, int]:
    """Width and height that an image file has before its orientation is applied; no pixel is decoded.

    Raises:
        ImageError, MissingDependencyError: as `load_image`, as far as the pixels do not matter.
    """
    with opened(data) as (file, name):
        return stored_size(file, name)


def image_of_part(part: Mapping[str, Any]) -> NDArray[np.uint8]:
    """The image of a message's part, as transformers spells it.

    Args:
        part: has one of the keys ``image`` (any `ImageSource`), ``path``, ``url`` (a data URI or a
            ``file://`` URL) and ``base64`` (a file in base64, or a data URI).

    Raises:
        PromptError: none of these keys, or several.
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
        given = shortened(source) if isinstance(source, str) else type_name(source)
        raise ImageError(f"'{key}' of an image part must be {_KEYS[key]}, is {given}")
    return load_image(source)


_KEYS = {
    "image": "any image source",
    "path": "the path of a file",
    "url": "a data URI or a file:// URL, as edgevlm fetches nothing",
    "base64": "a text in base64",
}


def _is_one(sources: object) -> bool:
    """Whether this is a single image, or what can only be refused as one, rather than several."""
    if isinstance(sources, str | os.PathLike | Image.Image):
        return True
    if _is_array(sources):
        # One dimension may be a column of paths, or an array of objects.
        kind = sources.dtype.kind if isinstance(sources, np.ndarray) else "O"
        return getattr(sources, "ndim", 0) != 1 or kind not in "OSTU"
    return holds_bytes(sources) or is_file(sources) or not isinstance(sources, Iterable)


def _is_array(source: object) -> bool:
    """Whether numpy makes an array of this; its scalars, texts among them, are none."""
    return not isinstance(source, np.generic) and (
        hasattr(source, "__array__") or hasattr(source, "__array_interface__")
    )


def _as_array(source: Any) -> NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    try:
        return np.asarray(source)
    except Exception as error:  # whatever the object's own conversion raises
        reason = " ".join(str(error).split())[:200]
        raise ImageError(f"the {type_name(source)} cannot become an array: {reason}") from error
