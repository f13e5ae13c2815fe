"""Turns of a conversation, as Gradio's chat window keeps them and as `VLM.stream_generate` takes them.

The window shows texts as HTML. The HTML also contains the original text, which goes to the model, into files
and to the clipboard (`assets/chat.js`). Below an answer there may be a note (how long it took) and an image
with its boxes; neither is part of the conversation.

Gradio has two forms of a part: ``{"path": ...}`` as it was sent, and, after a browser has shown it,
``{"text": ..., "type": ...}`` or ``{"file": {"path": ...}, ...}``.
"""

from __future__ import annotations

import base64
import html
import mimetypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgevlm.demo import markdown

Turn = Mapping[str, Any]
Turns = list[dict[str, Any]]

TITLE_LENGTH = 40

_COPY = '<button class="copy" type="button"></button>'
"""`assets/chat.js` names the button and makes it work."""
_SOURCE = re.compile(r'<div class="(?:said|source)"[^>]*>([^<]*)</div>')
"""Finds the original text, escaped, in the HTML of a text."""


def user_turn(text: str, images: Sequence[str]) -> dict[str, Any]:
    """Return a turn of the user.

    Args:
        text: the question after the images; may be empty.
        images: paths of images.
    """
    content: list[dict[str, str]] = [{"path": image} for image in images]
    if text.strip():
        content.append(_user_text(text))
    return {"role": "user", "content": content}


def assistant_turn(text: str, note: str = "", drawn: str | None = None) -> dict[str, Any]:
    """Return a turn of the model.

    Args:
        text: the answer, in Markdown.
        note: plain text to show below it.
        drawn: path of an image to show below it.
    """
    content = [_assistant_text(text, note)]
    if drawn is not None:
        content.append({"path": drawn})
    return {"role": "assistant", "content": content}


def turn_of(role: str, parts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the turn whose `parts` are given."""
    text_part = _user_text if role == "user" else _assistant_text
    content = [text_part(part) if kind == "text" else {"path": part} for kind, part in parts]
    return {"role": role, "content": content}


def as_message(turn: Turn) -> dict[str, Any]:
    """Return a turn as a message for `VLM.stream_generate`."""
    return {
        "role": turn["role"],
        "content": [
            {"type": "text", "text": part} if kind == "text" else {"type": "image", "image": part}
            for kind, part in parts(turn)
        ],
    }


def system_messages(text: str) -> list[dict[str, Any]]:
    """Return the system message for `VLM.stream_generate` as a list; an empty list for an empty text."""
    if not text.strip():
        return []
    return [{"role": "system", "content": [{"type": "text", "text": text}]}]


def text_of(turn: Turn) -> str:
    """Return the original text of a turn."""
    return "\n".join(part for kind, part in parts(turn) if kind == "text")


def images_of(turn: Turn) -> list[str]:
    """Return the paths of the images that a person sent with this turn."""
    return [part for kind, part in parts(turn) if kind == "image"]


def files_of(turn: Turn) -> list[str]:
    """Return the paths of all images that the window shows in this turn."""
    content = turn["content"] if isinstance(turn["content"], list) else []
    return [_path(part) for part in content if isinstance(part, dict) and "text" not in part]


def last_question(history: Sequence[Turn]) -> int | None:
    """Return the index of the newest turn of the user; None if there is none."""
    return max((at for at, turn in enumerate(history) if turn["role"] == "user"), default=None)


def title(history: Sequence[Turn]) -> str:
    """Return the first words of a conversation."""
    words = " ".join(" ".join(text_of(turn) for turn in history).split())
    return words if len(words) <= TITLE_LENGTH else words[: TITLE_LENGTH - 1] + "…"


def as_markdown(name: str, history: Sequence[Turn]) -> str:
    """Return a conversation as one Markdown file, with its images as data URIs.

    Args:
        name: label of the model that answered last.
        history: the turns.
    """
    lines = [f"# Conversation with {name}", ""]
    for turn in history:
        lines += [f"**{turn['role']}**", ""]
        for kind, part in parts(turn):
            lines += [_data_image(Path(part)) if kind == "image" else part, ""]
    return "\n".join(lines)


def _data_image(path: Path) -> str:
    if not path.is_file():
        return "(a picture that is no longer there)"
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"![picture](data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()})"


def parts(turn: Turn) -> list[tuple[str, str]]:
    """Return ``("text", text)`` and ``("image", path)`` in order, without empty texts and drawn images."""
    content = turn["content"]
    found = []
    for part in content if isinstance(content, list) else [content]:
        text = part if isinstance(part, str) else part.get("text")
        if text is None:
            if turn["role"] == "user":
                found.append(("image", _path(part)))
        elif plain := _plain_text(text):
            found.append(("text", plain))
    return found


def _path(part: Mapping[str, Any]) -> str:
    return str(part.get("path") or part["file"]["path"])


def _plain_text(text: str) -> str:
    """Return the original text of the HTML of a text; a text without HTML is returned as it is."""
    source = _SOURCE.match(text)
    return text if source is None else html.unescape(source[1])


def _user_text(text: str) -> dict[str, str]:
    return _html_part(f'<div class="said">{html.escape(text)}</div>{_COPY}')


def _assistant_text(text: str, note: str = "") -> dict[str, str]:
    return _html_part(
        f'<div class="source" hidden>{html.escape(text)}</div>'
        f'<div class="answered">{markdown.render(text)}</div>'
        f'<div class="foot"><span class="note">{html.escape(note)}</span>{_COPY}</div>'
    )


def _html_part(html_text: str) -> dict[str, str]:
    return {"type": "text", "text": html_text}
