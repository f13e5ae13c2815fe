"""Where a bundle comes from, how far it is from its checkpoint, and what to ask it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgevlm.manifest.locations import LocationFormat
from edgevlm.manifest.parsing import parse, require
from edgevlm.manifest.upgrade import upgrade_usage


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
    """The difference of one precision from its reference.

    The reference of the exact pair, and of every precision without `AnswerReport`, is the checkpoint in
    transformers, in float32. With `AnswerReport` the reference of all others is the exact pair.
    """

    relative_error: float
    """``|ours - theirs| / |theirs|`` (L2): of embeddings for a vision graph, of logits for a decoder."""
    bound: float | None
    """Limit of `relative_error`; null: the limits are those of `AnswerDrift`."""
    top1_agreement: float | None = None
    """Decoders: fraction of teacher-forced positions with the same most likely token, 0 to 1; null for vision
    graphs."""
    centered_error: float | None = None
    """Vision graphs beside the exact pair: the relative error of what varies from token to token,
    ``|ours - theirs| / |theirs - mean|``, the mean over all embeddings of all images; null: not measured."""
    max_token_error: float | None = None
    """The largest such error of one embedding; its own distance from the mean counts, or the root mean square
    of all if that is larger; null: not measured."""
    centered_error_by_image: tuple[float, ...] | None = None
    """The centered error of each of `AnswerReport.images`; null: not measured."""


@dataclass(frozen=True)
class AnswerDrift:
    """How far the answers of one vision graph with one decoder are from those of the exact pair.

    Both get the greedy answer of the exact pair token by token (teacher forcing). A position is one token of
    it.
    """

    vision: str
    """Precision of the vision graph."""
    decoder: str
    """llama.cpp type of the decoder."""
    kl: float
    """Mean Kullback-Leibler divergence of the next-token distributions from the exact pair's, in nats."""
    max_kl: float
    """The largest divergence at one position, in nats."""
    kl_by_image: tuple[float, ...]
    """Mean divergence over the answer about each of `AnswerReport.images`, in nats."""
    kl_bound: float
    """Limit of each of `kl_by_image`."""
    top1_agreement: float
    """Fraction of positions with the same most likely token, 0 to 1."""
    agreement_bound: float
    """Limit of `top1_agreement`, from below."""
    same_start: float
    """Mean fraction of the greedy answer before the first token that differs, 0 to 1."""


@dataclass(frozen=True)
class AnswerReport:
    """What quantization does to answers about photographs.

    The exact pair is the vision graph in float32 and a decoder that is not quantized. Its own difference from
    the checkpoint is in `ParityReport`.
    """

    exact_vision: str
    """Precision of the exact pair's vision graph."""
    exact_decoder: str
    """llama.cpp type of the exact pair's decoder; the bundle may lack this file."""
    auto_vision: str
    """Precision of the vision graph that ``device="auto"`` loads for ONNX Runtime on a CPU."""
    auto_decoder: str
    """llama.cpp type of the decoder that is loaded if none is named."""
    images: tuple[str, ...]
    """Names of the images: photographs that come with edgevlm, and drawings. Each has one answer."""
    positions: int
    """Tokens of all answers."""
    image_kl: float
    """Mean divergence, in nats, that the exact pair has if it sees another image; the scale for vision
    graphs."""
    image_agreement: float
    """Fraction of positions with the same most likely token if it sees another image, 0 to 1."""
    context_kl: float
    """Mean divergence, in nats, of the mean distribution over all positions from that of each position: what
    the decoder makes of all that it has read; the scale for decoders."""
    context_agreement: float
    """Fraction of positions whose most likely token is that of the mean distribution, 0 to 1."""
    pairs: tuple[AnswerDrift, ...]
    """Each vision graph with the exact decoder, each decoder with the exact vision graph, and the pair that
    ``auto`` loads; without the exact pair itself."""

    def worst_image(self, values: Sequence[float]) -> str:
        """Return the name of the image with the largest of `values`, which has one for each image."""
        return self.images[max(range(len(values)), key=values.__getitem__)]

    def is_automatic(self, pair: AnswerDrift) -> bool:
        """Return True if ``auto`` loads this pair on a CPU."""
        return (pair.vision, pair.decoder) == (self.auto_vision, self.auto_decoder)


@dataclass(frozen=True)
class ParityReport:
    """The measurement of the last step of an export."""

    pictures: int
    """Number of images that were compared with transformers."""
    prompts: int
    """Number of prompts that were compared with transformers."""
    positions: int
    """Number of teacher-forced positions that were compared with transformers."""
    vision: dict[str, Drift]
    """Drift of each precision of the vision graph."""
    decoder: dict[str, Drift]
    """Drift of each llama.cpp type of the decoder."""
    drift_allowed: bool
    """True if a bound was exceeded and the user allowed it."""
    texts: int | None = None
    """Number of texts whose token ids are those of the checkpoint's tokenizer; null: not recorded."""
    answers: AnswerReport | None = None
    """Comparison with the exact pair; null: the short form, which ``--quick`` and older versions of edgevlm
    make. It compares every precision with transformers, on a few drawings, and no answers."""


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
    detect: str | None = None
    """Question for the boxes of a thing; contains ``{thing}`` once, which is replaced with the name of the
    thing. `Usage.location_format` says how the boxes are written."""
    point: str | None = None
    """Question for points on a thing; contains ``{thing}`` once."""
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
                require(
                    name not in ("detect", "point") or plain != question,
                    name,
                    question,
                    "must contain {thing}",
                )


@dataclass(frozen=True)
class Usage:
    """What the model was trained to see and to answer."""

    images: Literal["drawings", "photographs"] | None = None
    """Kind of the images that the model was trained on; null: not known."""
    location_format: LocationFormat | None = None
    """How boxes and points are written in answers; null: the model answers with words, or was not trained to
    find things."""
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
        usage: Usage = parse(cls, upgrade_usage(data), "usage")
        return usage
