"""The tab Inside: prompt, time and token probabilities of the last answer."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from edgevlm.boxes import Box, Point
from edgevlm.demo import markup
from edgevlm.demo.browsers import browser_of
from edgevlm.demo.gradio_setup import INTERNAL, error_text, gr, labelled_html, page_error
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.streaming import AnswerRecord
from edgevlm.drawing import draw_locations
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.images import load_image
from edgevlm.results import Prompt, PromptText, PromptTile, Stats

MAX_BROWSERS = 100
"""Limit of browsers whose last answer is kept; the least recent answer is dropped first."""


class LastAnswers:
    """The last answer of each browser, for a page that is loaded again. All methods are thread-safe."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, AnswerRecord] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, browser: str, record: AnswerRecord) -> None:
        """Remember the last answer of a browser."""
        with self._lock:
            self._records[browser] = record
            self._records.move_to_end(browser)
            while len(self._records) > MAX_BROWSERS:
                self._records.popitem(last=False)

    def find(self, browser: str) -> AnswerRecord | None:
        """Return the last answer of a browser; None if there is none."""
        with self._lock:
            return self._records.get(browser)


def build(tab: gr.Tab, models: ModelPool, record: gr.State) -> None:
    """Lay out the tab and connect its events.

    Args:
        tab: the tab; it is filled when it is opened.
        models: the models that the page offers.
        record: state with the `AnswerRecord` of the page's last answer.
    """
    records = LastAnswers()
    refresh = gr.Button(label("Show the last answer"), size="md", elem_id="inside-refresh")
    answer = gr.HTML(elem_id="inside-answer", js_on_load=markup.ANNOUNCED)
    with gr.Column(visible=False) as filled:
        with gr.Row():
            time = labelled_html(label("Where time went"), "time")
            costs = labelled_html(label("What it cost"), "costs")
        tokens = labelled_html(label("How likely each token was"), "tokens")
        pointed = gr.HTML(visible=False, elem_id="pointed")
        with gr.Row():
            tiles = labelled_html(label("What the model saw"), "tiles")
            parts = labelled_html(label("Parts of the prompt"), "parts")
        prompt = labelled_html(label("The prompt"), "prompt")

    def show(record: AnswerRecord | None, request: gr.Request) -> tuple[Any, ...] | None:
        record = record or records.find(browser_of(request))
        if record is None:
            return None
        prompt_found, why = _prompt(models, record, request)
        found = locations_on_image(record)
        unfinished = markup.quiet(translate(request, "The answer was stopped before its end."))
        stats = record.stats
        return (
            _exchange(record, request),
            gr.update(visible=True),
            markup.block(markup.waterfall(stats, request)) if stats else unfinished,
            markup.block(markup.table(facts(stats, request))) if stats else unfinished,
            _tokens(record, request),
            _pointed(found, request),
            _tiles(prompt_found, request) if prompt_found else markup.problem(why),
            markup.block(_parts(prompt_found, request)) if prompt_found else markup.problem(why),
            markup.block(markup.prompt(prompt_found.parts, request))
            if prompt_found
            else markup.problem(why),
        )

    def refresh_tab(record: AnswerRecord | None, request: gr.Request) -> tuple[Any, ...]:
        shown = show(record, request)
        if shown is None:
            raise page_error(nothing_answered(request))
        return shown

    def open_tab(record: AnswerRecord | None, request: gr.Request) -> tuple[Any, ...]:
        # No answer yet is no error here, so show no notice.
        empty = (markup.quiet(nothing_answered(request)), gr.update(visible=False))
        return show(record, request) or (*empty, *(gr.skip() for _ in outputs[2:]))

    def keep(record: AnswerRecord | None, request: gr.Request) -> None:
        if record is not None:
            records.keep(browser_of(request), record)

    outputs = [answer, filled, time, costs, tokens, pointed, tiles, parts, prompt]
    refresh.click(refresh_tab, [record], outputs, **INTERNAL)
    tab.select(open_tab, [record], outputs, **INTERNAL)
    record.change(keep, [record], None, **INTERNAL)


def nothing_answered(request: gr.Request) -> str:
    """Return the text for a browser without answers."""
    return translate(
        request,
        "Nothing was answered in this browser yet. Ask something under Chat, then come back.",
    )


def facts(stats: Stats, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Return names and values of the table of costs."""
    return [
        (translate(request, "first token"), markup.milliseconds(stats.first_token_ms, request, 1)),
        (translate(request, "whole answer"), markup.milliseconds(stats.total_ms, request, 1)),
        (
            translate(request, "tokens per second"),
            markup.number(stats.tokens_per_second, request, 1),
        ),
        (
            translate(request, "tokens of the answer"),
            translate(
                request,
                "{count}, {drafted} of them guessed ahead",
                count=stats.answer_tokens,
                drafted=stats.accepted_draft_tokens,
            ),
        ),
        (
            translate(request, "tokens of the prompt"),
            translate(
                request,
                "{count}, {cached} of them known from before",
                count=stats.prompt_tokens,
                cached=stats.cached_tokens,
            ),
        ),
        (
            translate(request, "tiles of pictures"),
            translate(
                request,
                "{encoded} encoded, {cached} known from before",
                encoded=stats.encoded_tiles,
                cached=stats.cached_tiles,
            ),
        ),
        (
            translate(request, "most memory so far, all models together"),
            markup.size(stats.peak_memory, request),
        ),
        (translate(request, "loading the model"), markup.milliseconds(stats.load_ms, request)),
    ]


def prompt_rows(prompt: Prompt, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Return the parts of a prompt with their numbers of tokens, and the sum."""
    listed = [
        (markup.tile_name(part, request), str(part.tokens))
        if isinstance(part, PromptTile)
        else (_short(part), str(len(part.token_ids)))
        for part in prompt.parts
    ]
    return [*listed, (translate(request, "all"), str(prompt.tokens))]


def locations_on_image(
    record: AnswerRecord,
) -> tuple[Image.Image, tuple[Box | Point, ...]] | None:
    """Return the last image, with boxes and points of the answer; None if there are none, or no image."""
    if not record.locations:
        return None
    try:
        return Image.fromarray(load_image(_images(record.messages)[-1])), record.locations
    except EdgeVLMError:  # it was deleted; the message is shown instead of the prompt
        return None


def _prompt(
    models: ModelPool, record: AnswerRecord, request: gr.Request
) -> tuple[Prompt | None, str]:
    """Return the prompt, or None and the reason why it cannot be shown."""
    try:
        with models.acquire(record.label) as loaded:
            return loaded.vlm.prompt(record.messages, **record.options), ""
    except EdgeVLMError as error:
        why = translate(request, "The prompt cannot be shown: {why}", why=error_text(error))
        return None, why


def _exchange(record: AnswerRecord, request: gr.Request) -> str:
    """Return the question, the answer and the name of the model as HTML."""
    question = "\n".join(_texts(record.messages[-1]))
    answer = record.text or translate(request, "no answer")
    by = translate(request, "answered by {model}", model=record.label)
    return markup.block(
        f'<div class="quiet question">{markup.escaped(question)}</div>' if question else "",
        f'<div class="answer">{markup.escaped(answer)}</div>',
        f'<div class="quiet">{markup.escaped(by)}</div>',
    )


def _pointed(found: tuple[Image.Image, tuple[Box | Point, ...]] | None, request: gr.Request) -> Any:
    if found is None:
        return gr.update(value="", visible=False)
    shown = markup.figure(draw_locations(*found), translate(request, "Where the answer points"))
    return gr.update(value=markup.block(shown), visible=True)


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _images(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def _tiles(prompt: Prompt, request: gr.Request) -> str:
    # A tile whose lines stand in the prompt by themselves has several parts.
    tiles = {(part.image, part.tile): part for part in prompt.parts if isinstance(part, PromptTile)}
    if not tiles:
        return markup.quiet(translate(request, "There was no picture."))
    named = (
        (Image.fromarray(tile.pixels), markup.tile_name(tile, request)) for tile in tiles.values()
    )
    figures = "".join(markup.figure(image, name) for image, name in named)
    return markup.block(f'<div class="tiles">{figures}</div>')


def _parts(prompt: Prompt, request: gr.Request) -> str:
    head = (translate(request, "part"), translate(request, "number of tokens"))
    return markup.table(prompt_rows(prompt, request), head, numbers=True)


def _short(part: PromptText) -> str:
    text = " ".join(part.text.split())
    return text if len(text) <= 60 else text[:59] + "…"


def _tokens(record: AnswerRecord, request: gr.Request) -> str:
    if record.logprobs:
        return markup.block(markup.tokens(record.logprobs, request))
    if record.options.get("top_logprobs") is None:
        return markup.quiet(
            translate(
                request, "Not kept. The settings under Chat can turn it on for the next answer."
            )
        )
    return markup.quiet(translate(request, "The answer was stopped before its first token."))
