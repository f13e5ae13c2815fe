"""Image files without what they say about the image: text, color profiles, thumbnails, resolution.

Pillow reads these when it opens a file, and refuses the whole file if one of them is broken.
"""

from __future__ import annotations

import re
import struct

_PNG = b"\x89PNG\r\n\x1a\n"
_TIFF_TAGS = {
    *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320),
    *(322, 323, 324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
"""What decoding needs."""
_ORIENTATION = 274
_EXIF_ITEM = re.compile(rb"(infe.{8})Exif", re.DOTALL)
"""An entry of ISO base media's list of items: version, flags, number, protection and type."""


def without_metadata(data: bytes) -> tuple[bytes, bytes] | None:
    """The same image without metadata, and its EXIF block as it was, which may be empty.

    None for a format that is not known, and for what is not even a sequence of chunks.
    """
    try:
        if data.startswith(_PNG):
            return _png(data)
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith((b"II*\0", b"MM\0*")):
            return _tiff(data), b""
    except (struct.error, IndexError):
        return None
    if data[4:8] == b"ftyp":  # its orientation stands elsewhere
        return _EXIF_ITEM.sub(rb"\1free", data, count=1), b""
    return None


def _png(data: bytes) -> tuple[bytes, bytes]:
    """Critical chunks, whose names are capitalized, and transparency."""
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


def _jpeg(data: bytes) -> tuple[bytes, bytes]:
    """All but application segments and comments; JFIF's and Adobe's say how colors are stored."""
    kept, exif, at = [data[:2]], b"", 2
    while data[at + 1] != 0xDA:  # there the pixels begin
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


def _tiff(data: bytes) -> bytes:
    """The first image's directory, with the tags that decoding needs, and the orientation, alone."""
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
