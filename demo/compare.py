"""The tab Compare: one question to two models, or to one model in two ways, side by side."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from PIL import Image

from edgevlm import Detail
from edgevlm.demo import markup
from edgevlm.demo.attachments import checked
from edgevlm.demo.boxes import boxes, draw
from edgevlm.demo.conversation import as_message, user_turn
from edgevlm.demo.gradio_setup import INTERNAL, choices, gr, readable, refusal, session_of, tell
from edgevlm.demo.language import label, say
from edgevlm.demo.model_pool import Models, Offer
from edgevlm.demo.streaming import AnswerStream, Running
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import system_messages
from edgevlm.options import Generation, GenerationOptions
from edgevlm.results import Stats

FREE_TEMPERATURE = 0.7
"""Of the right side at first, so that there is something to compare with a single model, too."""

MODELS_OWN = "default"
"""The detail that a model was made for, in the list of details."""

State = Literal["waiting", "loading", "answering", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Setting:
    """Who answers, and how."""

    label: str
    """Of the model, as `Models` offers it."""
    temperature: float = 0.0
    detail: Detail | None = None
    system: str = ""


@dataclass(frozen=True)
class Side:
    """What came of one setting."""

    setting: Setting
    state: State = "waiting"
    text: str = ""
    stats: Stats | None = None
    disk: int | None = None
    memory: int | None = None
    problem: str | None = None


def picture_input(**options: Any) -> gr.Image:
    """Gradio's field for a picture, which hands over the file's path as it came.

    Gradio itself would decode the file first, and answer one that it cannot decode with an error without
    words. A subclass would be the usual way, but Gradio writes a file beside the module of each.
    """
    field = gr.Image(type="filepath", **options)

    def path(payload: Any) -> Any:
        return None if payload is None else payload.path

    # Of this one: Gradio writes a stub file beside a module that has a subclass.
    field.preprocess = path  # type: ignore[method-assign]
    return field


def differ(settings: Sequence[Setting], models: Models, picture: bool, fixed_seed: bool) -> bool:
    """Whether two settings can lead to two answers.

    Args:
        picture: whether there is one, which the detail is about.
        fixed_seed: whether chance is the same on both sides.
    """
    left, right = settings
    if left.label != right.label or left.system.strip() != right.system.strip():
        return True
    if left.temperature != right.temperature or (left.temperature > 0 and not fixed_seed):
        return True
    bundle = models.find(left.label).bundle
    tiled = bundle is not None and bundle.manifest.image.strategy == "grid"
    return picture and tiled and left.detail != right.detail


def compare(
    models: Models,
    running: Running,
    session: str,
    picture: str | None,
    question: str,
    settings: Sequence[Setting],
    defaults: GenerationOptions,
) -> Iterator[list[Side]]:
    """Both sides while their answers grow, one after the other, so that neither takes time from the other.

    An error ends the side that it comes from; to stop ends both.

    Raises:
        EdgeVLMError: no question, or two settings that cannot lead to two answers.
    """
    message = as_message(user_turn(question, [picture] if picture else []))
    if not message["content"]:
        raise InputError("the question is empty; write one or add a picture")
    seed = defaults.get("seed")
    if not differ(settings, models, picture is not None, seed is not None):
        raise InputError(
            "both sides would give the same answer; choose another model, temperature or system prompt "
            "on one side"
        )
    sides = [Side(setting) for setting in settings]
    for at, setting in enumerate(settings):
        options: GenerationOptions = {
            **defaults,
            "temperature": setting.temperature,
            "detail": setting.detail,
        }
        if setting.temperature > 0 and seed is None:
            options["seed"] = secrets.randbelow(2**31)
        system = setting.system if setting.system.strip() else None
        messages = [*system_messages(system), message]
        sides[at] = replace(
            sides[at], state="answering" if models.is_loaded(setting.label) else "loading"
        )
        stream = AnswerStream(models, setting.label, messages, options)
        running.begin(session, stream)
        yield list(sides)
        try:
            for chunk in stream:
                side = replace(sides[at], state="answering", text=sides[at].text + chunk.text)
                if chunk.stats is not None:
                    with models.lease(setting.label) as loaded:
                        disk, memory = loaded.disk, loaded.memory
                    side = replace(side, state="done", stats=chunk.stats, disk=disk, memory=memory)
                sides[at] = side
                yield list(sides)
        except Exception as error:  # whatever it is, the other side goes on
            sides[at] = replace(sides[at], state="failed", problem=readable(error))
            yield list(sides)
            continue
        if sides[at].stats is None:
            yield [
                side if side.state in ("done", "failed") else replace(side, state="stopped")
                for side in sides
            ]
            return


def build(
    page: gr.Blocks,
    tab: gr.Tab,
    models: Models,
    running: Running,
    chosen: gr.State,
    defaults: GenerationOptions,
) -> None:
    """Lay out the tab and connect it; arguments as in `edgevlm.demo.chat.build`."""
    with gr.Row():
        picture = picture_input(
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
            right = _controls(label("Right model"), "right", own_temperature or FREE_TEMPERATURE)
            right_answer = gr.HTML(elem_id="right", js_on_load=markup.ANNOUNCED)
    table = gr.HTML(elem_id="compared")

    def listed(
        left: str | None, right: str | None, chosen: str | None
    ) -> Iterator[tuple[Any, Any]]:
        """The models that are known to be whole, again and again until every one is checked."""
        offered: list[str] | None = None
        while True:
            offers = models.offers()
            labels = [offer.label for offer in offers if usable(offer)]
            first, left = choices(labels, left, chosen)
            second, right = choices(labels, right, chosen)
            if labels == offered:
                first = second = gr.skip()  # it would move what the keyboard is at in an open list
            offered = labels
            yield first, second
            if all(usable(offer) or offer.problem is not None for offer in offers):
                break
            models.checks.wait(1.0)
        yield gr.skip(), gr.skip()  # Gradio shows the last one again when the event ends

    def asked(
        picture: str | None, question: str, request: gr.Request, *controls: Any
    ) -> Iterator[tuple[Any, ...]]:
        half = len(controls) // 2
        settings = [setting_of(controls[:half], request), setting_of(controls[half:], request)]
        session = "compare " + session_of(request)
        shown = load_picture(picture)
        try:
            for sides in compare(models, running, session, picture, question, settings, defaults):
                yield (*view(sides, models, shown, request), *_buttons(going_on=True))
        except EdgeVLMError as error:
            raise refusal(error) from error

    def stopped(request: gr.Request) -> None:
        running.stop("compare " + session_of(request))

    def given(path: str | None, request: gr.Request) -> Any:
        """The picture as the model sees it, which a browser can show."""
        if path is None:
            return gr.skip()
        try:
            (attachment,) = checked([path])
        except EdgeVLMError as error:
            tell(readable(error))
            return None
        if attachment.frames > 1:
            tell(
                say(
                    request,
                    "{name} has {count} frames or pages. The model sees the first one.",
                    name=Path(path).name,
                    count=attachment.frames,
                )
            )
        return gr.skip() if attachment.path == path else attachment.path

    def spoken(request: gr.Request) -> tuple[Any, ...]:
        """What can only be said in the page's language once it is loaded."""
        details = [
            (detail_name(None, request), MODELS_OWN),
            (detail_name("low", request), "low"),
            (detail_name("high", request), "high"),
            (detail_name("auto", request), "auto"),
        ]
        update = gr.update(choices=details, value=defaults.get("detail") or MODELS_OWN)
        return say(request, "What is in the picture?"), update, update

    page.load(spoken, None, [question, left[2], right[2]], **INTERNAL)
    tab.select(listed, [left[0], right[0], chosen], [left[0], right[0]], **INTERNAL)
    picture.input(given, [picture], [picture], **INTERNAL)
    answering = gr.on(
        [start.click, question.submit],
        asked,
        [picture, question, *left, *right],
        [left_answer, right_answer, table, start, stop],
        concurrency_limit=None,
        **INTERNAL,
    )
    answering.then(lambda: _buttons(going_on=False), None, [start, stop], **INTERNAL)
    stop.click(stopped, None, None, **INTERNAL)


def usable(offer: Offer) -> bool:
    """Whether a model is known to be whole."""
    return offer.checked and offer.problem is None


def setting_of(controls: Sequence[Any], request: gr.Request) -> Setting:
    """One side's controls, in the order of `_controls`.

    Raises:
        gr.Error: no model is chosen.
    """
    model, temperature, detail, system = controls
    if model is None:
        raise refusal(say(request, "Choose a model on both sides."))
    own = None if detail in (None, MODELS_OWN) else cast("Detail", detail)
    return Setting(model, float(temperature), own, system)


def load_picture(path: str | None) -> Image.Image | None:
    """To draw boxes on; None if there is none, or it cannot be read, which both sides will say."""
    if path is None:
        return None
    try:
        return Image.fromarray(load_image(path))
    except EdgeVLMError:
        return None


def view(
    sides: Sequence[Side],
    models: Models,
    picture: Image.Image | None = None,
    request: gr.Request | None = None,
) -> tuple[str, str, str]:
    """Both answers, with the words that differ marked once both are there, and the table, as HTML.

    Args:
        picture: where the boxes of an answer are drawn.
    """
    left, right = sides
    texts = markup.escaped(left.text), markup.escaped(right.text)
    if left.stats and right.stats:
        texts = markup.differing(left.text, right.text)
    answers = []
    for side, text in zip(sides, texts, strict=True):
        drawn = ""
        found = boxes(side.text, models.usage(side.setting.label).boxes) if side.stats else ()
        if picture is not None and found:
            drawn = markup.picture(draw(picture, found), say(request, "Where the answer points"))
        problem = (
            f'<div class="problem">{markup.escaped(side.problem)}</div>' if side.problem else ""
        )
        state = markup.escaped(state_name(side.state, request))
        answers.append(
            markup.block(
                f'<div class="answer">{text}</div>{drawn}{problem}<div class="quiet">{state}</div>'
            )
        )
    names = [side.setting.label for side in sides]
    rows = [
        (name, a, b)
        for (name, a), (_, b) in zip(facts(left, request), facts(right, request), strict=True)
    ]
    head = ("", f"{say(request, 'left')}: {names[0]}", f"{say(request, 'right')}: {names[1]}")
    return answers[0], answers[1], markup.block(markup.table(rows, head))


def state_name(state: State, request: gr.Request | None = None) -> str:
    return {
        "waiting": say(request, "waits for the left side"),
        "loading": say(request, "loading the model …"),
        "answering": say(request, "answering …"),
        "done": "",
        "stopped": say(request, "stopped"),
        "failed": say(request, "could not answer"),
    }[state]


def detail_name(detail: Detail | None, request: gr.Request | None = None) -> str:
    if detail is None:
        return say(request, "the model's usual")
    return {
        "low": say(request, "low"),
        "high": say(request, "high"),
        "auto": say(request, "automatic"),
    }[detail]


def facts(side: Side, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Names and values; those of the answer are empty as long as it is not there."""
    stats, setting = side.stats, side.setting
    given: list[tuple[str, str]] = [
        (say(request, "temperature"), markup.number(setting.temperature, request, 2)),
        (say(request, "detail of pictures"), detail_name(setting.detail, request)),
        (say(request, "system prompt"), setting.system.strip() or say(request, "none")),
    ]
    names = (
        say(request, "first token"),
        say(request, "whole answer"),
        say(request, "tokens per second"),
        say(request, "tokens of the answer"),
        say(request, "tokens known from before"),
        say(request, "loading the model"),
        say(request, "size on disk"),
        say(request, "memory for loading it"),
    )
    if stats is None:
        return [*given, *((name, "") for name in names)]
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
    return [*given, *zip(names, values, strict=True)]


def _controls(name: Any, side: str, temperature: float) -> list[Any]:
    """Model, temperature, detail and system prompt of one side."""
    model = gr.Dropdown([], label=name, filterable=False, elem_id=f"{side}-model")
    heat = gr.Slider(
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
            [MODELS_OWN],
            value=MODELS_OWN,
            filterable=False,
            label=label("Detail of pictures"),
            info=label("for models that split pictures into tiles"),
            elem_id=f"{side}-detail",
        )
        system = gr.Textbox("", label=label("System prompt"), elem_id=f"{side}-system")
    return [model, heat, detail, system]


def _buttons(going_on: bool) -> tuple[Any, Any]:
    """Those to ask and to stop."""
    return gr.update(interactive=not going_on), gr.update(interactive=going_on)
