"""Writers of image files, also of kinds that Pillow does not write."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

PNG = b"\x89PNG\r\n\x1a\n"
_KINDS = {1: "B", 3: "H", 4: "I", 5: "2I"}
"""Struct codes of TIFF's types: byte, short, long, rational."""


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    values: NDArray[Any], *, before: Sequence[bytes] = (), after: Sequence[bytes] = ()
) -> bytes:
    """Return a PNG of uint8 or uint16 ``[height, width]`` or ``[height, width, 2, 3 or 4]``.

    Args:
        before, after: further chunks before and after the pixels.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    depth, color = 8 * values.dtype.itemsize, {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = values.astype(values.dtype.newbyteorder(">")).reshape(height, -1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"".join([PNG, header, *before, chunk(b"IDAT", packed), *after, chunk(b"IEND", b"")])


def tiff(
    values: NDArray[Any],
    *,
    order: Literal["<", ">"] = "<",
    photometric: int | None = None,
    more: Sequence[tuple[int, int, int, int]] = (),
    pixels: bytes | None = None,
    bits: int | None = None,
) -> bytes:
    """Return an uncompressed TIFF of ``[height, width]`` or ``[height, width, channels]``.

    Args:
        order: byte order of all numbers, ``<`` or ``>``.
        photometric: 0 if white is 0, 1 if black is 0, 2 for RGB; None: 1 or 2, by the channels.
        more: further tags: tag, type, count, and the four bytes of the value as a number.
        pixels, bits: data and bits of a sample, instead of those of `values`.
    """
    height, width = values.shape[:2]
    channels = values.shape[2] if values.ndim == 3 else 1
    if pixels is None:
        pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    each = bits or 8 * values.dtype.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    if photometric is None:
        photometric = 1 if channels == 1 else 2
    at = 8 + len(pixels)
    depths = struct.pack(f"{order}{channels}H", *[each] * channels)
    kinds = struct.pack(f"{order}{channels}H", *[kind] * channels)
    outside = b""

    def placed(data: bytes) -> bytes:
        """Return a value of up to four bytes, or the offset of a longer one."""
        nonlocal outside
        if len(data) <= 4:
            return data.ljust(4, b"\0")
        outside += data
        return struct.pack(order + "I", at + len(outside) - len(data))

    def number(kind: int, value: int) -> bytes:
        return placed(struct.pack(order + _KINDS[kind], value))

    entries = [
        (256, 4, 1, number(4, width)),
        (257, 4, 1, number(4, height)),
        (258, 3, channels, placed(depths)),
        (259, 3, 1, number(3, 1)),
        (262, 3, 1, number(3, photometric)),
        (273, 4, 1, number(4, 8)),
        (277, 3, 1, number(3, channels)),
        (278, 4, 1, number(4, height)),
        (279, 4, 1, number(4, len(pixels))),
        (339, 3, channels, placed(kinds)),
        *[(tag, kind, count, struct.pack(order + "I", value)) for tag, kind, count, value in more],
    ]
    if channels == 4:
        entries.append((338, 3, 1, number(3, 2)))
    directory = struct.pack(order + "H", len(entries))
    for tag, tag_kind, count, value in sorted(entries):
        directory += struct.pack(order + "HHI", tag, tag_kind, count) + value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    start = struct.pack(order + "I", at + len(outside))
    return mark + start + pixels + outside + directory + bytes(4)


def pgm(values: NDArray[Any], greatest: int, *, plain: bool = False) -> bytes:
    """Return a portable grey map of ``[height, width]`` in which `greatest` is white."""
    height, width = values.shape
    header = f"P{2 if plain else 5} {width} {height} {greatest}\n".encode()
    if plain:
        return header + " ".join(map(str, values.ravel().tolist())).encode()
    return header + values.astype(">u2" if greatest > 255 else "u1").tobytes()


def orientation_block(
    orientation: int, *more: tuple[int, int, int, int], order: str = ">"
) -> bytes:
    """Return an EXIF block without the prefix ``Exif``; `more` is that of `tiff`."""
    entries = sorted([(0x0112, 3, 1, orientation << 16 if order == ">" else orientation), *more])
    packed = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    mark = b"MM\0*" if order == ">" else b"II*\0"
    return mark + struct.pack(order + "IH", 8, len(entries)) + packed + bytes(4)


def segment(marker: int, data: bytes) -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def gradient(dtype: Any, *channels: int) -> NDArray[Any]:
    """Return ``[7, 9]`` or ``[7, 9, channels]``, from 0 to the maximum of an unsigned type."""
    count, greatest = 63 * int(np.prod(channels)), int(np.iinfo(dtype).max)
    values = [index * greatest // (count - 1) for index in range(count)]
    return np.array(values, dtype).reshape(7, 9, *channels)
