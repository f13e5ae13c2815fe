"""Where a bundle comes from, how far it is from its checkpoint, and what to ask it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from typing import Literal

from edgevlm.manifest.parsing import parse, require


@dataclass(frozen=True)
class Source:
    """The origin of the checkpoint."""

    repository: str
    """Hub repository, or the name of the checkpoint folder."""
    revision: str | None
    """Commit of the hub repository; null if it is not known."""
    family: str
    """``model_type`` in the configuration of the checkpoint; for information only."""
    license: str
    """Licence of the checkpoint."""


@dataclass(frozen=True)
class Drift:
    """The difference of one precision from the checkpoint in transformers, in float32."""

    relative_error: float
    """``|ours - theirs| / |theirs|`` (L2): of embeddings for a vision graph, of logits for a decoder."""
    bound: float
    """Limit of `relative_error` for this precision."""
    top1_agreement: float | None = None
    """Decoders: fraction of teacher-forced positions with the same most likely token, 0 to 1; null for vision
    graphs."""


@dataclass(frozen=True)
class ParityReport:
    """The measurement of the last step of an export, compared with transformers in float32."""

    pictures: int
    """Number of images that were compared."""
    prompts: int
    """Number of prompts that were compared."""
    positions: int
    """Number of teacher-forced positions that were compared."""
    vision: dict[str, Drift]
    """Drift of each precision of the vision graph."""
    decoder: dict[str, Drift]
    """Drift of each llama.cpp type of the decoder."""
    drift_allowed: bool
    """True if a bound was exceeded and the user allowed it."""
    texts: int | None = None
    """Number of texts whose token ids are those of the checkpoint's tokenizer; null: not recorded."""


@dataclass(frozen=True)
class Golden:
    """A stored answer of the checkpoint, for ``edgevlm verify``."""

    picture_png: str
    """A small PNG file in base64."""
    question: str
    """Question about the image."""
    token_ids: tuple[int, ...]
    """Greedy answer of transformers in float32, with the end token if the answer has one."""


@dataclass(frozen=True)
class Tasks:
    """Questions in one language that the model was trained to answer; null: not trained for the task."""

    describe: str | None = None
    """Question for a description of the image; may contain ``{thing}`` once, as may the others."""
    find: str | None = None
    """Question for the place of a thing; contains ``{thing}`` once, which is replaced with the name of the
    thing. The answer is a box; see `Usage.boxes`."""
    count: str | None = None
    """Question for a number of things."""
    read: str | None = None
    """Question for a text in the image."""

    def check(self) -> None:
        """Check the values."""
        for name, question in dataclasses.asdict(self).items():
            if question is not None:
                plain = question.replace("{thing}", "", 1)
                require(bool(question.strip()), name, question, "must not be empty")
                require(
                    not set("{}") & set(plain),
                    name,
                    question,
                    "may contain {thing} once and no other braces",
                )
                require(name != "find" or plain != question, name, question, "must contain {thing}")


@dataclass(frozen=True)
class Usage:
    """Advice for people who ask the model; the runtime does not use it."""

    images: Literal["drawings", "photographs"] | None = None
    """Kind of the images that the model was trained on; null: not known."""
    boxes: Literal["percent"] | None = None
    """Form of the boxes in answers. ``percent``: ``[left, top, right, bottom]``, each from 0 to 100 of the
    width or height of the image. null: the model answers with words, or was not trained to find things."""
    tasks: dict[str, Tasks] = field(default_factory=dict)
    """Questions by language (ISO 639-1 code such as ``en`` or ``ru``); empty: not known."""

    def check(self) -> None:
        """Check the values."""
        for language in self.tasks:
            require(
                re.fullmatch("[a-z]{2}", language) is not None,
                "tasks",
                language,
                "must have languages of two lower-case letters",
            )

    def questions(self, language: str) -> dict[str, str]:
        """Return the question of each task, in this language or else in English; empty if there is none."""
        tasks = self.tasks.get(language) or self.tasks.get("en") or Tasks()
        return {name: text for name, text in dataclasses.asdict(tasks).items() if text is not None}

    @classmethod
    def from_dict(cls, data: object) -> Usage:
        """Create a `Usage` from parsed JSON.

        Raises:
            BundleError: a field is unknown or wrong; the message names it, such as ``usage.tasks``.
        """
        usage: Usage = parse(cls, data, "usage")
        return usage
