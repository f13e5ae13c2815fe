"""The tab Chat: a conversation about pictures.

Gradio's chat window keeps the conversation in the browser and hands all of it over with each turn; what a
turn shares with the one before comes out of the decoder's KV cache, and no picture is encoded twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from edgevlm.demo import conversation
from edgevlm.demo.answers import AnswerStream, Record, Running
from edgevlm.demo.conversation_store import ConversationStore, Opened
from edgevlm.demo.conversations import ConversationList
from edgevlm.demo.language import label
from edgevlm.demo.models import Models
from edgevlm.demo.settings import remember, remember_model
from edgevlm.demo.toolkit import INTERNAL, gr, refusal, session_of
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
    store: ConversationStore,
    chosen: gr.State,
    record: gr.State,
    defaults: GenerationOptions,
) -> None:
    """Lay out the tab and connect it.

    Args:
        store: keeps the conversations of all browsers.
        chosen: label of the model that this browser uses.
        record: takes the `Record` of the last answer.
        defaults: options of every answer that no setting changes.
    """
    current = gr.State(None)
    kept = ConversationList(store, current)
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
            reset = gr.Button(label("Reset the settings"), size="md")
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

    def over(
        history: list[dict[str, Any]], opened: Opened | None, request: gr.Request
    ) -> tuple[Any, Opened | None]:
        """The box is free again, and the conversation is kept."""
        return _free(), kept.keep(history, opened, request)

    def ended(
        history: list[dict[str, Any]], opened: Opened | None, request: gr.Request
    ) -> tuple[Any, Any]:
        if running.was_left(session_of(request)):  # who left it has seen to all that
            return gr.skip(), gr.skip()
        return over(history, opened, request)

    def stop(request: gr.Request) -> None:
        running.stop(session_of(request))

    def leave(
        history: list[dict[str, Any]], opened: Opened | None, request: gr.Request
    ) -> Opened | None:
        running.leave(session_of(request))
        return kept.keep(history, opened, request)

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
        place = {"inputs": [window, current], "outputs": [box, current], **INTERNAL}
        answered.success(ended, **place)
        answered.failure(over, **place)
    box.stop(stop, None, None, **INTERNAL)

    # Who leaves an answer gets no more of it, or it would come back into the window.
    def left(event: Any) -> Any:
        return event(leave, [window, current], [current], cancels=answering, **INTERNAL)

    left(partial(gr.on, [window.undo, edit.click])).then(
        _undone, [window], [window, box], **INTERNAL
    ).then(over, [window, current], [box, current], **INTERNAL)

    def cleared(opened: Opened | None, request: gr.Request) -> tuple[Turns, Any, None]:
        kept.delete(opened, request)
        return [], _free(), None

    left(partial(gr.on, [window.clear, kept.shown.clear])).then(
        cleared, [current], [window, box, current], **INTERNAL
    )
    kept.connect(page, models, chosen, window, lambda: [[], _free()], [window, box], left)
    remember(page, [temperature, length, detail, system, probable], reset)
    remember_model(page, models, chosen)
    camera.input(_photographed, [camera, box], [box, camera], **INTERNAL)


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


def _photographed(picture: str | None, message: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """What the camera took joins the question, and the camera is ready again."""
    if picture is None:
        return gr.update(), gr.update()
    text, files = (message["text"], message["files"]) if message else ("", [])
    return gr.update(value={"text": text, "files": [*files, picture]}), None
