"""Conversations as JSON files with their images.

::

    {"format": "edgevlm conversation", "version": 1, "title": "...", "turns": [
        {"role": "user", "content": [{"image": "<base64 of a file>"}, {"text": "..."}]},
        {"role": "assistant", "content": [{"text": "..."}]}]}
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.demo import conversation
from edgevlm.demo.conversation import Turn
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.inputs.data_uri import decode_base64, shorten
from edgevlm.inputs.images import load_image

FORMAT = "edgevlm conversation"
VERSION = 1

MAX_BYTES = 512 * 2**20
"""Limit of a file."""

MAX_TURNS = 2000
"""Limit of turns in a file; far more than any context holds."""

ROLES = ("user", "assistant")

SUFFIXES = {
    "AVIF": ".avif",
    "BMP": ".bmp",
    "GIF": ".gif",
    "HEIF": ".heic",
    "JPEG": ".jpg",
    "MPO": ".jpg",
    "PNG": ".png",
    "TIFF": ".tif",
    "WEBP": ".webp",
}
"""Suffixes of image formats, by Pillow's names. Browsers need the right suffix."""


def as_json(title: str, turns: Sequence[Turn]) -> str:
    """Return a conversation as a file for `from_json`.

    Raises:
        InputError: an image no longer exists, or there are more than `MAX_TURNS` turns.
    """
    if len(turns) > MAX_TURNS:
        raise InputError(
            f"a file holds at most {MAX_TURNS:,} turns, this conversation has {len(turns):,}"
        )
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "title": title,
            "turns": [
                {
                    "role": turn["role"],
                    "content": [_encode(kind, part) for kind, part in conversation.parts(turn)],
                }
                for turn in turns
            ],
        },
        ensure_ascii=False,
        indent=1,
    )


def from_json(path: Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Read the title and the turns of a file that `as_json` wrote.

    Args:
        path: path of the file.
        folder: folder for the images; each is written into a folder named by its hash.

    Raises:
        InputError: the file is too large or has another format, or an image in it cannot be read. No image
            is written then.
    """
    data = _read_object(path)
    if data.get("format") != FORMAT:
        raise InputError(
            f"{path.name} is no conversation that edgevlm saved; choose a .json file that edgevlm saved"
        )
    version = data.get("version")
    if version != VERSION:
        raise InputError(
            f"{path.name} has version {version!r} of the format, this edgevlm reads version {VERSION}"
        )
    title, turns = data.get("title"), data.get("turns")
    if not isinstance(title, str) or not isinstance(turns, list):
        raise InputError(f"{path.name} has no title or no turns; it was changed")
    if not turns:
        raise InputError(f"{path.name} holds an empty conversation")
    if len(turns) > MAX_TURNS:
        raise InputError(f"{path.name} has {len(turns):,} turns; at most {MAX_TURNS:,} are read")
    _check_text(title, f"the title in {path.name}")
    images: dict[Path, bytes] = {}
    checked = [
        _turn(turn, f"turn {number} in {path.name}", folder, images)
        for number, turn in enumerate(turns, 1)
    ]
    for image, content in images.items():
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes(content)
    return title, checked


def _encode(kind: str, part: str) -> dict[str, str]:
    if kind == "text":
        _check_text(part, "this conversation")
        return {"text": part}
    try:
        return {"image": base64.b64encode(Path(part).read_bytes()).decode()}
    except OSError:
        raise InputError(
            f"the picture {Path(part).name} of this conversation is no longer there; "
            "save the conversation as Markdown, which works without the picture"
        ) from None


def _read_object(path: Path) -> Mapping[str, Any]:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"{path.name} has {size / 1e6:,.0f} MB; files of at most {MAX_BYTES / 1e6:,.0f} MB are opened"
        )
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise InputError(
            f"{path.name} cannot be read as JSON: it is truncated, or no file that edgevlm saved"
        ) from None
    return data if isinstance(data, dict) else {}


def _turn(turn: Any, name: str, folder: Path, images: dict[Path, bytes]) -> dict[str, Any]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (0, 0)
    if role not in ROLES or not isinstance(content, list):
        raise InputError(f"{name} has no role or no content; the file was changed")
    parts: list[tuple[str, str]] = []
    for part in content:
        kind, value = next(iter(part.items())) if isinstance(part, dict) and part else ("", None)
        if not isinstance(value, str) or kind not in ("text", "image"):
            raise InputError(f"{name} has a part {shorten(str(part))} that is no text and no image")
        if kind == "text":
            _check_text(value, name)
            parts.append(("text", value))
        else:
            path, data = _decode_image(value, f"a picture of {name}", folder)
            images[path] = data
            parts.append(("image", str(path)))
    return conversation.turn_of(role, parts)


def _decode_image(encoded: str, name: str, folder: Path) -> tuple[Path, bytes]:
    """Return the path for an image and its content, after a check that the model can read it."""
    try:
        data = decode_base64(encoded, name)
        load_image(data)
        with Image.open(io.BytesIO(data)) as image:
            suffix = SUFFIXES[image.format or ""]
    except (EdgeVLMError, KeyError, OSError) as error:
        raise InputError(f"{name} cannot be read: {error}") from None
    return folder / hashlib.sha256(data).hexdigest() / f"picture{suffix}", data


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} has half a character (a lone surrogate)") from None
