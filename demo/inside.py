"""The tab Inside: what the model was given for the last answer, where time went, and how sure it was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from edgevlm.demo import markup
from edgevlm.demo.answers import Record
from edgevlm.demo.models import Models
from edgevlm.demo.toolkit import INTERNAL, framed, gr, refusal
from edgevlm.errors import EdgeVLMError
from edgevlm.evaluation.judging import box
from edgevlm.images import load_image
from edgevlm.results import Prompt, PromptText, PromptTile, Stats

NOTHING = "Nothing was answered in this browser yet; ask something under Chat."


def build(tab: gr.Tab, models: Models, record: gr.State) -> None:
    """Lay out the tab and connect it; `record` holds the `Record` of the last answer."""
    again = gr.Button("Look again", size="md")
    answer = gr.HTML(markup.block(f'<div class="quiet">{NOTHING}</div>'), elem_id="inside-answer")
    with gr.Row():
        time = framed("Where time went", "time")
        costs = framed("What it cost", "costs")
    tokens = framed("How likely each token was (hover or tap for the others)", "tokens")
    pointed = gr.AnnotatedImage(
        label="What the answer points at",
        visible=False,
        height=360,
        color_map={"answer": "#e11d48"},
        elem_id="pointed",
    )
    with gr.Row():
        tiles = gr.Gallery(
            label="Tiles as they were cut",
            columns=4,
            fit_columns=False,
            height=320,
            object_fit="contain",
            interactive=False,
            buttons=["fullscreen"],
            format="png",
            elem_id="tiles",
            min_width=300,
        )
        parts = gr.Dataframe(
            headers=["part", "tokens"],
            datatype=["str", "number"],
            label="Tokens of each part",
            interactive=False,
            max_height=320,
            wrap=True,
            elem_id="parts",
            min_width=300,
        )
    prompt = framed("The prompt; frames mark where tiles stand, with their tokens", "prompt")

    def look(record: Record | None) -> tuple[Any, ...]:
        if record is None:
            raise gr.Error(NOTHING, print_exception=False, title="Nothing to show")
        try:
            with models.lease(record.label) as loaded:
                given = loaded.vlm.prompt(record.messages, **record.options)
        except EdgeVLMError as error:
            raise refusal(error) from error
        found = pointing(record)
        return (
            markup.block(f'<div class="answer">{markup.escaped(record.text)}</div>'),
            markup.block(markup.waterfall(record.stats)) if record.stats else _unfinished(),
            markup.block(markup.table(facts(record.stats))) if record.stats else _unfinished(),
            _tokens(record),
            gr.update(value=found, visible=found is not None),
            [(part.pixels, markup.tile_name(part)) for part in _tiles(given)],
            rows(given),
            markup.block(markup.prompt(given.parts)),
        )

    outputs = [answer, time, costs, tokens, pointed, tiles, parts, prompt]
    again.click(look, [record], outputs, **INTERNAL)
    # Coming here before anything was asked is no mistake, so it is no message either.
    tab.select(
        lambda record: look(record) if record is not None else tuple(gr.skip() for _ in outputs),
        [record],
        outputs,
        **INTERNAL,
    )


def facts(stats: Stats) -> list[tuple[str, str]]:
    """Names and values."""
    peak = markup.size(stats.peak_memory)
    return [
        ("first token", f"{stats.first_token_ms:,.1f} ms"),
        ("whole answer", f"{stats.total_ms:,.1f} ms"),
        ("tokens per second", f"{stats.tokens_per_second:,.1f}"),
        ("tokens of the answer", f"{stats.answer_tokens}, {stats.drafted_tokens} of them drafted"),
        ("positions of the prompt", f"{stats.prompt_tokens}, {stats.cached_tokens} of them cached"),
        ("tiles", f"{stats.encoded_tiles} encoded, {stats.cached_tiles} cached"),
        ("memory at most", f"{peak}, all loaded models together"),
        ("loading the model", f"{stats.load_ms:,.0f} ms"),
    ]


def rows(prompt: Prompt) -> list[list[Any]]:
    """Parts of a prompt and their tokens, and the sum."""
    listed: list[list[Any]] = []
    for part in prompt.parts:
        if isinstance(part, PromptTile):
            listed.append([markup.tile_name(part), part.tokens])
        else:
            listed.append([_short(part), len(part.token_ids)])
    return [*listed, ["all", prompt.tokens]]


def pointing(record: Record) -> tuple[Any, list[Any]] | None:
    """The newest picture and the box of the answer in it; None if the answer has none.

    A box is ``[left, top, right, bottom]`` in percent of the picture's sides.
    """
    found = box(record.text)
    sources = _pictures(record)
    if found is None or not sources or min(found) < 0 or max(found) > 100:
        return None
    picture = load_image(sources[-1])
    height, width = picture.shape[:2]
    left, top, right, bottom = (
        round(value / 100 * side) for value, side in zip(found, (width, height) * 2, strict=True)
    )
    return Image.fromarray(picture), [((left, top, right, bottom), "answer")]


def _pictures(record: Record) -> Sequence[str]:
    return [
        part["image"]
        for message in record.messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def _tiles(prompt: Prompt) -> list[PromptTile]:
    return [part for part in prompt.parts if isinstance(part, PromptTile)]


def _short(part: PromptText) -> str:
    text = " ".join(part.text.split())
    return text if len(text) <= 60 else text[:59] + "…"


def _tokens(record: Record) -> str:
    if record.logprobs:
        return markup.block(markup.tokens(record.logprobs))
    why = "not kept; see the settings under Chat"
    return markup.block(f'<div class="quiet">{why}</div>')


def _unfinished() -> str:
    return markup.block('<div class="quiet">stopped before its end</div>')
