"""The tab Compare: one question to two models, or to two precisions of one, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.demo import markup
from edgevlm.demo.answers import AnswerStream, Running
from edgevlm.demo.conversation import as_message, user_turn
from edgevlm.demo.models import Models
from edgevlm.demo.toolkit import INTERNAL, framed, gr, refusal, session_of
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.generation import GenerationOptions
from edgevlm.results import Stats


@dataclass(frozen=True)
class Side:
    """One model's part."""

    label: str
    text: str = ""
    stats: Stats | None = None
    disk: int | None = None
    memory: int | None = None


def compare(
    models: Models,
    running: Running,
    session: str,
    picture: str | None,
    question: str,
    labels: Sequence[str],
    options: GenerationOptions,
) -> Iterator[list[Side]]:
    """Both sides while their answers grow, one after the other, so that neither takes time from the other.

    Raises:
        EdgeVLMError: whatever a model says against the request.
    """
    message = as_message(user_turn(question, [picture] if picture else []))
    if not message["content"]:
        raise InputError("the question is empty; write one or add a picture")
    sides = [Side(label) for label in labels]
    for at, label in enumerate(labels):
        with models.lease(label) as loaded:
            disk, memory = loaded.disk, loaded.memory
            stream = AnswerStream(models, label, [message], options)
            running.begin(session, stream)
            for chunk in stream:
                text = sides[at].text + chunk.text
                sides[at] = Side(label, text, chunk.stats, disk, memory)
                yield list(sides)
            if sides[at].stats is None:
                return  # stopped


def build(
    tab: gr.Tab, models: Models, running: Running, chosen: gr.State, defaults: GenerationOptions
) -> None:
    """Lay out the tab and connect it; arguments as in `edgevlm.demo.chat.build`."""
    with gr.Row():
        picture = gr.Image(
            sources=["upload", "clipboard", "webcam"],
            type="filepath",
            label="Picture",
            height=260,
            buttons=["fullscreen"],
            webcam_options=gr.WebcamOptions(mirror=False),
            elem_id="compare-picture",
        )
        with gr.Column():
            question = gr.Textbox("What is in the picture?", label="Question")
            first = gr.Dropdown([], label="Left", filterable=False, elem_id="left-model")
            second = gr.Dropdown([], label="Right", filterable=False, elem_id="right-model")
            with gr.Row():
                start = gr.Button("Ask both", variant="primary", size="md", min_width=100)
                stop = gr.Button("Stop", size="md", min_width=100)
    with gr.Row():
        left = framed("Left", "left")
        right = framed("Right", "right")
    table = gr.HTML(elem_id="compared")

    def listed(left: str | None, right: str | None, chosen: str | None) -> tuple[Any, Any]:
        labels = [offer.label for offer in models.offers() if offer.problem is None]
        left = left if left in labels else chosen if chosen in labels else None
        others = [label for label in labels if label != left]
        right = right if right in labels else next(iter(others), None)
        return gr.update(choices=labels, value=left), gr.update(choices=labels, value=right)

    def asked(
        picture: str | None,
        question: str,
        left: str | None,
        right: str | None,
        request: gr.Request,
    ) -> Iterator[tuple[str, str, str]]:
        try:
            if left is None or right is None or left == right:
                raise InputError(
                    "choose two different models; edgevlm export makes another, or one in several precisions"
                )
            labels = (left, right)
            session = "compare " + session_of(request)
            for sides in compare(models, running, session, picture, question, labels, defaults):
                yield view(sides)
        except EdgeVLMError as error:
            raise refusal(error) from error

    def stopped(request: gr.Request) -> None:
        running.stop("compare " + session_of(request))

    tab.select(
        listed,
        [first, second, chosen],
        [first, second],
        **INTERNAL,
    )
    start.click(
        asked,
        [picture, question, first, second],
        [left, right, table],
        concurrency_limit=None,
        **INTERNAL,
    )
    stop.click(stopped, None, None, **INTERNAL)


def view(sides: Sequence[Side]) -> tuple[str, str, str]:
    """Both answers, with the words that differ marked once both are there, and the table, as HTML."""
    left, right = sides
    texts = markup.escaped(left.text), markup.escaped(right.text)
    if left.stats and right.stats:
        texts = markup.differing(left.text, right.text)
    answers = [
        markup.block(
            f'<div class="quiet">{markup.escaped(side.label)}</div><div class="answer">{text}</div>'
        )
        for side, text in zip(sides, texts, strict=True)
    ]
    rows = "".join(
        f"<tr><td>{name}</td><td>{a}</td><td>{b}</td></tr>"
        for (name, a), (_, b) in zip(facts(left), facts(right), strict=True)
    )
    head = f"<tr><th></th><th>{markup.escaped(left.label)}</th><th>{markup.escaped(right.label)}</th></tr>"
    return answers[0], answers[1], markup.block(f"<table>{head}{rows}</table>")


def facts(side: Side) -> list[tuple[str, str]]:
    """Names and values; the values are empty as long as the answer is not there."""
    stats = side.stats
    return [
        ("first token", f"{stats.first_token_ms:,.0f} ms" if stats else ""),
        ("whole answer", f"{stats.total_ms:,.0f} ms" if stats else ""),
        ("tokens per second", f"{stats.tokens_per_second:,.0f}" if stats else ""),
        ("tokens", f"{stats.answer_tokens}" if stats else ""),
        ("positions that a cache held", f"{stats.cached_tokens}" if stats else ""),
        ("size on disk", markup.size(side.disk) if side.disk is not None else ""),
        ("memory that loading took", markup.size(side.memory) if stats else ""),
        ("loading", f"{stats.load_ms:,.0f} ms" if stats else ""),
    ]
