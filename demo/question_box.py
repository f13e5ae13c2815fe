"""The box for questions in the tab Chat: its updates, and the question that it holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgevlm.demo import attachments, conversation
from edgevlm.demo.conversation import Turns
from edgevlm.demo.gradio_setup import gr, page_error
from edgevlm.demo.language import label, translate
from edgevlm.errors import EdgeVLMError

Message = Mapping[str, Any]
"""Value of the box: ``text`` and ``files``, a list of paths."""

SHOW_STOP = "() => ({__type__: 'update', submit_btn: false, stop_btn: true})"
"""JavaScript: the box offers to stop instead of to send, before the server knows."""

SHOW_EMPTY = (
    "() => ({__type__: 'update', value: {text: '', files: []}, submit_btn: false, stop_btn: true})"
)
"""JavaScript: the box is empty and waits for a new conversation, before the server knows."""


def build() -> gr.MultimodalTextbox:
    """Lay out the box."""
    return gr.MultimodalTextbox(
        file_types=None,  # a file that is no image is refused in words when it is sent
        file_count="multiple",
        sources=["upload"],
        label=label("Question"),
        show_label=False,
        placeholder=str(label("Ask about a picture")),
        max_plain_text_length=100_000,
        max_lines=8,
        elem_id="question",
    )


def read(message: Message | None, request: gr.Request) -> dict[str, Any]:
    """Check the value of the box and return it as a turn of the user.

    Raises:
        gr.Error: the box is empty, or an image cannot be read.
    """
    text, files = (message["text"], message["files"]) if message else ("", [])
    if not text.strip() and not files:
        raise page_error(translate(request, "The question is empty. Write one, or add a picture."))
    try:
        images = attachments.read(files)
    except EdgeVLMError as error:
        raise page_error(error) from error
    for image in images:
        attachments.notify_frames(image, Path(image.path).name, request)
    return conversation.user_turn(text, [image.path for image in images])


def sent() -> Any:
    """Return an update: the box is empty and offers to stop."""
    return gr.update(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)


def ready() -> Any:
    """Return an update: the box offers to send and keeps its value."""
    return gr.update(submit_btn=True, stop_btn=False)


def ready_and_empty() -> Any:
    """Return an update: the box offers to send and is empty."""
    return gr.update(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)


def ready_with(turn: conversation.Turn, message: Message | None) -> Any:
    """Return an update: the box offers to send and holds a question again.

    Args:
        turn: the question.
        message: value of the box; it is put after the question.
    """
    text, files = (message["text"], message["files"]) if message else ("", [])
    question, images = conversation.text_of(turn), conversation.images_of(turn)
    if (text, len(files)) == (question, len(images)):  # the box still holds the question
        return ready()
    texts = [part for part in (question, text) if part]
    value = {"text": "\n".join(texts), "files": [*images, *files]}
    return gr.update(value=value, submit_btn=True, stop_btn=False)


def settle(message: Message | None, unanswered: dict[str, Any] | None) -> tuple[Any, None]:
    """Return an update after an exchange. A question without an answer goes back into the box."""
    return ready() if unanswered is None else ready_with(unanswered, message), None


def edit_last(history: Turns, message: Message | None, request: gr.Request) -> tuple[Turns, Any]:
    """Move the last question of the conversation into the box. Gradio's own way fails on images.

    Raises:
        gr.Error: there is no question.
    """
    last = conversation.last_question(history)
    if last is None:
        raise page_error(translate(request, "There is no question yet; write one."))
    return history[:last], ready_with(history[last], message)
