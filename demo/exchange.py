"""One exchange of a conversation: a question and its answer.

If there is no answer, the question goes back into the box, and the conversation does not change.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgevlm.boxes import Box, Point
from edgevlm.demo import attachments, conversation
from edgevlm.demo.conversation import Turns
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.streaming import ActiveStreams, AnswerRecord, AnswerStream
from edgevlm.drawing import draw_locations
from edgevlm.errors import InputError
from edgevlm.inputs.images import load_image
from edgevlm.options import GenerationOptions
from edgevlm.results import FinishReason, Stats, TokenLogprob

MAX_DRAWN_SIDE = 1280
"""Longer side in pixels of an image with boxes; the window shows it smaller."""


@dataclass(frozen=True)
class Step:
    """The state of a page during an exchange."""

    turns: Turns
    record: AnswerRecord | None = None
    """The answer so far; None if there is none."""
    returned: dict[str, Any] | None = None
    """The question if it goes back into the box."""


def exchange(
    models: ModelPool,
    streams: ActiveStreams,
    session: str,
    history: Turns,
    question: dict[str, Any],
    label: str | None,
    system: str,
    options: GenerationOptions,
    request: gr.Request | None = None,
    earlier: dict[str, Any] | None = None,
) -> Iterator[Step]:
    """Answer a question. Yield the state of the page after each part of the answer.

    Args:
        models: the models of the labels.
        streams: takes the answer, so that it can be stopped.
        session: key in `streams`.
        history: the conversation so far.
        question: turn of the user.
        label: label of the model.
        system: instructions before the conversation; may be empty.
        options: options of the answer.
        request: the page's request; notes are in its language.
        earlier: an earlier answer to the same question, which is shown if there is no new one. None: the
            question goes back into the box then.

    Raises:
        EdgeVLMError: the model cannot be loaded or cannot answer. The last step has the state to show.
    """
    turns: Turns = [*history, question]
    unanswered = Step(history, returned=question) if earlier is None else Step([*turns, earlier])
    messages = [
        *conversation.system_messages(system),
        *map(conversation.as_message, turns),
    ]
    yield Step(turns)
    stream = AnswerStream(models, label, messages, options)
    streams.begin(session, stream)
    text, stats, finish_reason = "", None, None
    locations: tuple[Box | Point, ...] = ()
    logprobs: list[TokenLogprob] = []
    try:
        for chunk in stream:
            text, stats, finish_reason = text + chunk.text, chunk.stats, chunk.finish_reason
            logprobs += chunk.logprobs
            locations = *chunk.boxes, *chunk.points
            if text:
                growing = conversation.assistant_turn(text)
                yield Step([*turns, growing], AnswerRecord(label, messages, options))
        if stream.abandoned:
            return
        if not text and stats is not None:
            raise InputError("the model answered nothing; ask in other words")
        drawn = _draw(locations, turns)
    except Exception:
        yield unanswered
        raise
    if not text:  # stopped before the first word
        yield unanswered
        return
    note = _note(request, stats, finish_reason, drawn is not None and _image_count(turns) > 1)
    answer = conversation.assistant_turn(text, note, drawn)
    yield Step(
        [*turns, answer],
        AnswerRecord(label, messages, options, text, tuple(logprobs), stats, locations),
    )


def _note(
    request: gr.Request | None,
    stats: Stats | None,
    finish_reason: FinishReason | None,
    last_of_several: bool,
) -> str:
    """Return the note below an answer: how long it took, and why it ended."""
    if stats is None:
        return translate(request, "stopped")
    values = {
        "first": f"{stats.first_token_ms:.0f}",
        "speed": f"{stats.tokens_per_second:.0f}",
        "count": stats.answer_tokens,
    }
    single_token = stats.tokens_per_second == 0
    facts = [
        translate(request, "First token: {first} ms · tokens: {count}", **values)
        if single_token
        else translate(
            request,
            "First token: {first} ms · {speed} tokens per second · tokens: {count}",
            **values,
        )
    ]
    if finish_reason == "length":
        facts.append(translate(request, "cut off at the length in the settings"))
    if last_of_several:
        facts.append(translate(request, "the boxes are on the last picture"))
    return " · ".join(facts)


def _draw(locations: Sequence[Box | Point], turns: Turns) -> str | None:
    """Draw boxes and points on the last image; return the path of the file, or None if there are none."""
    if not locations:
        return None
    images = [path for turn in turns for path in conversation.images_of(turn)]
    image = Image.fromarray(load_image(images[-1]))
    image.thumbnail((MAX_DRAWN_SIDE, MAX_DRAWN_SIDE))
    return attachments.save_png(draw_locations(image, locations), "boxes")


def _image_count(turns: Sequence[conversation.Turn]) -> int:
    return sum(len(conversation.images_of(turn)) for turn in turns)
