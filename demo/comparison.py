"""One question to two models, or to one model with two settings."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgevlm import Detail
from edgevlm.boxes import Box, Point
from edgevlm.demo.conversation import as_message, system_messages, user_turn
from edgevlm.demo.gradio_setup import error_text
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.streaming import ActiveStreams, AnswerStream
from edgevlm.errors import InputError
from edgevlm.options import GenerationOptions
from edgevlm.results import Stats

State = Literal["waiting", "loading", "answering", "done", "stopped", "failed"]


@dataclass(frozen=True)
class SideSettings:
    """The model and the settings of one side."""

    label: str
    """Label of the model in the `ModelPool`."""
    temperature: float = 0.0
    detail: Detail | None = None
    system: str = ""


@dataclass(frozen=True)
class SideResult:
    """The answer of one side so far."""

    settings: SideSettings
    state: State = "waiting"
    text: str = ""
    stats: Stats | None = None
    locations: tuple[Box | Point, ...] = ()
    """Boxes and points on the image."""
    disk: int | None = None
    """Bytes of the files of the model."""
    memory: int | None = None
    """Bytes by which the process grew while the model was loaded."""
    problem: str | None = None


def can_differ(
    settings: Sequence[SideSettings], models: ModelPool, has_image: bool, fixed_seed: bool
) -> bool:
    """Return True if two settings can lead to different answers.

    Args:
        settings: settings of the left and the right side.
        models: the models of the labels.
        has_image: True if the question has an image; the detail matters only then.
        fixed_seed: True if both sides use the same seed.
    """
    left, right = settings
    if left.label != right.label or left.system.strip() != right.system.strip():
        return True
    if left.temperature != right.temperature or (left.temperature > 0 and not fixed_seed):
        return True
    bundle = models.find(left.label).bundle
    tiled = bundle is not None and bundle.manifest.image.splits
    return has_image and tiled and left.detail != right.detail


def compare(
    models: ModelPool,
    streams: ActiveStreams,
    session: str,
    image: str | None,
    question: str,
    settings: Sequence[SideSettings],
    defaults: GenerationOptions,
) -> Iterator[list[SideResult]]:
    """Answer one side after the other, so that they do not slow each other down. Yield both sides so far.

    An error ends its own side only; `ActiveStreams.stop` ends both.

    Args:
        models: the models of the labels.
        streams: takes the answers, so that they can be stopped.
        session: key in `streams`.
        image: path of an image, or None.
        question: the text after the image.
        settings: settings of the left and the right side.
        defaults: options that the settings do not change.

    Raises:
        InputError: there is no question, or the settings cannot lead to different answers.
    """
    message = as_message(user_turn(question, [image] if image else []))
    if not message["content"]:
        raise InputError("the question is empty; write one or add a picture")
    seed = defaults.get("seed")
    if not can_differ(settings, models, image is not None, seed is not None):
        raise InputError(
            "both sides would give the same answer; choose another model, temperature or system prompt "
            "on one side"
        )
    sides = [SideResult(side_settings) for side_settings in settings]
    for at, own in enumerate(settings):
        options: GenerationOptions = {
            **defaults,
            "temperature": own.temperature,
            "detail": own.detail,
        }
        if own.temperature > 0 and seed is None:
            options["seed"] = secrets.randbelow(2**31)
        messages = [*system_messages(own.system), message]
        sides[at] = replace(
            sides[at], state="answering" if models.is_loaded(own.label) else "loading"
        )
        stream = AnswerStream(models, own.label, messages, options)
        streams.begin(session, stream)
        yield list(sides)
        try:
            for chunk in stream:
                side = replace(sides[at], state="answering", text=sides[at].text + chunk.text)
                if chunk.stats is not None:
                    with models.acquire(own.label) as loaded:
                        disk, memory = loaded.disk, loaded.memory
                    locations: tuple[Box | Point, ...] = (*chunk.boxes, *chunk.points)
                    side = replace(side, state="done", stats=chunk.stats, locations=locations)
                    side = replace(side, disk=disk, memory=memory)
                sides[at] = side
                yield list(sides)
        except Exception as error:  # the other side goes on
            sides[at] = replace(sides[at], state="failed", problem=error_text(error))
            yield list(sides)
            continue
        if sides[at].stats is None:
            yield [
                side if side.state in ("done", "failed") else replace(side, state="stopped")
                for side in sides
            ]
            return
