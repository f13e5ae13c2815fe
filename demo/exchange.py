"""One exchange of a conversation: a question, its answer while it grows, and what comes of it if it fails.

A question that gets no answer goes back to the person who asked it, and the conversation stays as it was
before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from edgevlm.demo import attachments, conversation
from edgevlm.demo.boxes import boxes, draw
from edgevlm.demo.conversation import Turns
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import say
from edgevlm.demo.model_pool import Models
from edgevlm.demo.streaming import AnswerStream, Record, Running
from edgevlm.errors import InputError
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import system_messages
from edgevlm.options import GenerationOptions
from edgevlm.results import FinishReason, Stats, TokenLogprob

MAX_DRAWN_SIDE = 1280
"""Pixels of a picture that boxes are drawn on; the window shows it smaller."""


@dataclass(frozen=True)
class Step:
    """What a page shows after the next piece of an exchange."""

    turns: Turns
    record: Record | None = None
    """Of what was answered so far; None if nothing was."""
    returned: dict[str, Any] | None = None
    """The question, if it goes back into the box."""


def exchange(
    models: Models,
    running: Running,
    session: str,
    before: Turns,
    question: dict[str, Any],
    label: str | None,
    system: str,
    options: GenerationOptions,
    request: gr.Request | None = None,
    earlier: dict[str, Any] | None = None,
) -> Iterator[Step]:
    """Ask, and answer step by step.

    Args:
        before: the conversation so far.
        question: turn of the user.
        label: of the model.
        request: of the page; its language is that of the notes.
        earlier: an answer to the same question, which stays if there is no better one. None: the question
            goes back into the box then.

    Raises:
        EdgeVLMError: whatever the model says against it; the step before tells what to show then.
    """
    turns: Turns = [*before, question]
    unanswered = Step(before, returned=question) if earlier is None else Step([*turns, earlier])
    messages = [
        *system_messages(system if system.strip() else None),
        *map(conversation.as_message, turns),
    ]
    yield Step(turns)
    stream = AnswerStream(models, label, messages, options)
    running.begin(session, stream)
    text, stats, finish_reason = "", None, None
    logprobs: list[TokenLogprob] = []
    try:
        for chunk in stream:
            text, stats, finish_reason = text + chunk.text, chunk.stats, chunk.finish_reason
            logprobs += chunk.logprobs
            if text:
                growing = conversation.assistant_turn(text)
                yield Step([*turns, growing], Record(label, messages, options))
        if stream.left:
            return
        if not text and stats is not None:
            raise InputError("the model answered nothing; ask in other words")
        drawn = _drawn(models, label, text, turns)
    except Exception:
        yield unanswered
        raise
    if not text:  # stopped before its first word
        yield unanswered
        return
    note = _note(request, stats, finish_reason, drawn is not None and _pictures(turns) > 1)
    answer = conversation.assistant_turn(text, note, drawn)
    yield Step([*turns, answer], Record(label, messages, options, text, tuple(logprobs), stats))


def _note(
    request: gr.Request | None,
    stats: Stats | None,
    finish_reason: FinishReason | None,
    last_of_several: bool,
) -> str:
    """What stands below an answer: how long it took, and what a person might wonder about."""
    if stats is None:
        return say(request, "stopped")
    values = {
        "first": f"{stats.first_token_ms:.0f}",
        "speed": f"{stats.tokens_per_second:.0f}",
        "count": stats.answer_tokens,
    }
    one = stats.tokens_per_second == 0
    facts = [
        say(request, "First token: {first} ms · tokens: {count}", **values)
        if one
        else say(
            request,
            "First token: {first} ms · {speed} tokens per second · tokens: {count}",
            **values,
        )
    ]
    if finish_reason == "length":
        facts.append(say(request, "cut off at the length in the settings"))
    if last_of_several:
        facts.append(say(request, "the boxes are on the last picture"))
    return " · ".join(facts)


def _drawn(models: Models, label: str | None, text: str, turns: Turns) -> str | None:
    """The last picture with the boxes of an answer, as a file; None if the answer has none."""
    found = boxes(text, models.usage(label).boxes)
    pictures = [path for turn in turns for path in conversation.pictures_of(turn)]
    if not found or not pictures:
        return None
    image = Image.fromarray(load_image(pictures[-1]))
    image.thumbnail((MAX_DRAWN_SIDE, MAX_DRAWN_SIDE))
    return attachments.saved(draw(image, found), "boxes")


def _pictures(turns: Sequence[conversation.Turn]) -> int:
    return sum(len(conversation.pictures_of(turn)) for turn in turns)
