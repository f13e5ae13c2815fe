"""A conversation as Gradio keeps it, as `VLM.generate` takes it, and as a file.

Gradio spells a turn in two ways: a text and ``{"path": ...}`` as they were sent, or, once a browser has shown
them, ``{"text": ..., "type": ...}`` and ``{"file": {"path": ...}, ...}``. Its chat window shows a text as
HTML, so texts are kept with ``&``, ``<`` and ``>`` escaped, and unescaped wherever else they go.
"""

from __future__ import annotations

import base64
import html
import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Turn = Mapping[str, Any]

TITLE_LENGTH = 40


def user_turn(text: str, pictures: Sequence[str]) -> dict[str, Any]:
    """What a person sends: pictures first, then the text, if there is one."""
    content: list[dict[str, str]] = [{"path": picture} for picture in pictures]
    if text.strip():
        content.append(_text_part(text))
    return {"role": "user", "content": content}


def assistant_turn(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [_text_part(text)]}


def turn_of(role: str, parts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A turn of what `parts` returns."""
    content = [_text_part(part) if kind == "text" else {"path": part} for kind, part in parts]
    return {"role": role, "content": content}


def as_message(turn: Turn) -> dict[str, Any]:
    """A turn as a message of `VLM.generate`."""
    return {
        "role": turn["role"],
        "content": [
            {"type": "text", "text": part} if kind == "text" else {"type": "image", "image": part}
            for kind, part in parts(turn)
        ],
    }


def text_of(turn: Turn) -> str:
    return "\n".join(part for kind, part in parts(turn) if kind == "text")


def pictures_of(turn: Turn) -> list[str]:
    """Paths of a turn's pictures."""
    return [part for kind, part in parts(turn) if kind == "image"]


def last_question(history: Sequence[Turn]) -> int | None:
    """Index of the newest turn of the user."""
    return max((at for at, turn in enumerate(history) if turn["role"] == "user"), default=None)


def title(history: Sequence[Turn]) -> str:
    """The first words that were said, for a list of conversations."""
    words = " ".join(" ".join(text_of(turn) for turn in history).split())
    return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1] + "…"


def as_markdown(name: str, history: Sequence[Turn]) -> str:
    """A conversation as one file: the pictures are inside, as data addresses.

    Args:
        name: of the model that answered last.
    """
    lines = [f"# Conversation with {name}", ""]
    for turn in history:
        lines += [f"**{turn['role']}**", ""]
        for kind, part in parts(turn):
            lines += [_data_picture(Path(part)) if kind == "image" else part, ""]
    return "\n".join(lines)


def _data_picture(path: Path) -> str:
    if not path.is_file():
        return "(a picture that is no longer there)"
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"![picture](data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()})"


def parts(turn: Turn) -> list[tuple[str, str]]:
    """``("text", text)`` and ``("image", path)``, in order, without empty texts."""
    content = turn["content"]
    found = []
    for part in content if isinstance(content, list) else [content]:
        text = part if isinstance(part, str) else part.get("text")
        if text is None:
            found.append(("image", part.get("path") or part["file"]["path"]))
        elif text:
            found.append(("text", html.unescape(text)))
    return found


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": html.escape(text, quote=False)}
