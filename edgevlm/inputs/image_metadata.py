"""Remove metadata from image files: text, color profiles, thumbnails, resolution.

Pillow reads metadata when it opens a file, and refuses the whole file if some of it is broken.
"""

from __future__ import annotations

import re
import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
"""Tags that the decoder needs."""
_ORIENTATION = 274
"""Tag of EXIF's orientation."""
_EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)
"""An entry in the list of items of an ISO base media file: version, flags, number, protection and type."""


def strip_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """Remove the metadata of an image file.

    Returns:
        The file without metadata, and its EXIF block, which may be empty. None if the format is not known,
        or if the file is not even a sequence of chunks.
    """
    try:
        if data.startswith(_PNG):
            return _strip_png(data)
        if data.startswith(b"\xff\xd8"):
            return _strip_jpeg(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _strip_tiff(data), b""
    except (struct.error, IndexError):
        return None
    if data[4:8] == b"ftyp":  # the orientation is not in the EXIF item
        return _EXIF_ITEM.sub(rb"\1free", data, count=1), b""
    return None


def _strip_png(data: bytes) -> tuple[bytes, bytes]:
    """Keep the critical chunks, whose names begin with a capital letter, and transparency."""
    kept, exif, at = [_PNG], b"", len(_PNG)
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if name == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif name[:1].isupper() or name == b"tRNS":
            kept.append(data[at:end])
        at = end
        if name == b"IEND":
            break
    return b"".join(kept), exif


def _strip_jpeg(data: bytes) -> tuple[bytes, bytes]:
    """Remove application segments and comments, but keep JFIF's and Adobe's, which define the colors."""
    kept, exif, at = [data[:2]], b"", 2
    while data[at + 1] != 0xDA:  # start of the pixels
        if data[at] != 0xFF:
            raise struct.error("no marker")
        if data[at + 1] == 0xFF:  # padding
            at += 1
            continue
        marker = data[at + 1]
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        body = segment[4:]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            exif = exif + body[6:] if exif else body
        whole = (marker == 0xE0 and length >= 16) or (marker == 0xEE and length >= 14)
        if whole or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(segment)
        at += 2 + length
    return b"".join([*kept, data[at:]]), exif


def _strip_tiff(data: bytes) -> bytes:
    """Keep the directory of the first image alone, with `_TIFF_TAGS` and the orientation."""
    order = "<" if data.startswith(b"II") else ">"
    (at,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, at)
    entries = [data[at + 2 + 12 * index :][:12] for index in range(count)]
    kept = []
    for entry in entries:
        tag, kind, values = struct.unpack_from(order + "HHI", entry)
        orientation = (tag, values) == (_ORIENTATION, 1) and kind in (3, 4)  # a short or a long
        if tag in _TIFF_TAGS or orientation:
            kept.append(entry)
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)
    return data[:4] + struct.pack(order + "I", len(data)) + data[8:] + directory
