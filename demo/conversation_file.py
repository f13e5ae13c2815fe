"""A conversation as a JSON file that can be opened again, pictures inside.

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
"""Of a file that is opened."""

MAX_TURNS = 2000
"""Of a conversation in a file; far more than any context holds."""

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
"""Names' ends of the formats that a file may hold, by Pillow's names; a browser goes by them."""


def as_json(title: str, turns: Sequence[Turn]) -> str:
    """A conversation as `from_json` reads it.

    Raises:
        InputError: a picture is no longer there, or it has more than `MAX_TURNS` turns.
    """
    if len(turns) > MAX_TURNS:
        raise InputError(f"a file holds at most {MAX_TURNS:,} turns, these are {len(turns):,}")
    return json.dumps(
        {
            "format": FORMAT,
            "version": VERSION,
            "title": title,
            "turns": [
                {
                    "role": turn["role"],
                    "content": [_written(kind, part) for kind, part in conversation.parts(turn)],
                }
                for turn in turns
            ],
        },
        ensure_ascii=False,
        indent=1,
    )


def from_json(path: Path, folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Title and turns of a file that `as_json` wrote.

    Args:
        folder: takes the pictures; each gets a folder there that is named by its content.

    Raises:
        InputError: the file is too large or no such file, or a picture in it cannot be read. Nothing was
            written then.
    """
    data = _object(path)
    if data.get("format") != FORMAT:
        raise InputError(
            f"{path.name} is no conversation that edgevlm saved; choose a .json file that it did save"
        )
    version = data.get("version")
    if version != VERSION:
        raise InputError(
            f"{path.name} has version {version!r} of the format, this edgevlm reads version {VERSION}"
        )
    title, turns = data.get("title"), data.get("turns")
    if not isinstance(title, str) or not isinstance(turns, list):
        raise InputError(f"{path.name} has no title or no turns; it was altered")
    if not turns:
        raise InputError(f"{path.name} holds an empty conversation")
    if len(turns) > MAX_TURNS:
        raise InputError(f"{path.name} has {len(turns):,} turns; at most {MAX_TURNS:,} are read")
    _check_text(title, f"the title in {path.name}")
    pictures: dict[Path, bytes] = {}
    read = [
        _turn(turn, f"turn {number} in {path.name}", folder, pictures)
        for number, turn in enumerate(turns, 1)
    ]
    for place, content in pictures.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)
    return title, read


def _written(kind: str, part: str) -> dict[str, str]:
    if kind == "text":
        _check_text(part, "this conversation")
        return {"text": part}
    try:
        return {"image": base64.b64encode(Path(part).read_bytes()).decode()}
    except OSError:
        raise InputError(
            f"the picture {Path(part).name} of this conversation is no longer there; "
            "save it as Markdown, which goes without"
        ) from None


def _object(path: Path) -> Mapping[str, Any]:
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


def _turn(turn: Any, name: str, folder: Path, pictures: dict[Path, bytes]) -> dict[str, Any]:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (0, 0)
    if role not in ROLES or not isinstance(content, list):
        raise InputError(f"{name} has no role or no content; the file was altered")
    parts: list[tuple[str, str]] = []
    for part in content:
        kind, value = next(iter(part.items())) if isinstance(part, dict) and part else ("", None)
        if not isinstance(value, str) or kind not in ("text", "image"):
            raise InputError(f"{name} has a part {shorten(str(part))} that is no text and no image")
        if kind == "text":
            _check_text(value, name)
            parts.append(("text", value))
        else:
            path, data = _picture(value, f"a picture of {name}", folder)
            pictures[path] = data
            parts.append(("image", str(path)))
    return conversation.turn_of(role, parts)


def _picture(encoded: str, name: str, folder: Path) -> tuple[Path, bytes]:
    """Where a picture goes, and its file; it is one that the model can look at."""
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
