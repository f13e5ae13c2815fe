"""The tab Compare: two answers to one question, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.demo import attachments, markup
from edgevlm.demo.answer_settings import (
    MODEL_DEFAULT,
    detail_choices,
    detail_name,
    parse_detail,
)
from edgevlm.demo.comparison import SideResult, SideSettings, State, compare
from edgevlm.demo.gradio_setup import (
    INTERNAL,
    error_text,
    gr,
    notify,
    page_error,
    session_of,
    update_choices,
)
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.streaming import ActiveStreams
from edgevlm.drawing import draw_locations
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.images import load_image
from edgevlm.options import Generation, GenerationOptions

RIGHT_TEMPERATURE = 0.7
"""Temperature of the right side at first, so that a single model gives two answers to compare."""


def image_input(**options: Any) -> gr.Image:
    """Lay out Gradio's field for an image so that it passes on the path of the original file.

    Gradio itself decodes the file first, and fails without a message if it cannot.
    """
    field = gr.Image(type="filepath", **options)

    def path(payload: Any) -> Any:
        return None if payload is None else payload.path

    # Not in a subclass: Gradio writes a stub file beside the module of each subclass.
    field.preprocess = path  # type: ignore[method-assign]  # of this object alone
    return field


def build(
    page: gr.Blocks,
    tab: gr.Tab,
    models: ModelPool,
    streams: ActiveStreams,
    chosen: gr.State,
    defaults: GenerationOptions,
) -> None:
    """Lay out the tab and connect its events; arguments as for `edgevlm.demo.chat.build`."""
    with gr.Row():
        image = image_input(
            sources=["upload", "clipboard"],
            label=label("Picture"),
            height=260,
            buttons=["fullscreen"],
            elem_id="compare-picture",
        )
        with gr.Column():
            question = gr.Textbox(label=label("Question"), elem_id="compare-question")
            with gr.Row():
                start = gr.Button(
                    label("Ask both"), variant="primary", min_width=100, elem_id="compare-start"
                )
                stop = gr.Button(
                    label("Stop"), min_width=100, interactive=False, elem_id="compare-stop"
                )
    own_temperature = defaults.get("temperature", Generation.temperature)
    with gr.Row(elem_id="compare-sides"):
        with gr.Column(min_width=300):
            left = _controls(label("Left model"), "left", own_temperature)
            left_answer = gr.HTML(elem_id="left", js_on_load=markup.ANNOUNCED)
        with gr.Column(min_width=300):
            right = _controls(label("Right model"), "right", own_temperature or RIGHT_TEMPERATURE)
            right_answer = gr.HTML(elem_id="right", js_on_load=markup.ANNOUNCED)
    table = gr.HTML(elem_id="compared")

    def list_models(
        left: str | None, right: str | None, chosen: str | None
    ) -> Iterator[tuple[Any, Any]]:
        """Yield the models whose files are good, until all are checked."""
        shown: list[str] | None = None
        while True:
            entries = models.entries()
            labels = [entry.label for entry in entries if entry.usable]
            first, left = update_choices(labels, left, chosen)
            second, right = update_choices(labels, right, chosen)
            if labels == shown:
                first = second = gr.skip()  # an update would move the focus in an open list
            shown = labels
            yield first, second
            if all(entry.usable or entry.problem is not None for entry in entries):
                break
            models.checks.wait(1.0)
        yield gr.skip(), gr.skip()  # Gradio applies the last update again when the event ends

    def ask(
        image: str | None, question: str, request: gr.Request, *controls: Any
    ) -> Iterator[tuple[Any, ...]]:
        middle = len(controls) // 2
        sides = controls[:middle], controls[middle:]
        settings = [read_settings(side, request) for side in sides]
        session = "compare " + session_of(request)
        shown = load_shown_image(image)
        try:
            results = compare(models, streams, session, image, question, settings, defaults)
            for result in results:
                yield (*view(result, shown, request), *_buttons(running=True))
        except EdgeVLMError as error:
            raise page_error(error) from error

    def stop_answers(request: gr.Request) -> None:
        streams.stop("compare " + session_of(request))

    def show_image(path: str | None, request: gr.Request) -> Any:
        """Show the image as the model sees it."""
        if path is None:
            return gr.skip()
        try:
            (attachment,) = attachments.read([path])
        except EdgeVLMError as error:
            notify(error_text(error))
            return None
        attachments.notify_frames(attachment, Path(path).name, request)
        return gr.skip() if attachment.path == path else attachment.path

    def translate_components(request: gr.Request) -> tuple[Any, ...]:
        """Update the texts that Gradio does not translate."""
        update = gr.update(
            choices=detail_choices(request), value=defaults.get("detail") or MODEL_DEFAULT
        )
        return translate(request, "What is in the picture?"), update, update

    page.load(translate_components, None, [question, left[2], right[2]], **INTERNAL)
    tab.select(list_models, [left[0], right[0], chosen], [left[0], right[0]], **INTERNAL)
    image.input(show_image, [image], [image], **INTERNAL)
    answering = gr.on(
        [start.click, question.submit],
        ask,
        [image, question, *left, *right],
        [left_answer, right_answer, table, start, stop],
        concurrency_limit=None,
        **INTERNAL,
    )
    answering.then(lambda: _buttons(running=False), None, [start, stop], **INTERNAL)
    stop.click(stop_answers, None, None, **INTERNAL)


def read_settings(controls: Sequence[Any], request: gr.Request) -> SideSettings:
    """Return the settings of one side from the values of `_controls`.

    Raises:
        gr.Error: no model is chosen.
    """
    model, temperature, detail, system = controls
    if model is None:
        raise page_error(translate(request, "Choose a model on both sides."))
    return SideSettings(model, float(temperature), parse_detail(detail), system)


def load_shown_image(path: str | None) -> Image.Image | None:
    """Load the image to draw boxes on; None if there is none or it cannot be read."""
    if path is None:
        return None
    try:
        return Image.fromarray(load_image(path))
    except EdgeVLMError:
        return None


def view(
    sides: Sequence[SideResult],
    image: Image.Image | None = None,
    request: gr.Request | None = None,
) -> tuple[str, str, str]:
    """Return both answers and the table of facts as HTML. Mark different words when both are complete.

    Args:
        sides: the left and the right side.
        image: the image on which boxes of an answer are drawn.
        request: the page's request, for its language.
    """
    left, right = sides
    texts = markup.escaped(left.text), markup.escaped(right.text)
    if left.stats and right.stats:
        texts = markup.mark_differences(left.text, right.text)
    answers = []
    for side, text in zip(sides, texts, strict=True):
        drawn = ""
        if image is not None and side.locations:
            drawn = markup.image_tag(
                draw_locations(image, side.locations), translate(request, "Where the answer points")
            )
        problem = (
            f'<div class="problem">{markup.escaped(side.problem)}</div>' if side.problem else ""
        )
        state = markup.escaped(state_name(side.state, request))
        answers.append(
            markup.block(
                f'<div class="answer">{text}</div>{drawn}{problem}<div class="quiet">{state}</div>'
            )
        )
    names = [side.settings.label for side in sides]
    rows = [
        (name, a, b)
        for (name, a), (_, b) in zip(facts(left, request), facts(right, request), strict=True)
    ]
    head = (
        "",
        f"{translate(request, 'left')}: {names[0]}",
        f"{translate(request, 'right')}: {names[1]}",
    )
    return answers[0], answers[1], markup.block(markup.table(rows, head))


def state_name(state: State, request: gr.Request | None = None) -> str:
    """Return a state in words; empty for ``done``."""
    return {
        "waiting": translate(request, "waits for the left side"),
        "loading": translate(request, "loading the model …"),
        "answering": translate(request, "answering …"),
        "done": "",
        "stopped": translate(request, "stopped"),
        "failed": translate(request, "could not answer"),
    }[state]


def facts(side: SideResult, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Return names and values of the table. Values of the answer are empty until it is complete."""
    stats, settings = side.stats, side.settings
    settings_facts: list[tuple[str, str]] = [
        (translate(request, "temperature"), markup.number(settings.temperature, request, 2)),
        (translate(request, "detail of pictures"), detail_name(settings.detail, request)),
        (
            translate(request, "system prompt"),
            settings.system.strip() or translate(request, "none"),
        ),
    ]
    names = (
        translate(request, "first token"),
        translate(request, "whole answer"),
        translate(request, "tokens per second"),
        translate(request, "tokens of the answer"),
        translate(request, "tokens known from before"),
        translate(request, "loading the model"),
        translate(request, "size on disk"),
        translate(request, "memory for loading it"),
    )
    if stats is None:
        return [*settings_facts, *((name, "") for name in names)]
    values = (
        markup.milliseconds(stats.first_token_ms, request),
        markup.milliseconds(stats.total_ms, request),
        markup.number(stats.tokens_per_second, request),
        markup.number(stats.answer_tokens, request),
        markup.number(stats.cached_tokens, request),
        markup.milliseconds(stats.load_ms, request),
        markup.size(side.disk, request),
        markup.size(side.memory, request),
    )
    return [*settings_facts, *zip(names, values, strict=True)]


def _controls(name: Any, side: str, temperature: float) -> list[Any]:
    """Lay out model, temperature, detail and system prompt of one side."""
    model = gr.Dropdown([], label=name, filterable=False, elem_id=f"{side}-model")
    slider = gr.Slider(
        0,
        2,
        temperature,
        step=0.05,
        label=label("Temperature"),
        info=label("0 takes the most likely token each time"),
        elem_id=f"{side}-temperature",
    )
    with gr.Accordion(label("More settings"), open=False, elem_id=f"{side}-settings"):
        detail = gr.Dropdown(
            [MODEL_DEFAULT],
            value=MODEL_DEFAULT,
            filterable=False,
            label=label("Detail of pictures"),
            info=label("for models that split pictures into tiles"),
            elem_id=f"{side}-detail",
        )
        system = gr.Textbox("", label=label("System prompt"), elem_id=f"{side}-system")
    return [model, slider, detail, system]


def _buttons(running: bool) -> tuple[Any, Any]:
    """Return updates of the buttons to ask and to stop."""
    return gr.update(interactive=not running), gr.update(interactive=running)
