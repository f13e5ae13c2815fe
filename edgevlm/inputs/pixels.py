"""Pixel values of any depth as 8-bit RGB.

What white is follows from the type alone, never from the values, so that frames of a camera stay comparable:

- unsigned integers, of arrays and of files, go from black at 0 to white at the greatest value of their type;
  their 8 highest bits are kept (``value >> 8`` of 16 bits), as Pillow and libpng do for 16-bit color. True is
  white;
- floats go from 0, black, to 1, white: ``round(255 * value)``;
- all others (signed integers, floats outside of 0 to 1 or not finite) are refused with the range found.

Pillow hands out some 16-bit files in its 32-bit mode I. Where no file says how many bits there are, mode I
stands for 16 if a value is above 255, and is refused if none is, since that may mean 8 bits as well.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.errors import ImageError

MAX_PIXELS = 89_478_485
"""Larger images are refused before they are decoded; Pillow's own limit for decompression bombs."""

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
"""Tags of TIFF."""
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def check_size(width: int, height: int, name: str) -> None:
    """Raises ImageError for no pixels, and for more than `MAX_PIXELS`."""
    if width < 1 or height < 1:
        raise ImageError(f"{name} is {width} x {height} pixels, which is empty")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width} x {height} pixels, more than the {MAX_PIXELS:,} that are accepted; "
            f"make it smaller first"
        )


def array_to_rgb(values: NDArray[Any], name: str = "the array") -> NDArray[np.uint8]:
    """An array as uint8 ``[height, width, 3]``, RGB, C-contiguous.

    Args:
        values: ``[height, width]`` or ``[height, width, channels]``: 1 channel is grey, 2 are grey and
            alpha, 3 are RGB, 4 are RGBA. Transparent pixels are laid on white.

    Raises:
        ImageError: another shape or type, values out of range, or masked ones.
    """
    if np.ma.is_masked(values):
        raise ImageError(f"{name} has masked pixels; fill them first: array.filled(0)")
    values = np.asarray(values)
    _check_shape(values, name)
    check_size(values.shape[1], values.shape[0], name)
    pixels = eight_bits(values, name)
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
    found = f"{name} is {values.dtype} {_short(shape)}"
    if values.ndim == 3 and shape[0] in (1, 3, 4):
        raise ImageError(
            f"{found}, channels first; it must be [height, width, channels]: array.transpose(1, 2, 0)"
        )
    if values.ndim == 4:
        raise ImageError(f"{found}, a batch; pass its images as a list: list(array)")
    if values.dtype == np.uint8 and values.size == max(shape, default=0) > 0:
        raise ImageError(f"{found}; if it holds an image file, pass its bytes: array.tobytes()")
    raise ImageError(f"{found}; it must be [height, width] or [height, width, 1, 3 or 4]")


def _short(shape: list[int]) -> str:
    return str(shape) if len(shape) <= 8 else f"of {len(shape)} dimensions"


def eight_bits(values: NDArray[Any], name: str) -> NDArray[np.uint8]:
    """Values of the same shape, scaled from the range of their type to 0 to 255.

    Raises:
        ImageError: a type without such a range, or floats outside of it; with the range found.
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
                f"{name} is {values.dtype}{_range(values)}; floats must be from 0 (black) to 1 (white): "
                f"scale them first"
            )
        if values.dtype == np.float16:
            values = values.astype(np.float32)  # 255 values of float16 are not whole steps
        pixels: NDArray[np.uint8] = np.rint(values * 255).astype(np.uint8)
        return pixels
    raise ImageError(
        f"{name} is {values.dtype}{_range(values)}; integers must be unsigned, such as uint8 and uint16, "
        f"and floats from 0 to 1: convert them first"
    )


def _range(values: NDArray[Any]) -> str:
    """The least and the greatest value, for messages."""
    if values.dtype.kind not in "if":
        return ""
    finite = values[np.isfinite(values)]
    found = f" from {finite.min():g} to {finite.max():g}" if finite.size else ""
    others = "" if finite.size == values.size else " not finite"
    return f" with values{found}{' and' if found and others else ''}{others}"


def image_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A Pillow image, whose pixels are loaded, in mode RGB.

    For modes of 8 bits this is transformers' ``convert_to_rgb``: what is transparent is laid on white, the
    rest is Pillow's ``convert("RGB")``.

    Raises:
        ImageError: values out of range.
    """
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_grey(image, name)).convert("RGB")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, layer)
    return image.convert("RGB")


def _grey(image: Image.Image, name: str) -> NDArray[np.uint8]:
    """``[height, width]`` of an image with one channel of more than 8 bits."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    bits, *_ = tags.get(_BITS_PER_SAMPLE, (16,))
    if image.mode == "I":
        values = _mode_i(values, image.format, tags, name)
    elif image.mode != "F" and bits < 16:  # a TIFF of 12 bits
        values = values << (16 - bits)
    pixels = eight_bits(values, name)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        pixels = 255 - pixels
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        pixels[values == transparent] = 255
    return pixels


def _mode_i(
    values: NDArray[Any], file_format: str | None, tags: Any, name: str
) -> NDArray[np.generic]:
    """The values of Pillow's mode I, int32, in the type that they stand for."""
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
