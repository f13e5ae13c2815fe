"""Convert pixel values of any depth to 8-bit RGB.

The value of white depends on the type alone, never on the values, so that frames of a camera stay comparable:

- Unsigned integers go from black (0) to white (the maximum of their type). Their 8 highest bits are kept
  (``value >> 8`` for 16 bits), as Pillow and libpng do for 16-bit color. True is white.
- Floats go from black (0) to white (1): ``round(255 * value)``.
- All others (signed integers, floats outside 0 to 1 or not finite) are refused with the range found.

Pillow opens some 16-bit files in its 32-bit mode I. If no file tells the number of bits, mode I counts as
16 bits if a value is above 255. Otherwise it is refused, since it may also be 8 bits.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError

MAX_PIXELS = 89_478_485
"""Limit of pixels in one image, checked before decoding; Pillow's own limit for decompression bombs."""
MAX_SIDE = 1 << 20
"""Limit of pixels along one side. Pillow's tables for a resize take tens of bytes for each of them."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
"""Values of the last two tags."""


def check_size(width: int, height: int, name: str) -> None:
    """Check the size of an image, in pixels.

    Raises:
        ImageError: there are no pixels, more than `MAX_PIXELS`, or more than `MAX_SIDE` along one side.
    """
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels, which is empty")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; "
            f"make it smaller first"
        )
    if max(width, height) > MAX_SIDE:
        raise ImageError(
            f"{name} is {width} x {height} pixels; a side may have {MAX_SIDE:,} pixels, make it smaller first"
        )


def array_to_rgb(values: NDArray[Any], name: str = "the array") -> NDArray[np.uint8]:
    """Convert an array to RGB, uint8 ``[height, width, 3]``, C-contiguous.

    Args:
        values: ``[height, width]`` or ``[height, width, channels]``. 1 channel is grey, 2 are grey and
            alpha, 3 are RGB, 4 are RGBA. Transparent pixels are put on white.
        name: the name of the array in error messages.

    Raises:
        ImageError: the shape or type is not supported, or values are out of range or masked.
    """
    if np.ma.is_masked(values):
        raise ImageError(f"{name} has masked pixels; fill them first: array.filled(0)")
    values = np.asarray(values)
    _check_shape(values, name)
    check_size(values.shape[1], values.shape[0], name)
    pixels = to_eight_bits(values, name)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels == 3:
        return np.ascontiguousarray(pixels)
    if channels == 1:
        return np.repeat(pixels.reshape(*pixels.shape[:2], 1), 3, axis=2)
    return np.array(image_to_rgb(Image.fromarray(np.ascontiguousarray(pixels)), name))


def _check_shape(values: NDArray[Any], name: str) -> None:
    shape = list(values.shape)
    if values.ndim in (2, 3) and (values.ndim == 2 or shape[2] in (1, 2, 3, 4)):
        return
    found = f"{name} is {values.dtype} {_format_shape(shape)}"
    if values.ndim == 3 and shape[0] in (1, 3, 4):
        raise ImageError(
            f"{found}, channels first; it must be [height, width, channels]: array.transpose(1, 2, 0)"
        )
    if values.ndim == 4:
        raise ImageError(f"{found}, a batch; pass its images as a list: list(array)")
    if values.dtype == np.uint8 and values.size == max(shape, default=0) > 0:
        raise ImageError(f"{found}; if it holds an image file, pass its bytes: array.tobytes()")
    raise ImageError(f"{found}; it must be [height, width] or [height, width, 1, 3 or 4]")


def _format_shape(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} dimensions"


def to_eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Scale values from the range of their type to 0 to 255; the shape stays the same.

    Raises:
        ImageError: the type is not supported, or floats are outside 0 to 1.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return cast("NDArray[np.uint8]", values)
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "u":
        return (values >> (8 * values.dtype.itemsize - 8)).astype(np.uint8)
    if kind == "f":
        if not (values.min() >= 0 and values.max() <= 1):  # neither is true of NaN
            raise ImageError(
                f"{name} is {values.dtype}{_describe_range(values)}; floats must be from 0 (black) to 1 "
                f"(white): scale them first"
            )
        if values.dtype == np.float16:
            values = values.astype(np.float32)  # float16 has no exact value for every step
        pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
        return pixels
    raise ImageError(
        f"{name} is {values.dtype}{_describe_range(values)}; integers must be unsigned, such as uint8 and "
        f"uint16, and floats from 0 to 1: convert them first"
    )


def _describe_range(values: NDArray[Any]) -> str:
    """Return the minimum and maximum of values for messages."""
    if values.dtype.kind not in "if":
        return ""
    finite = values[np.isfinite(values)]
    found = f" from {finite.min():g} to {finite.max():g}" if finite.size else ""
    others = "" if finite.size == values.size else " not finite"
    return f" with values{found}{' and' if found and others else ''}{others}"


def image_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Convert a Pillow image with loaded pixels to mode RGB.

    For modes of 8 bits this is transformers' ``convert_to_rgb``: transparent pixels are put on white, and
    the rest is Pillow's ``convert("RGB")``.

    Args:
        image: the image; its pixels are loaded.
        name: the name of the image in error messages.

    Raises:
        ImageError: values are out of range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_deep_grey_to_8_bits(image, name)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _deep_grey_to_8_bits(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """Scale an image with one channel of more than 8 bits to ``[height, width]``."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, *_ = tags.get(_BITS_PER_SAMPLE, (16,))
    if image.mode == "I":
        values = _mode_i_values(values, image.format, tags, name)
    elif image.mode != "F" and bits < 16:  # a TIFF of 12 bits
        values = values << (16 - bits)
    pixels = to_eight_bits(values, name)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return pixels


def _mode_i_values(
    values: NDArray[Any], file_format: str | None, tags: Any, name: str
) -> NDArray[np.generic]:
    """Convert the int32 values of Pillow's mode I to the type that the file really has."""
    if file_format in ("PNG", "PPM"):
        return values.astype(np.uint16)
    if tags:
        unsigned = tags.get(_SAMPLE_FORMAT, (_UNSIGNED,))[0] == _UNSIGNED
        return values.view(np.uint32) if unsigned else values
    least, greatest = int(values.min()), int(values.max())
    if least >= 0 and 0 < greatest <= 255:
        raise ImageError(
            f"{name} is of mode I with values from {least} to {greatest}, which does not say whether white "
            f"is 255 or 65535; convert it to mode L or I;16 first"
        )
    return values.astype(np.uint16) if least >= 0 and greatest < 2**16 else values
