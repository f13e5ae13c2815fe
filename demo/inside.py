"""The tab Inside: what the model was given for the last answer, where time went, and how sure it was."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from edgevlm.demo import markup
from edgevlm.demo.boxes import Box, Spelling, boxes, draw
from edgevlm.demo.browsers import browser_of
from edgevlm.demo.gradio_setup import INTERNAL, framed, gr, readable, refusal
from edgevlm.demo.language import label, say
from edgevlm.demo.model_pool import Models
from edgevlm.demo.streaming import Record
from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.images import load_image
from edgevlm.results import Prompt, PromptText, PromptTile, Stats

MAX_BROWSERS = 100
"""Browsers whose last answer is kept; the one that was longest without another goes first."""


class LastRecords:
    """The last answer of each browser, for a page that is loaded again; safe to use from many threads."""

    def __init__(self) -> None:
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._lock = threading.Lock()

    def keep(self, browser: str, record: Record) -> None:
        with self._lock:
            self._records[browser] = record
            self._records.move_to_end(browser)
            while len(self._records) > MAX_BROWSERS:
                self._records.popitem(last=False)

    def find(self, browser: str) -> Record | None:
        with self._lock:
            return self._records.get(browser)


def build(tab: gr.Tab, models: Models, record: gr.State) -> None:
    """Lay out the tab and connect it; `record` holds the `Record` of this page's last answer."""
    records = LastRecords()
    refresh = gr.Button(label("Show the last answer"), size="md", elem_id="inside-refresh")
    answer = gr.HTML(elem_id="inside-answer", js_on_load=markup.ANNOUNCED)
    with gr.Column(visible=False) as filled:
        with gr.Row():
            time = framed(label("Where time went"), "time")
            costs = framed(label("What it cost"), "costs")
        tokens = framed(label("How likely each token was"), "tokens")
        pointed = gr.HTML(visible=False, elem_id="pointed")
        with gr.Row():
            tiles = framed(label("What the model saw"), "tiles")
            parts = framed(label("Parts of the prompt"), "parts")
        prompt = framed(label("The prompt"), "prompt")

    def look(record: Record | None, request: gr.Request) -> tuple[Any, ...] | None:
        record = record or records.find(browser_of(request))
        if record is None:
            return None
        given, why = _given(models, record, request)
        found = pointing(record, models.usage(record.label).boxes)
        unfinished = markup.quiet(say(request, "The answer was stopped before its end."))
        stats = record.stats
        return (
            _said(record, request),
            gr.update(visible=True),
            markup.block(markup.waterfall(stats, request)) if stats else unfinished,
            markup.block(markup.table(facts(stats, request))) if stats else unfinished,
            _tokens(record, request),
            _pointed(found, request),
            _tiles(given, request) if given else markup.problem(why),
            markup.block(_parts(given, request)) if given else markup.problem(why),
            markup.block(markup.prompt(given.parts, request)) if given else markup.problem(why),
        )

    def asked(record: Record | None, request: gr.Request) -> tuple[Any, ...]:
        shown = look(record, request)
        if shown is None:
            raise refusal(nothing(request))
        return shown

    def opened(record: Record | None, request: gr.Request) -> tuple[Any, ...]:
        # Coming here before anything was asked is no mistake, so it is no notice either.
        empty = (markup.quiet(nothing(request)), gr.update(visible=False))
        return look(record, request) or (*empty, *(gr.skip() for _ in outputs[2:]))

    def kept(record: Record | None, request: gr.Request) -> None:
        if record is not None:
            records.keep(browser_of(request), record)

    outputs = [answer, filled, time, costs, tokens, pointed, tiles, parts, prompt]
    refresh.click(asked, [record], outputs, **INTERNAL)
    tab.select(opened, [record], outputs, **INTERNAL)
    record.change(kept, [record], None, **INTERNAL)


def nothing(request: gr.Request) -> str:
    return say(
        request,
        "Nothing was answered in this browser yet. Ask something under Chat, then come back.",
    )


def facts(stats: Stats, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Names and values."""
    return [
        (say(request, "first token"), markup.milliseconds(stats.first_token_ms, request, 1)),
        (say(request, "whole answer"), markup.milliseconds(stats.total_ms, request, 1)),
        (
            say(request, "tokens per second"),
            markup.number(stats.tokens_per_second, request, 1),
        ),
        (
            say(request, "tokens of the answer"),
            say(
                request,
                "{count}, {drafted} of them guessed ahead",
                count=stats.answer_tokens,
                drafted=stats.accepted_draft_tokens,
            ),
        ),
        (
            say(request, "tokens of the prompt"),
            say(
                request,
                "{count}, {cached} of them known from before",
                count=stats.prompt_tokens,
                cached=stats.cached_tokens,
            ),
        ),
        (
            say(request, "tiles of pictures"),
            say(
                request,
                "{encoded} encoded, {cached} known from before",
                encoded=stats.encoded_tiles,
                cached=stats.cached_tiles,
            ),
        ),
        (
            say(request, "most memory so far, all models together"),
            markup.size(stats.peak_memory, request),
        ),
        (say(request, "loading the model"), markup.milliseconds(stats.load_ms, request)),
    ]


def rows(prompt: Prompt, request: gr.Request | None = None) -> list[tuple[str, str]]:
    """Parts of a prompt and their tokens, and the sum."""
    listed = [
        (markup.tile_name(part, request), str(part.tokens))
        if isinstance(part, PromptTile)
        else (_short(part), str(len(part.token_ids)))
        for part in prompt.parts
    ]
    return [*listed, (say(request, "all"), str(prompt.tokens))]


def pointing(record: Record, spelling: Spelling) -> tuple[Image.Image, tuple[Box, ...]] | None:
    """The newest picture and the answer's boxes in it; None if there are none, or no picture.

    Args:
        spelling: how the model spells boxes.
    """
    found = boxes(record.text, spelling)
    sources = _pictures(record.messages)
    if not found or not sources:
        return None
    try:
        return Image.fromarray(load_image(sources[-1])), found
    except EdgeVLMError:  # it was deleted; that is said where the prompt would stand
        return None


def _given(models: Models, record: Record, request: gr.Request) -> tuple[Prompt | None, str]:
    """The prompt, or why it cannot be shown."""
    try:
        with models.lease(record.label) as loaded:
            return loaded.vlm.prompt(record.messages, **record.options), ""
    except EdgeVLMError as error:
        why = say(request, "The prompt cannot be shown: {why}", why=readable(error))
        return None, why


def _said(record: Record, request: gr.Request) -> str:
    """Question, answer and who answered."""
    question = "\n".join(_texts(record.messages[-1]))
    answer = record.text or say(request, "no answer")
    by = say(request, "answered by {model}", model=record.label)
    return markup.block(
        f'<div class="quiet question">{markup.escaped(question)}</div>' if question else "",
        f'<div class="answer">{markup.escaped(answer)}</div>',
        f'<div class="quiet">{markup.escaped(by)}</div>',
    )


def _pointed(found: tuple[Image.Image, tuple[Box, ...]] | None, request: gr.Request) -> Any:
    if found is None:
        return gr.update(value="", visible=False)
    shown = markup.figure(draw(*found), say(request, "Where the answer points"))
    return gr.update(value=markup.block(shown), visible=True)


def _texts(message: Mapping[str, Any]) -> list[str]:
    content = message["content"]
    if isinstance(content, str):
        return [content]
    return [part["text"] for part in content if part["type"] == "text"]


def _pictures(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [
        part["image"]
        for message in messages
        if not isinstance(message["content"], str)
        for part in message["content"]
        if part["type"] == "image"
    ]


def _tiles(prompt: Prompt, request: gr.Request) -> str:
    tiles = [part for part in prompt.parts if isinstance(part, PromptTile)]
    if not tiles:
        return markup.quiet(say(request, "There was no picture."))
    named = ((Image.fromarray(tile.pixels), markup.tile_name(tile, request)) for tile in tiles)
    figures = "".join(markup.figure(image, name) for image, name in named)
    return markup.block(f'<div class="tiles">{figures}</div>')


def _parts(prompt: Prompt, request: gr.Request) -> str:
    head = (say(request, "part"), say(request, "number of tokens"))
    return markup.table(rows(prompt, request), head, numbers=True)


def _short(part: PromptText) -> str:
    text = " ".join(part.text.split())
    return text if len(text) <= 60 else text[:59] + "…"


def _tokens(record: Record, request: gr.Request) -> str:
    if record.logprobs:
        return markup.block(markup.tokens(record.logprobs, request))
    if record.options.get("top_logprobs") is None:
        return markup.quiet(
            say(request, "Not kept. The settings under Chat can turn it on for the next answer.")
        )
    return markup.quiet(say(request, "The answer was stopped before its first token."))
