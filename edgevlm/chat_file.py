"""Files of conversations: what `Chat.save` writes and `VLM.load_chat` reads.

A file is a ZIP archive without compression, which any program for archives opens. ``chat.json`` holds the
texts and describes the rest. Each tile is a PNG image. ``kv-cache-1.bin`` is a copy of the KV cache.

The comment at the end of the archive is the SHA-256 of everything before it. It is compared first, so nothing
of a damaged file reaches llama.cpp.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm.atomic_file import staged_file
from edgevlm.engine.kv_cache import CacheCopy, CacheKey, SpanKey
from edgevlm.errors import BundleError, ChatFileError
from edgevlm.inputs.image_processor import hash_pixels
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest.parsing import parse

VERSION = 1
"""Version of the format."""

HEADER_NAME = "chat.json"

MAX_FILE_BYTES = 8 * 2**30
"""Largest file."""

MAX_HEADER_BYTES = 64 * 2**20
"""Largest ``chat.json``; a context of 100,000 positions takes less than 2 MB."""

MAX_PIXELS = 2**28
"""Most pixels of all tiles together; they take three bytes each in memory."""

_DIGEST_LENGTH = 64
"""Characters of the comment."""

_DAMAGE = (
    *(ValueError, LookupError, RuntimeError, OSError, EOFError, SyntaxError),
    *(struct.error, zipfile.BadZipFile, zlib.error, Image.DecompressionBombError, BundleError),
)
"""What zipfile, json, Pillow and `parse` raise for content that does not follow the format."""


@dataclass(frozen=True)
class ModelFiles:
    """SHA-256 of the files of a loaded model."""

    bundle: str
    """Of the manifest, which holds those of all files of the bundle."""
    vision: str
    decoder: str


@dataclass(frozen=True)
class SavedImage:
    """The tiles of one image."""

    layout: Layout
    tiles: tuple[NDArray[np.uint8], ...]
    """RGB uint8 ``[height, width, 3]`` each."""


@dataclass(frozen=True)
class SavedTurn:
    """A question and its answer."""

    question: str
    answer: str
    images: tuple[SavedImage, ...]


@dataclass(frozen=True)
class SavedChat:
    """A conversation as a file holds it."""

    system: str | None
    overflow: Literal["error", "drop_images", "drop_turns"]
    turns: tuple[SavedTurn, ...]
    copies: tuple[CacheCopy, ...]
    """Copies of the KV cache, each of a prefix of the last one; none if it knew nothing of the conversation.
    """
    mismatch: str | None = None
    """Why this model cannot use the copies that the file has; None: it can, or there is none."""


@dataclass(frozen=True)
class _Tile:
    height: int
    width: int
    key: str


@dataclass(frozen=True)
class _Image:
    layout: Layout
    tiles: tuple[_Tile, ...]


@dataclass(frozen=True)
class _Turn:
    question: str
    answer: str
    images: tuple[_Image, ...]


@dataclass(frozen=True)
class _Span:
    key: str
    length: int
    positions: int


@dataclass(frozen=True)
class _Cache:
    format: str
    """As `DecoderRuntime.copy_format`."""
    vision: str
    decoder: str
    tokens: tuple[int, ...]
    """Token ids of the conversation; -1 stands for the next of `spans`."""
    spans: tuple[_Span, ...]
    copies: tuple[int, ...]
    """Number of items, tokens and spans, that each copy holds."""


@dataclass(frozen=True)
class _Header:
    """Content of ``chat.json``."""

    format: Literal["edgevlm-chat"]
    version: int
    bundle: str
    system: str | None
    overflow: Literal["error", "drop_images", "drop_turns"]
    turns: tuple[_Turn, ...]
    cache: _Cache | None


def write_chat(path: Path, chat: SavedChat, files: ModelFiles, copy_format: str) -> None:
    """Write a conversation. An existing file is replaced, once the new one is complete.

    Args:
        files: the files of its model.
        copy_format: as `DecoderRuntime.copy_format`.

    Raises:
        ChatFileError: the file cannot be written, or is larger than `read_chat` reads.
    """
    tiles = [tile for turn in chat.turns for image in turn.images for tile in image.tiles]
    header = _Header(
        "edgevlm-chat",
        VERSION,
        files.bundle,
        chat.system,
        chat.overflow,
        tuple(_describe_turn(turn) for turn in chat.turns),
        _describe_cache(chat.copies, files, copy_format) if chat.copies else None,
    )
    data = json.dumps(dataclasses.asdict(header)).encode()
    pixels = sum(tile.shape[0] * tile.shape[1] for tile in tiles)
    size = len(data) + 3 * pixels + sum(copy.data.nbytes for copy in chat.copies)
    if pixels > MAX_PIXELS or len(data) > MAX_HEADER_BYTES or 1.1 * size > MAX_FILE_BYTES:
        raise ChatFileError(
            f"this conversation is too large for a file: {pixels / 1e6:,.0f} million pixels and "
            f"{size / 1e9:.1f} GB; start a new one"
        )
    try:
        with staged_file(path) as temporary, temporary.open("w+b") as file:
            with zipfile.ZipFile(file, "w") as archive:
                archive.comment = b"0" * _DIGEST_LENGTH
                archive.writestr(zipfile.ZipInfo(HEADER_NAME), data)
                for name, tile in zip(_tile_names(header.turns), tiles, strict=True):
                    archive.writestr(zipfile.ZipInfo(name), _to_png(tile))
                for name, copy in zip(_copy_names(header.cache), chat.copies, strict=True):
                    archive.writestr(zipfile.ZipInfo(name), copy.data.data)
            length = file.seek(0, os.SEEK_END) - _DIGEST_LENGTH
            digest = _digest(file, length)
            file.seek(length)
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())  # before the new name stands for it
    except OSError as error:
        raise ChatFileError(f"cannot write {path}: {error}") from error


def read_chat(path: Path, files: ModelFiles, copy_format: str) -> SavedChat:
    """Read a conversation.

    Args:
        files: the files of the model that is to continue it.
        copy_format: as `DecoderRuntime.copy_format`.

    Raises:
        ChatFileError: there is no such file, it is damaged or no file of a conversation, or it belongs to
            another bundle.
    """
    try:
        with path.open("rb") as file:
            _check_digest(file, path)
            try:
                with zipfile.ZipFile(file) as archive:
                    return _read_archive(archive, path, files, copy_format)
            except ChatFileError:
                raise
            except _DAMAGE as error:
                raise ChatFileError(f"{path} was changed, and cannot be read: {error}") from error
    except OSError as error:
        raise ChatFileError(f"cannot read {path}: {error}") from error


def _check_digest(file: BinaryIO, path: Path) -> None:
    length = file.seek(0, os.SEEK_END) - _DIGEST_LENGTH
    if length > MAX_FILE_BYTES:
        raise ChatFileError(
            f"{path} has {length / 1e9:.1f} GB; conversations of up to {MAX_FILE_BYTES / 1e9:.1f} GB are read"
        )
    expected = b""
    if length > 0:
        file.seek(length)
        expected = file.read()
    if not expected or _digest(file, length) != expected:
        raise ChatFileError(
            f"{path} is damaged, cut off, or no conversation that edgevlm saved: it does not end with its "
            f"checksum"
        )


def _digest(file: BinaryIO, length: int) -> bytes:
    """Return the SHA-256 of the first `length` bytes as hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while length and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()


def _read_archive(
    archive: zipfile.ZipFile, path: Path, files: ModelFiles, copy_format: str
) -> SavedChat:
    members = {info.filename: info for info in archive.infolist()}
    for info in members.values():
        stored = info.compress_type == zipfile.ZIP_STORED and info.compress_size == info.file_size
        if not stored or info.file_size > MAX_FILE_BYTES:
            raise ChatFileError(f"{path} is compressed; load the file that edgevlm saved")
    if HEADER_NAME not in members or members[HEADER_NAME].file_size > MAX_HEADER_BYTES:
        raise ChatFileError(f"{path} has no {HEADER_NAME}, or a very large one")
    data = _parse_json(archive.read(HEADER_NAME))
    version = data.get("version")
    if version != VERSION:
        raise ChatFileError(
            f"{path} has version {version!r} of the format, this edgevlm reads version {VERSION}; "
            f"install the version of edgevlm that saved it"
        )
    header: _Header = parse(_Header, data, HEADER_NAME)
    names = [*_tile_names(header.turns), *_copy_names(header.cache)]
    if sorted(members) != sorted([HEADER_NAME, *names]) or len(members) != len(archive.infolist()):
        raise ChatFileError(f"{path} has other members than its {HEADER_NAME} says")
    if header.bundle != files.bundle:
        raise ChatFileError(
            f"{path} belongs to another bundle: the SHA-256 of its manifest is {header.bundle}, that of the "
            f"loaded bundle is {files.bundle}; load the bundle that the conversation was held with"
        )
    tiles = [tile for turn in header.turns for image in turn.images for tile in image.tiles]
    if sum(max(0, tile.height) * max(0, tile.width) for tile in tiles) > MAX_PIXELS:
        raise ChatFileError(
            f"{path} has images of more than {MAX_PIXELS / 1e6:,.0f} million pixels"
        )
    pixels = iter(
        [
            _read_tile(archive, name, tile)
            for name, tile in zip(_tile_names(header.turns), tiles, strict=True)
        ]
    )
    turns = tuple(
        SavedTurn(
            turn.question,
            turn.answer,
            tuple(
                SavedImage(image.layout, tuple(next(pixels) for _ in image.tiles))
                for image in turn.images
            ),
        )
        for turn in header.turns
    )
    mismatch = None if header.cache is None else _find_mismatch(header.cache, files, copy_format)
    copies: tuple[CacheCopy, ...] = ()
    if header.cache is not None and mismatch is None:
        items = _read_items(header.cache)
        copies = tuple(
            CacheCopy(items[:count], _read_array(archive, members[name]))
            for name, count in zip(_copy_names(header.cache), header.cache.copies, strict=True)
        )
    return SavedChat(header.system, header.overflow, turns, copies, mismatch)


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"{HEADER_NAME} is no JSON object")
    return found


def _find_mismatch(cache: _Cache, files: ModelFiles, copy_format: str) -> str | None:
    """Return why a copy of the KV cache cannot be used; None: it can."""
    if (cache.vision, cache.decoder) != (files.vision, files.decoder):
        return "the model is loaded in another precision"
    if cache.format != copy_format:
        return f"it was made with {cache.format}, and this decoder has {copy_format}"
    return None


def _read_tile(archive: zipfile.ZipFile, name: str, tile: _Tile) -> NDArray[np.uint8]:
    """Read a tile. Its size is compared before it is decompressed."""
    with Image.open(io.BytesIO(archive.read(name)), formats=["PNG"]) as image:
        if image.size != (tile.width, tile.height) or image.mode != "RGB":
            raise ValueError(f"{name} has another size or mode than {HEADER_NAME} says")
        pixels = np.array(image)
    if hash_pixels(pixels).hex() != tile.key:
        raise ValueError(f"{name} has other pixels than {HEADER_NAME} says")
    return pixels


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[np.uint8]:
    array = np.empty(member.file_size, np.uint8)
    with archive.open(member) as file:
        for first in range(0, len(array), 1 << 20):
            part = array[first : first + (1 << 20)]
            part[:] = np.frombuffer(file.read(len(part)), np.uint8)
    return array


def _read_items(cache: _Cache) -> tuple[CacheKey, ...]:
    spans = iter(cache.spans)
    items: list[CacheKey] = []
    for token in cache.tokens:
        if token == -1:
            span = next(spans, None)
            if span is None or min(span.length, span.positions) < 1:
                raise ValueError(f"the spans in {HEADER_NAME} do not fit its tokens")
            items.append(SpanKey(bytes.fromhex(span.key), span.length, span.positions))
        else:
            items.append(token)
    return tuple(items)


def _describe_turn(turn: SavedTurn) -> _Turn:
    images = tuple(
        _Image(
            image.layout,
            tuple(
                _Tile(tile.shape[0], tile.shape[1], hash_pixels(tile).hex()) for tile in image.tiles
            ),
        )
        for image in turn.images
    )
    return _Turn(turn.question, turn.answer, images)


def _describe_cache(copies: Sequence[CacheCopy], files: ModelFiles, copy_format: str) -> _Cache:
    items = copies[-1].items
    return _Cache(
        copy_format,
        files.vision,
        files.decoder,
        tuple(-1 if isinstance(item, SpanKey) else item for item in items),
        tuple(
            _Span(item.key.hex(), item.length, item.positions)
            for item in items
            if isinstance(item, SpanKey)
        ),
        tuple(len(copy.items) for copy in copies),
    )


def _tile_names(turns: Sequence[_Turn]) -> list[str]:
    """Return the names of all tiles in order, such as ``image-1/tile-2.png``."""
    images = [image for turn in turns for image in turn.images]
    return [
        f"image-{number}/tile-{tile}.png"
        for number, image in enumerate(images, 1)
        for tile in range(1, len(image.tiles) + 1)
    ]


def _copy_names(cache: _Cache | None) -> list[str]:
    """Return the names of the copies of the KV cache, the shortest first."""
    count = 0 if cache is None else len(cache.copies)
    return [f"kv-cache-{number}.bin" for number in range(1, count + 1)]


def _to_png(tile: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
