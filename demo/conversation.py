"""A conversation as Gradio's chat window keeps it, as `VLM.stream_generate` takes it, and as a file.

The window shows texts as HTML. That HTML carries what was written letter for letter, too: it is what goes to
the model, into files and onto the clipboard (`assets/chat.js`). An answer may have a note below it (how long
it took) and a picture with its boxes; neither is part of what was said.

Gradio spells a part in two ways: ``{"path": ...}`` as it was sent, or, once a browser has shown it,
``{"text": ..., "type": ...}`` and ``{"file": {"path": ...}, ...}``.
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
"""Its name and what it does are in `assets/chat.js`."""
_SOURCE = re.compile(r'<div class="(?:said|source)"[^>]*>([^<]*)</div>')
"""Where the HTML of a text has the text itself, escaped."""


def user_turn(text: str, pictures: Sequence[str]) -> dict[str, Any]:
    """What a person sends: pictures first, then the text, if there is one."""
    content: list[dict[str, str]] = [{"path": picture} for picture in pictures]
    if text.strip():
        content.append(_user_text(text))
    return {"role": "user", "content": content}


def assistant_turn(text: str, note: str = "", drawn: str | None = None) -> dict[str, Any]:
    """An answer in Markdown.

    Args:
        note: plain text to show below it.
        drawn: path of a picture to show below it.
    """
    content = [_assistant_text(text, note)]
    if drawn is not None:
        content.append({"path": drawn})
    return {"role": "assistant", "content": content}


def turn_of(role: str, parts: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """A turn of what `parts` returns."""
    made = _user_text if role == "user" else _assistant_text
    content = [made(part) if kind == "text" else {"path": part} for kind, part in parts]
    return {"role": role, "content": content}


def as_message(turn: Turn) -> dict[str, Any]:
    """A turn as a message of `VLM.stream_generate`."""
    return {
        "role": turn["role"],
        "content": [
            {"type": "text", "text": part} if kind == "text" else {"type": "image", "image": part}
            for kind, part in parts(turn)
        ],
    }


def text_of(turn: Turn) -> str:
    """What was written or answered, letter for letter."""
    return "\n".join(part for kind, part in parts(turn) if kind == "text")


def pictures_of(turn: Turn) -> list[str]:
    """Paths of the pictures that a person sent with this turn."""
    return [part for kind, part in parts(turn) if kind == "image"]


def files_of(turn: Turn) -> list[str]:
    """Paths of all pictures that the window shows in this turn."""
    content = turn["content"] if isinstance(turn["content"], list) else []
    return [_path(part) for part in content if isinstance(part, dict) and "text" not in part]


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
    """``("text", text)`` and ``("image", path)``, in order, without empty texts and drawn pictures."""
    content = turn["content"]
    found = []
    for part in content if isinstance(content, list) else [content]:
        text = part if isinstance(part, str) else part.get("text")
        if text is None:
            if turn["role"] == "user":
                found.append(("image", _path(part)))
        elif said := _said(text):
            found.append(("text", said))
    return found


def _path(part: Mapping[str, Any]) -> str:
    return str(part.get("path") or part["file"]["path"])


def _said(text: str) -> str:
    """The text itself; one that does not come from the window is its own."""
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


def _html_part(made: str) -> dict[str, str]:
    return {"type": "text", "text": made}
