"""The tab Chat: a conversation about pictures.

Gradio's chat window keeps the conversation in the browser and hands all of it over with each turn; what a
turn shares with the one before comes out of the decoder's KV cache, and no picture is encoded twice.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgevlm.demo import conversation
from edgevlm.demo.answers import AnswerStream, Record, Running
from edgevlm.demo.models import Models
from edgevlm.demo.toolkit import (
    DOWNLOAD,
    INTERNAL,
    downloadable,
    gr,
    refusal,
    session_of,
)
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.generation import DEFAULT_MAX_TOKENS, Generation, GenerationOptions
from edgevlm.prompt import system_messages
from edgevlm.results import TokenLogprob
from edgevlm.tiling import Detail

PICTURES = Path(__file__).parent / "pictures"

EXAMPLES = (
    ("What is in the picture?", ("shapes.png",)),
    ("Where is the key?", ("scene.png",)),
    ("What changed?", ("scene.png", "changed.png")),
    ("What color is it?", ("square.png",)),
)

MOST_KEPT = 20
"""Conversations that a browser keeps."""

ALTERNATIVES = 5
"""Tokens that might have come instead, for the tab Inside."""

LONGEST = 1024

AS_MADE = "as the model was made"

Turns = list[dict[str, Any]]


def answer(
    models: Models,
    running: Running,
    session: str,
    history: Sequence[conversation.Turn],
    label: str | None,
    system: str,
    options: GenerationOptions,
) -> Iterator[tuple[Turns, Record]]:
    """The conversation with its answer while it grows, and in the end what the tab Inside shows.

    Raises:
        EdgeVLMError: no question, or whatever the model says against it.
    """
    if not history or history[-1]["role"] != "user":
        raise InputError("there is no question to answer; write one")
    turns: Turns = [dict(turn) for turn in history]
    messages = [
        *system_messages(system if system.strip() else None),
        *map(conversation.as_message, history),
    ]
    stream = AnswerStream(models, label, messages, options)
    running.begin(session, stream)
    text, stats = "", None
    logprobs: list[TokenLogprob] = []
    record = Record(label, messages, options)
    for chunk in stream:
        text, stats = text + chunk.text, chunk.stats
        logprobs += chunk.logprobs
        if text:
            yield [*turns, conversation.assistant_turn(text)], record
    if stream.left:
        return
    said = [conversation.assistant_turn(text)] if text else []
    yield [*turns, *said], Record(label, messages, options, text, tuple(logprobs), stats)


def build(
    page: gr.Blocks,
    models: Models,
    running: Running,
    chosen: gr.State,
    record: gr.State,
    defaults: GenerationOptions,
) -> None:
    """Lay out the tab and connect it.

    Args:
        chosen: label of the model that this browser uses.
        record: takes the `Record` of the last answer.
        defaults: options of every answer that no setting changes.
    """
    saved = gr.BrowserState([], storage_key="edgevlm-conversations")
    current = gr.State(None)
    with gr.Row():
        new = gr.Button("New conversation", size="md", scale=1, min_width=150)
        earlier = gr.Dropdown(
            [],
            value=None,
            show_label=False,
            container=False,
            info=None,
            filterable=False,
            scale=3,
            min_width=200,
            elem_id="earlier",
        )
    window = gr.Chatbot(
        label="Conversation",
        height="58vh",
        min_height=320,
        buttons=["copy", "copy_all"],
        render_markdown=False,
        latex_delimiters=[],
        feedback_options=None,
        examples=[
            {"text": text, "files": [str(PICTURES / name) for name in names]}
            for text, names in EXAMPLES
        ],
        placeholder="Add a picture and ask about it, or take an example",
        elem_id="conversation",
    )
    box = gr.MultimodalTextbox(
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        show_label=False,
        placeholder="Ask; pictures can be uploaded, pasted or dropped here",
        max_plain_text_length=100_000,
        elem_id="question",
    )
    with gr.Row():
        with gr.Accordion("Settings", open=False):
            temperature = gr.Slider(
                0,
                2,
                defaults.get("temperature", Generation.temperature),
                step=0.05,
                label="Temperature",
                info="0 takes the most likely token each time",
            )
            length = gr.Slider(
                1,
                max(LONGEST, defaults.get("max_tokens") or 1),
                defaults.get("max_tokens") or DEFAULT_MAX_TOKENS,
                step=1,
                label="Longest answer",
                info="tokens",
            )
            detail = gr.Radio(
                [AS_MADE, "low", "high", "auto"],
                value=defaults.get("detail") or AS_MADE,
                label="Detail of pictures",
                info="for models that split pictures into tiles",
            )
            system = gr.Textbox("", label="System prompt", placeholder="none", lines=2)
            probable = gr.Checkbox(
                True,
                label="Keep how likely each token was, for Inside",
                info="without it, answers that repeat come faster",
            )
        with gr.Accordion("Webcam", open=False):
            camera = gr.Image(
                sources=["webcam"],
                type="filepath",
                show_label=False,
                height=280,
                webcam_options=gr.WebcamOptions(mirror=False),
                elem_id="camera",
            )
        with gr.Column(min_width=150):
            edit = gr.Button("Edit the last question", size="md")
            export = gr.Button("Save as a file", size="md")
            file = gr.DownloadButton("file", visible="hidden", elem_id="conversation-file")

    def respond(
        history: list[dict[str, Any]],
        label: str | None,
        temperature: float,
        length: float,
        detail: str,
        system: str,
        probable: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Turns, Record]]:
        options: GenerationOptions = {
            **defaults,
            "temperature": float(temperature),
            "max_tokens": int(length),
            "detail": None if detail == AS_MADE else cast("Detail", detail),
            "top_logprobs": ALTERNATIVES if probable else None,
        }
        if temperature > 0 and not defaults.get("seed"):
            options["seed"] = secrets.randbelow(2**31)  # or trying again would change nothing
        try:
            yield from answer(models, running, session_of(request), history, label, system, options)
        except EdgeVLMError as error:
            raise refusal(error) from error

    def kept(history: list[dict[str, Any]], current: str | None, saved: list[Any]) -> Any:
        """The box is free again, and the conversation is kept in the browser."""
        if not history:
            return _free(), current, saved
        current = current or uuid.uuid4().hex
        entry = {"id": current, "title": conversation.title(history), "turns": history}
        others = [other for other in saved if other["id"] != current]
        return _free(), current, [entry, *others][:MOST_KEPT]

    def ended(
        history: list[dict[str, Any]],
        current: str | None,
        saved: list[Any],
        request: gr.Request,
    ) -> Any:
        if running.was_left(session_of(request)):  # who left it has seen to all that
            return gr.skip(), gr.skip(), gr.skip()
        return kept(history, current, saved)

    def stop(request: gr.Request) -> None:
        running.stop(session_of(request))

    def leave(request: gr.Request) -> None:
        running.leave(session_of(request))

    answers = {
        "fn": respond,
        "inputs": [window, chosen, temperature, length, detail, system, probable],
        "outputs": [window, record],
        "concurrency_limit": None,
    }
    questions = [
        box.submit(_sent, [box, window], [window, box], **INTERNAL),
        window.retry(_again, [window], [window, box], **INTERNAL),
        window.example_select(_example, None, [window, box], **INTERNAL),
    ]
    answering = []
    for number, question in enumerate(questions):
        visibility = INTERNAL if number else {"api_name": "chat", "show_progress": "hidden"}
        answered = question.success(**answers, **visibility)
        answering.append(answered)
        place = {
            "inputs": [window, current, saved],
            "outputs": [box, current, saved],
            **INTERNAL,
        }
        answered.success(ended, **place)
        answered.failure(kept, **place)
    box.stop(stop, None, None, **INTERNAL)
    # Who leaves an answer gets no more of it, or it would come back into the window.
    left = {"cancels": answering, **INTERNAL}
    gr.on([window.undo, edit.click], leave, None, None, **left).then(
        _undone, [window], [window, box], **INTERNAL
    ).then(kept, [window, current, saved], [box, current, saved], **INTERNAL)
    window.clear(leave, None, None, **left).then(
        _forgotten, [current, saved], [window, box, current, saved], **INTERNAL
    )
    new.click(leave, None, None, **left).then(
        lambda: ([], _free(), None, None),
        None,
        [window, box, current, earlier],
        **INTERNAL,
    )
    gr.on(
        [page.load, saved.change],
        _listed,
        [saved, current],
        [earlier],
        **INTERNAL,
    )
    earlier.input(leave, None, None, **left).then(
        _opened, [earlier, saved], [window, box, current], **INTERNAL
    )
    camera.input(_photographed, [camera, box], [box, camera], **INTERNAL)

    def exported(history: list[dict[str, Any]], label: str | None) -> str:
        if not history:
            raise refusal(InputError("the conversation is empty; there is nothing to save"))
        name = models.find(label).label
        return downloadable("conversation.md", conversation.as_markdown(name, history))

    export.click(exported, [window, chosen], [file], **INTERNAL).success(
        None, None, None, js=f"() => ({DOWNLOAD})('conversation-file')", **INTERNAL
    )


def _busy() -> Any:
    """The box offers to stop instead of to send."""
    return gr.update(submit_btn=False, stop_btn=True)


def _free() -> Any:
    """The box takes a question."""
    return gr.update(submit_btn=True, stop_btn=False)


def _sent(message: Mapping[str, Any], history: list[dict[str, Any]]) -> tuple[Turns, Any]:
    turn = conversation.user_turn(message["text"], message["files"])
    if not turn["content"]:
        raise refusal(InputError("the question is empty; write one or add a picture"))
    return [*history, turn], gr.update(
        value={"text": "", "files": []}, submit_btn=False, stop_btn=True
    )


def _again(history: list[dict[str, Any]]) -> tuple[Turns, Any]:
    """The conversation up to its last question."""
    last = conversation.last_question(history)
    return history[: 0 if last is None else last + 1], _busy()


def _undone(history: list[dict[str, Any]]) -> tuple[Turns, Any]:
    """The conversation before its last question, which goes back into the box to be edited.

    Gradio's own editing fails on turns that have pictures.
    """
    last = conversation.last_question(history)
    if last is None:
        return history, gr.update()
    turn = history[last]
    box = {"text": conversation.text_of(turn), "files": conversation.pictures_of(turn)}
    return history[:last], gr.update(value=box)


def _example(event: gr.SelectData) -> tuple[Turns, Any]:
    pictures = [file["path"] for file in event.value.get("files", [])]
    return [conversation.user_turn(event.value["text"], pictures)], _busy()


def _forgotten(current: str | None, saved: list[Any]) -> tuple[Turns, Any, None, list[Any]]:
    return [], _free(), None, [entry for entry in saved if entry["id"] != current]


def _listed(saved: list[Any], current: str | None) -> Any:
    choices = [(entry["title"], entry["id"]) for entry in saved]
    known = any(entry["id"] == current for entry in saved)
    return gr.update(choices=choices, value=current if known else None)


def _opened(chosen: str | None, saved: list[Any]) -> tuple[Turns, Any, str | None]:
    found = next((entry for entry in saved if entry["id"] == chosen), None)
    return ([], _free(), None) if found is None else (found["turns"], _free(), chosen)


def _photographed(picture: str | None, message: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """What the camera took joins the question, and the camera is ready again."""
    if picture is None:
        return gr.update(), gr.update()
    text, files = (message["text"], message["files"]) if message else ("", [])
    return gr.update(value={"text": text, "files": [*files, picture]}), None
