"""The tab Chat: a conversation about images.

Gradio's chat window keeps the conversation in the browser and sends all of it with each turn. The KV cache
holds the turns before, and no image is encoded twice. `assets/chat.js` adds to the window and the box what
Gradio lacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.demo import conversation, question_box
from edgevlm.demo.answer_settings import AnswerSettings, SettingsPanel, detail_choices
from edgevlm.demo.camera import camera
from edgevlm.demo.conversation import Turns
from edgevlm.demo.conversation_store import ConversationStore, OpenConversation
from edgevlm.demo.conversations import ConversationList
from edgevlm.demo.exchange import Step, exchange
from edgevlm.demo.gradio_setup import INTERNAL, gr, notify, page_error, session_of
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_chooser import ModelChooser
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.question_box import Message
from edgevlm.demo.settings import remember_model
from edgevlm.demo.streaming import ActiveStreams
from edgevlm.errors import EdgeVLMError
from edgevlm.options import GenerationOptions

EXAMPLE_IMAGES = Path(__file__).parent / "pictures"

EXAMPLES = (
    ("What is in the picture?", ("shapes.png",)),
    ("Where is the key?", ("scene.png",)),
    ("What changed?", ("scene.png", "changed.png")),
    ("What color is it?", ("square.png",)),
)
"""Questions, and their files in `EXAMPLE_IMAGES`."""

REFUSAL_LISTENER = (
    "document.addEventListener('edgevlm-refused', (event) => trigger('refused', event.detail));"
)
"""JavaScript: turns what the page's script refuses into an event of a component."""


def build(
    page: gr.Blocks,
    models: ModelPool,
    streams: ActiveStreams,
    store: ConversationStore,
    chosen: gr.State,
    record: gr.State,
    defaults: GenerationOptions,
) -> None:
    """Lay out the tab and connect its events.

    Args:
        page: the page; its ``load`` and ``unload`` are used.
        models: the models that the page offers.
        streams: the answers that are under way.
        store: the conversations of all browsers.
        chosen: state with the label of the model that this browser uses.
        record: state that takes the `AnswerRecord` of the last answer.
        defaults: options of every answer that no setting changes.
    """
    current = gr.State(None)
    unanswered = gr.State(None)
    conversations = ConversationList(store, current)
    chooser = ModelChooser(models, chosen)
    window = _window()
    tasks = gr.HTML(elem_id="tasks")
    box = question_box.build()
    refusals = gr.HTML(js_on_load=REFUSAL_LISTENER, visible="hidden")
    with gr.Row(elem_id="chat-actions"):
        edit = gr.Button(label("Edit the last question"), size="md", min_width=150)
        gr.Button(
            label("Copy the conversation"), size="md", min_width=150, elem_id="copy-conversation"
        )
    panel = SettingsPanel(defaults)
    with gr.Accordion(label("Webcam"), open=False):
        camera("chat-camera", "photograph")

    handlers = _Handlers(models, streams, conversations, defaults)
    settings = [chosen, *panel.controls]
    answer: dict[str, Any] = {
        "outputs": [window, box, unanswered, record],
        "concurrency_limit": None,
    }
    # Gradio applies an event without a function before other events of the same trigger begin.
    gr.on(
        [box.submit, window.retry, window.example_select],
        None,
        None,
        [box],
        js=question_box.SHOW_STOP,
        **INTERNAL,
    )
    answering = [
        box.submit(
            handlers.send,
            [box, window, *settings],
            **answer,
            api_name="chat",
            show_progress="hidden",
        ),
        window.retry(handlers.retry, [window, *settings], **answer, **INTERNAL),
        window.example_select(handlers.example, settings, **answer, **INTERNAL),
    ]
    for event in answering:
        for after in (event.success, event.failure):
            after(handlers.keep_if_shown, [window, current], [current], **INTERNAL).then(
                question_box.settle, [box, unanswered], [box, unanswered], **INTERNAL
            )
    box.stop(handlers.stop, None, None, **INTERNAL)

    def leave(event: Any) -> Any:
        """Connect an event that leaves an answer: it is cancelled, or it would come back into the window."""
        return event(handlers.leave, [window, current], [current], cancels=answering, **INTERNAL)

    edit.click(None, None, [box], js=question_box.SHOW_STOP, **INTERNAL)
    edited = leave(edit.click).then(
        question_box.edit_last, [window, box], [window, box], **INTERNAL
    )
    edited.success(conversations.keep, [window, current], [current], **INTERNAL)
    edited.failure(question_box.ready, None, [box], **INTERNAL)
    gr.on(
        [conversations.new.click, conversations.shown.clear],
        None,
        None,
        [box],
        js=question_box.SHOW_EMPTY,
        **INTERNAL,
    )
    conversations.connect(
        page,
        models,
        chosen,
        window,
        lambda: [[], question_box.ready_and_empty()],
        lambda: [[], question_box.ready()],
        [window, box],
        leave,
    )
    panel.remember(page)
    remember_model(page, models, chosen)

    def translate_components(request: gr.Request) -> tuple[Any, ...]:
        examples = [
            {**example, "text": translate(request, text)}
            for example, (text, _) in zip(window.examples or [], EXAMPLES, strict=True)
        ]
        details = gr.update(choices=detail_choices(request))
        return details, gr.update(examples=examples)

    page.load(translate_components, None, [panel.detail, window], **INTERNAL)
    chooser.connect(page, tasks)
    refusals.refused(_notify_refused, None, None, **INTERNAL)


def _window() -> gr.Chatbot:
    """Lay out the window of the conversation."""
    return gr.Chatbot(
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
            {"text": text, "files": [str(EXAMPLE_IMAGES / name) for name in names]}
            for text, names in EXAMPLES
        ],
        placeholder=str(label("Add a picture and ask about it, or take an example")),
        elem_id="conversation",
    )


class _Handlers:
    """Functions of the events that answer, stop and keep."""

    def __init__(
        self,
        models: ModelPool,
        streams: ActiveStreams,
        conversations: ConversationList,
        defaults: GenerationOptions,
    ) -> None:
        self._models = models
        self._streams = streams
        self._conversations = conversations
        self._defaults = defaults

    def send(
        self,
        message: Message | None,
        history: Turns,
        label: str | None,
        temperature: float,
        length: float,
        detail: str,
        probable: bool,
        system: str,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the question in the box. The parameters' names are those of the page's API."""
        settings = AnswerSettings(label, temperature, length, detail, probable, system)
        question = question_box.read(message, request)
        box = question_box.sent()
        for step in self._answer(history, question, None, settings, request):
            yield step.turns, box, step.returned, step.record or gr.skip()
            box = gr.skip()

    def retry(
        self, history: Turns, request: gr.Request, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Answer the last question again."""
        last = conversation.last_question(history)
        if last is None:
            raise page_error(translate(request, "There is no question to answer again."))
        earlier = next(iter(history[last + 1 :]), None)
        steps = self._answer(
            history[:last], history[last], earlier, AnswerSettings(*settings), request
        )
        for step in steps:
            yield step.turns, gr.skip(), step.returned, step.record or gr.skip()

    def example(
        self, event: gr.SelectData, request: gr.Request, *settings: Any
    ) -> Iterator[tuple[Any, ...]]:
        """Answer an example in a new conversation."""
        images = [file["path"] for file in event.value.get("files", [])]
        question = conversation.user_turn(event.value["text"], images)
        for step in self._answer([], question, None, AnswerSettings(*settings), request):
            yield step.turns, gr.skip(), step.returned, step.record or gr.skip()

    def keep_if_shown(
        self, history: Turns, opened: OpenConversation | None, request: gr.Request
    ) -> Any:
        """Keep the conversation, unless `leave` has done it."""
        if self._streams.was_abandoned(session_of(request)):
            return gr.skip()
        return self._conversations.keep(history, opened, request)

    def stop(self, request: gr.Request) -> None:
        """Stop the answer."""
        self._streams.stop(session_of(request))

    def leave(
        self, history: Turns, opened: OpenConversation | None, request: gr.Request
    ) -> OpenConversation | None:
        """Keep the conversation as the page shows it, and drop the rest of the answer."""
        self._streams.abandon(session_of(request))
        return self._conversations.keep(history, opened, request)

    def _answer(
        self,
        history: Turns,
        question: dict[str, Any],
        earlier: dict[str, Any] | None,
        settings: AnswerSettings,
        request: gr.Request,
    ) -> Iterator[Step]:
        """Run one exchange. Errors become notices in the page."""
        try:
            yield from exchange(
                self._models,
                self._streams,
                session_of(request),
                history,
                question,
                settings.model,
                settings.system,
                settings.options(self._defaults),
                request,
                earlier,
            )
        except EdgeVLMError as error:
            raise page_error(error) from error
        except Exception as error:
            notice = page_error(f"{type(error).__name__}: {error}")
            notice.print_exception = True
            raise notice from error


def _notify_refused(event: gr.EventData, request: gr.Request) -> None:
    """Show why the page's script refused something."""
    reasons = {
        "folder": translate(request, "{name} is a folder. Open it, and drop the pictures in it."),
        "nothing": translate(request, "Nothing was said yet; there is nothing to copy."),
        "lost": translate(request, "A picture did not get to the server. Add it again."),
    }
    notify(reasons[event.reason].replace("{name}", str(event.name)))
