"""The tab Chat: a conversation about pictures.

Gradio's chat window keeps the conversation in the browser and hands all of it over with each turn; what a
turn shares with the one before comes out of the decoder's KV cache, and no picture is encoded twice. What
the window and the box do beyond Gradio is in `assets/chat.js`.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from edgevlm import Detail
from edgevlm.demo import attachments, conversation, markup
from edgevlm.demo.camera import camera
from edgevlm.demo.conversation import Turns
from edgevlm.demo.conversation_store import ConversationStore, Opened
from edgevlm.demo.conversations import ConversationList
from edgevlm.demo.exchange import Step, exchange
from edgevlm.demo.gradio_setup import INTERNAL, LATEST, gr, refusal, session_of, tell
from edgevlm.demo.language import label, language, say
from edgevlm.demo.model_pool import Models
from edgevlm.demo.notes import images_note
from edgevlm.demo.settings import remember, remember_model
from edgevlm.demo.streaming import Running
from edgevlm.errors import EdgeVLMError
from edgevlm.manifest import Usage
from edgevlm.options import DEFAULT_MAX_TOKENS, Generation, GenerationOptions

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

USUAL = "usual"
"""Detail of pictures that the model's manifest says."""

BUSY = "() => ({__type__: 'update', submit_btn: false, stop_btn: true})"
"""JavaScript: the box offers to stop instead of to send, before the server knows."""

EMPTIED = (
    "() => ({__type__: 'update', value: {text: '', files: []}, submit_btn: false, stop_btn: true})"
)
"""JavaScript: the box is empty and waits for a new conversation, before the server knows."""

REPORT = (
    "document.addEventListener('edgevlm-refused', (event) => trigger('refused', event.detail));"
)
"""JavaScript: what the page's script refuses is told through an event of this page."""


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
    returned = gr.State(None)
    conversations = ConversationList(store, current)
    with gr.Row(elem_id="chat-head"):
        model = gr.Dropdown(
            [],
            label=label("Model"),
            filterable=False,
            scale=1,
            min_width=220,
            elem_id="chat-model",
        )
        about = gr.HTML(elem_id="chat-about")
    window = gr.Chatbot(
        label=label("Conversation"),
        height="58vh",
        min_height=320,
        buttons=[],
        render_markdown=False,
        latex_delimiters=[],
        allow_tags=False,
        allow_file_downloads=False,
        feedback_options=None,
        examples=[
            {"text": text, "files": [str(PICTURES / name) for name in names]}
            for text, names in EXAMPLES
        ],
        placeholder=str(label("Add a picture and ask about it, or take an example")),
        elem_id="conversation",
    )
    tasks = gr.HTML(elem_id="tasks")
    box = gr.MultimodalTextbox(
        file_types=None,  # what is no picture is refused in words when it is sent
        file_count="multiple",
        sources=["upload"],
        label=label("Question"),
        show_label=False,
        placeholder=str(label("Ask about a picture")),
        max_plain_text_length=100_000,
        max_lines=8,
        elem_id="question",
    )
    report = gr.HTML(js_on_load=REPORT, visible="hidden")
    with gr.Row(elem_id="chat-actions"):
        edit = gr.Button(label("Edit the last question"), size="md", min_width=150)
        gr.Button(
            label("Copy the conversation"), size="md", min_width=150, elem_id="copy-conversation"
        )
    with gr.Accordion(label("Settings"), open=False):
        temperature = gr.Slider(
            0,
            2,
            defaults.get("temperature", Generation.temperature),
            step=0.05,
            label=label("Temperature"),
            info=label("0 takes the most likely token each time"),
        )
        length = gr.Slider(
            1,
            max(LONGEST, defaults.get("max_tokens") or 1),
            defaults.get("max_tokens") or DEFAULT_MAX_TOKENS,
            step=1,
            label=label("Longest answer"),
            info=label("tokens"),
        )
        detail = gr.Radio(
            [USUAL, "low", "high", "auto"],
            value=defaults.get("detail") or USUAL,
            label=label("Detail of pictures"),
            info=label("for models that split pictures into tiles"),
        )
        system = gr.Textbox("", label=label("System prompt"), placeholder=label("none"), lines=2)
        probable = gr.Checkbox(
            True,
            label=label("Keep how likely each token was, for Inside"),
            info=label("without it, answers that repeat come faster"),
        )
        reset = gr.Button(label("Reset the settings"), size="md")
    with gr.Accordion(label("Webcam"), open=False):
        camera("chat-camera", "photograph")

    def answered(
        before: Turns,
        question: dict[str, Any],
        earlier: dict[str, Any] | None,
        settings: tuple[Any, ...],
        request: gr.Request,
    ) -> Iterator[Step]:
        label, *chosen_options, system = settings
        options = _options(defaults, *chosen_options)
        session = session_of(request)
        try:
            yield from exchange(
                models, running, session, before, question, label, system, options, request, earlier
            )
        except EdgeVLMError as error:
            raise refusal(error) from error
        except Exception as error:
            fault = refusal(f"{type(error).__name__}: {error}")
            fault.print_exception = True
            raise fault from error

    def send(
        message: Mapping[str, Any] | None,
        history: Turns,
        label: str | None,
        temperature: float,
        length: float,
        detail: str,
        probable: bool,
        system: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        settings = (label, temperature, length, detail, probable, system)
        question = _question(message, request)
        emptied = gr.update(value={"text": "", "files": []}, submit_btn=False, stop_btn=True)
        for step in answered(history, question, None, settings, request):
            yield step.turns, emptied, step.returned, step.record or gr.skip()
            emptied = gr.skip()

    def again(
        history: Turns,
        label: str | None,
        temperature: float,
        length: float,
        detail: str,
        probable: bool,
        system: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        settings = (label, temperature, length, detail, probable, system)
        last = conversation.last_question(history)
        if last is None:
            raise refusal(say(request, "There is no question to answer again."))
        earlier = next(iter(history[last + 1 :]), None)
        for step in answered(history[:last], history[last], earlier, settings, request):
            yield step.turns, gr.skip(), step.returned, step.record or gr.skip()

    def example(
        event: gr.SelectData,
        label: str | None,
        temperature: float,
        length: float,
        detail: str,
        probable: bool,
        system: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        settings = (label, temperature, length, detail, probable, system)
        pictures = [entry["path"] for entry in event.value.get("files", [])]
        question = conversation.user_turn(event.value["text"], pictures)
        for step in answered([], question, None, settings, request):
            yield step.turns, gr.skip(), step.returned, step.record or gr.skip()

    def settled(
        message: Mapping[str, Any] | None, returned: dict[str, Any] | None
    ) -> tuple[Any, None]:
        """The box takes a question again; one that got no answer is in it."""
        return _free() if returned is None else _with_question(message, returned), None

    def kept(history: Turns, opened: Opened | None, request: gr.Request) -> Opened | None:
        return conversations.keep(history, opened, request)

    def ended(history: Turns, opened: Opened | None, request: gr.Request) -> Any:
        if running.was_left(session_of(request)):  # who left it has seen to all that
            return gr.skip()
        return kept(history, opened, request)

    def stop(request: gr.Request) -> None:
        running.stop(session_of(request))

    def leave(history: Turns, opened: Opened | None, request: gr.Request) -> Opened | None:
        running.leave(session_of(request))
        return kept(history, opened, request)

    settings = [chosen, temperature, length, detail, probable, system]
    answer: dict[str, Any] = {
        "outputs": [window, box, returned, record],
        "concurrency_limit": None,
    }
    # What is set before an event of the same trigger is set before that event begins.
    gr.on([box.submit, window.retry, window.example_select], None, None, [box], js=BUSY, **INTERNAL)
    answering = [
        box.submit(
            send, [box, window, *settings], **answer, api_name="chat", show_progress="hidden"
        ),
        window.retry(again, [window, *settings], **answer, **INTERNAL),
        window.example_select(example, settings, **answer, **INTERNAL),
    ]

    for answered_event in answering:
        for after in (answered_event.success, answered_event.failure):
            after(ended, [window, current], [current], **INTERNAL).then(
                settled, [box, returned], [box, returned], **INTERNAL
            )
    box.stop(stop, None, None, **INTERNAL)

    # Who leaves an answer gets no more of it, or it would come back into the window.
    def left(event: Any) -> Any:
        return event(leave, [window, current], [current], cancels=answering, **INTERNAL)

    edit.click(None, None, [box], js=BUSY, **INTERNAL)
    edited = left(edit.click).then(_edited, [window, box], [window, box], **INTERNAL)
    edited.success(kept, [window, current], [current], **INTERNAL)
    edited.failure(_free, None, [box], **INTERNAL)
    gr.on(
        [conversations.new.click, conversations.shown.clear],
        None,
        None,
        [box],
        js=EMPTIED,
        **INTERNAL,
    )
    conversations.connect(
        page,
        models,
        chosen,
        window,
        lambda: [[], _empty()],
        lambda: [[], _free()],
        [window, box],
        left,
    )
    remember(page, [temperature, length, detail, system, probable], reset)
    remember_model(page, models, chosen)

    def translated(request: gr.Request) -> tuple[Any, ...]:
        choices = [
            (say(request, "the model's usual"), USUAL),
            (say(request, "low"), "low"),
            (say(request, "high"), "high"),
            (say(request, "automatic"), "auto"),
        ]
        examples = [
            {**example, "text": say(request, text)}
            for example, (text, _) in zip(window.examples or [], EXAMPLES, strict=True)
        ]
        return gr.update(choices=choices), gr.update(examples=examples)

    page.load(translated, None, [detail, window], **INTERNAL)

    def fitted(label: str | None, request: gr.Request) -> tuple[Any, str, str]:
        """Choice of models, what is to know of the chosen one, and questions that it answers."""
        offered = [offer.label for offer in models.offers() if offer.problem is None]
        found = models.usage(label)
        return (
            gr.update(choices=offered, value=label if label in offered else None),
            _about(found, request),
            _tasks(found.questions(language(request)), request),
        )

    gr.on([page.load, chosen.change], fitted, [chosen], [model, about, tasks], **LATEST)

    def load(
        label: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[Any, Any, Any]]:
        try:
            for share in models.loading(label):
                percent = f"{share:.0%}"
                text = say(request, "Loading {model}: {percent}", model=label, percent=percent)
                yield (
                    markup.block(f'<p role="status">{markup.escaped(text)}</p>'),
                    gr.skip(),
                    chosen,
                )
        except EdgeVLMError as error:
            yield _about(models.usage(chosen), request), chosen, chosen
            raise refusal(error) from error
        yield _about(models.usage(label), request), label, label

    model.input(load, [model, chosen], [about, model, chosen], concurrency_limit=None, **INTERNAL)

    def refused(event: gr.EventData, request: gr.Request) -> None:
        """What the page's script refuses, in words."""
        reasons = {
            "folder": say(request, "{name} is a folder. Open it, and drop the pictures in it."),
            "nothing": say(request, "Nothing was said yet; there is nothing to copy."),
            "lost": say(request, "A picture did not get to the server. Add it again."),
        }
        tell(reasons[event.reason].replace("{name}", str(event.name)))

    report.refused(refused, None, None, **INTERNAL)


def _options(
    defaults: GenerationOptions, temperature: float, length: float, detail: str, probable: bool
) -> GenerationOptions:
    """Options of one answer, as the settings say."""
    options: GenerationOptions = {
        **defaults,
        "temperature": float(temperature),
        "max_tokens": int(length),
        "detail": None if detail == USUAL else cast("Detail", detail),
        "top_logprobs": ALTERNATIVES if probable else None,
    }
    if temperature > 0 and not defaults.get("seed"):
        options["seed"] = secrets.randbelow(2**31)  # or trying again would change nothing
    return options


def _question(message: Mapping[str, Any] | None, request: gr.Request) -> dict[str, Any]:
    """The turn that the box holds, once each of its pictures can be seen.

    Raises:
        gr.Error: it is empty, or a picture cannot be read.
    """
    text, files = (message["text"], message["files"]) if message else ("", [])
    if not text.strip() and not files:
        raise refusal(say(request, "The question is empty. Write one, or add a picture."))
    try:
        pictures = attachments.checked(files)
    except EdgeVLMError as error:
        raise refusal(error) from error
    for picture in pictures:
        if picture.frames > 1:
            name, count = Path(picture.path).name, picture.frames
            tell(
                say(
                    request,
                    "{name} has {count} frames or pages. The model sees the first one.",
                    name=name,
                    count=count,
                )
            )
    return conversation.user_turn(text, [picture.path for picture in pictures])


def _tasks(questions: Mapping[str, str], request: gr.Request) -> str:
    """Buttons that write a question into the box."""
    names = {
        "describe": say(request, "Describe"),
        "find": say(request, "Find"),
        "count": say(request, "Count"),
        "read": say(request, "Read"),
    }
    offered = questions or {"describe": say(request, "Describe the picture.")}
    buttons = (
        f'<button type="button" data-question="{markup.escaped(question)}">'
        f"{markup.escaped(names[task])}</button>"
        for task, question in offered.items()
    )
    return f'<div class="tasks">{"".join(buttons)}</div>'


def _about(found: Usage, request: gr.Request) -> str:
    """What a person should know of a model before asking; one quiet line, or nothing."""
    note = images_note(request, found)
    return markup.block(f'<p class="quiet">{markup.escaped(note)}</p>') if note else ""


def _free() -> Any:
    """The box takes a question."""
    return gr.update(submit_btn=True, stop_btn=False)


def _empty() -> Any:
    """The box takes a question and holds nothing."""
    return gr.update(value={"text": "", "files": []}, submit_btn=True, stop_btn=False)


def _with_question(message: Mapping[str, Any] | None, turn: conversation.Turn) -> Any:
    """The box takes a question and holds this one; what was in it comes after."""
    text, files = (message["text"], message["files"]) if message else ("", [])
    question, pictures = conversation.text_of(turn), conversation.pictures_of(turn)
    if (text, len(files)) == (question, len(pictures)):  # it is there still
        return _free()
    texts = [part for part in (question, text) if part]
    value = {"text": "\n".join(texts), "files": [*pictures, *files]}
    return gr.update(value=value, submit_btn=True, stop_btn=False)


def _edited(
    history: Turns, message: Mapping[str, Any] | None, request: gr.Request
) -> tuple[Turns, Any]:
    """The conversation before its last question, which goes back into the box to be edited.

    Gradio's own editing fails on turns that have pictures.
    """
    last = conversation.last_question(history)
    if last is None:
        raise refusal(say(request, "There is no question yet; write one."))
    return history[:last], _with_question(message, history[last])
