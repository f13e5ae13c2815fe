"""Compare the answers of quantized files with those of the exact pair, over photographs.

The exact pair is the fp32 vision graph and a decoder that is not quantized. `edgevlm.export.parity` compares
it with the checkpoint. Here every other file is compared with it: vision graphs by their embeddings, and each
pair of files by its next-token distributions over the greedy answers of the exact pair.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgevlm.bundle import Bundle
from edgevlm.divergence import Divergence, divergence, log_probabilities, same_start
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import TEXT_LENGTH, load_decoder
from edgevlm.engine.teacher_forcing import FORCED_TOKENS_PER_CALL
from edgevlm.errors import DriftError
from edgevlm.export.bounds import Scale, answer_bounds
from edgevlm.export.calibration import PHOTOGRAPHS, find_images
from edgevlm.export.parity import QUESTIONS, SIZES, draw_shapes, relative_error
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor, ProcessedImage
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import Message, user_message
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.manifest import AnswerDrift, AnswerReport, Drift, FileEntry, Manifest
from edgevlm.runtimes.devices import CPU_BACKEND

MAX_ANSWER_TOKENS = 24
"""Tokens of the longest answer."""
TINY = float(np.finfo(np.float32).tiny)
EXACT_VISION = "fp32"
EXACT_DECODERS = ("f16", "f32", "bf16", "fp32")
"""Types of the exact pair's decoder in the order of preference: the one that others are quantized from. A
graph is the exact decoder where there is no GGUF file."""


@dataclass(frozen=True)
class Scene:
    """An image with a question."""

    name: str
    image: ProcessedImage
    messages: Sequence[Message]


@dataclass(frozen=True)
class ExactAnswer:
    """The greedy answer of the exact pair."""

    tokens: tuple[int, ...]
    logits: NDArray[np.float32]
    """Float32 ``[tokens, vocabulary]``."""


@dataclass(frozen=True)
class Files:
    """The files of a staged bundle, with those of the exact pair, which need not be in the bundle."""

    manifest: Manifest
    folder: Path
    vision: Mapping[str, Path]
    decoder: Mapping[str, Path]

    @property
    def exact_decoder(self) -> str:
        """Type of the exact pair's decoder."""
        return next(name for name in EXACT_DECODERS if name in self.decoder)

    @property
    def automatic(self) -> tuple[str, str]:
        """Vision precision and decoder type that are loaded on a CPU if none is named."""
        bundle = Bundle(self.folder, self.manifest)
        return (
            _key(self.manifest.vision.files, bundle.vision_file(None, CPU_BACKEND.precisions)),
            _key(self.manifest.decoder.choices, bundle.decoder_file(None)),
        )

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs to compare with the exact pair."""
        exact = (EXACT_VISION, self.exact_decoder)
        pairs = [(vision, exact[1]) for vision in self.manifest.vision.files]
        pairs += [(EXACT_VISION, decoder) for decoder in self.manifest.decoder.choices]
        pairs.append(self.automatic)
        return [pair for pair in dict.fromkeys(pairs) if pair != exact]


def _key(files: Mapping[str, FileEntry], entry: FileEntry) -> str:
    return next(name for name, candidate in files.items() if candidate == entry)


def make_scenes(manifest: Manifest) -> list[Scene]:
    """Return the drawings and the photographs that come with edgevlm, each in its fewest tiles."""
    images = {
        f"drawing of {width} x {height}": np.asarray(draw_shapes(width, height))
        for width, height in SIZES
    }
    images |= {path.stem: load_image(path) for path in find_images(PHOTOGRAPHS)}
    processor = ImageProcessor(manifest.image, manifest.vision, manifest.decoder.positions)
    return [
        Scene(
            name,
            processor.process(image, ImageBudget("low")),
            [user_message(QUESTIONS[index % len(QUESTIONS)], 1)],
        )
        for index, (name, image) in enumerate(images.items())
    ]


def load_engine(
    manifest: Manifest, vision: StoredVision, decoder: Path, scenes: Sequence[Scene]
) -> Engine:
    """Load a decoder with a context that holds the longest prompt and answer."""
    image = max(sum(span.length for span in scene.image.spans) for scene in scenes)
    length = min(image + TEXT_LENGTH, manifest.decoder.context_length)
    return Engine(manifest, vision, load_decoder(manifest, decoder, context_length=length))


def answer_exactly(engine: Engine, scene: Scene) -> ExactAnswer:
    """Return the greedy answer of the exact pair, as long as the context allows."""
    images = [scene.image]
    room = engine.context_length - engine.prompt_tokens(scene.messages, images)
    return ExactAnswer(*engine.greedy_answer(scene.messages, images, min(MAX_ANSWER_TOKENS, room)))


def force(
    engine: Engine, scenes: Sequence[Scene], exact: Sequence[ExactAnswer]
) -> list[NDArray[np.float32]]:
    """Return the logits of a pair of files for each exact answer, float32 ``[tokens, vocabulary]``."""
    return [
        engine.logits(
            scene.messages, [scene.image], answer.tokens, tokens_per_call=FORCED_TOKENS_PER_CALL
        )
        for scene, answer in zip(scenes, exact, strict=True)
    ]


def image_scale(engine: Engine, scenes: Sequence[Scene], exact: Sequence[ExactAnswer]) -> Scale:
    """Return what the exact pair makes of the next image with the same question."""
    others = [
        replace(scene, image=another.image)
        for scene, another in zip(scenes, [*scenes[1:], scenes[0]], strict=True)
    ]
    found = force(engine, others, exact)
    every = join(divergence(a.logits, logits) for a, logits in zip(exact, found, strict=True))
    return Scale(float(every.kl.mean()), float(every.same_top.mean()))


def context_scale(exact: Sequence[ExactAnswer]) -> Scale:
    """Compare the mean distribution over all positions with the distribution of each position.

    The mean divergence is the entropy of the mean distribution less the mean entropy.
    """
    total: NDArray[np.float64] = np.zeros(exact[0].logits.shape[1])
    entropy = positions = 0.0
    for answer in exact:
        logarithms = log_probabilities(answer.logits)
        probabilities = np.exp(logarithms)
        total += probabilities.sum(axis=0)
        entropy -= float((probabilities * logarithms).sum())
        positions += len(logarithms)
    mean = total / positions
    known = mean[mean > 0]
    top = [answer.logits.argmax(axis=1) == mean.argmax() for answer in exact]
    return Scale(
        float(-(known * np.log(known)).sum() - entropy / positions),
        float(np.concatenate(top).mean()),
    )


def join(parts: Iterable[Divergence]) -> Divergence:
    """Return the divergence over the positions of all parts."""
    parts = list(parts)
    return Divergence(
        np.concatenate([part.kl for part in parts]),
        np.concatenate([part.same_top for part in parts]),
    )


def top_tokens(logits: NDArray[np.float32]) -> tuple[int, ...]:
    """Return the most likely token of each position."""
    return tuple(logits.argmax(axis=1).tolist())


def answer_drift(
    exact: Sequence[ExactAnswer],
    found: Sequence[NDArray[np.float32]],
    pair: tuple[str, str],
    image: Scale,
    context: Scale,
) -> AnswerDrift:
    """Compare the logits of a pair with those of the exact pair.

    Until the first most likely token that differs from the forced answer, the pair's own greedy answer is the
    forced one, so `same_start` needs no second answer.

    Args:
        found: logits for each answer, float32 ``[tokens, vocabulary]``.
        pair: vision precision and decoder type.
    """
    answers = list(zip(exact, found, strict=True))
    parts = [divergence(answer.logits, logits) for answer, logits in answers]
    starts = [
        same_start(top_tokens(answer.logits), top_tokens(logits)) / len(answer.tokens)
        for answer, logits in answers
    ]
    every = join(parts)
    bounds = answer_bounds(*pair, image, context, len(every.kl))
    return AnswerDrift(
        vision=pair[0],
        decoder=pair[1],
        kl=float(every.kl.mean()),
        kl_bound=bounds.kl,
        max_kl=float(every.kl.max()),
        kl_by_image=tuple(float(part.kl.mean()) for part in parts),
        top1_agreement=float(every.same_top.mean()),
        agreement_bound=bounds.agreement,
        same_start=float(np.mean(starts)),
    )


def vision_drift(scenes: Sequence[Scene], vision: StoredVision, exact: StoredVision) -> Drift:
    """Compare the embeddings of all scenes with those of the exact graph."""
    found = [vision.embeddings(scene.image) for scene in scenes]
    expected = [exact.embeddings(scene.image) for scene in scenes]
    mean = np.concatenate(expected).mean(axis=0)
    errors = [np.linalg.norm(a - b, axis=1) for a, b in zip(found, expected, strict=True)]
    distances = [np.linalg.norm(part - mean, axis=1) for part in expected]
    error, distance = np.concatenate(errors), np.concatenate(distances)
    usual = max(float(np.sqrt(np.mean(distance**2))), TINY)  # a projector may be all zero
    return Drift(
        relative_error(np.concatenate(found), np.concatenate(expected)),
        None,
        centered_error=float(np.sqrt(np.mean(error**2))) / usual,
        max_token_error=float((error / np.maximum(distance, usual)).max()),
        centered_error_by_image=tuple(
            float(np.linalg.norm(part) / max(float(np.linalg.norm(whole)), TINY))
            for part, whole in zip(errors, distances, strict=True)
        ),
    )


def measure_answers(
    files: Files, *, progress: bool
) -> tuple[AnswerReport, dict[str, Drift], dict[str, Drift]]:
    """Compare every file with the exact pair.

    Returns:
        The report, and the drift of each vision precision and of each decoder type but those of the exact
        pair.

    Raises:
        DriftError: a vision graph makes embeddings that are not finite.
        LoadError: a file cannot be loaded.
    """
    manifest, exact_decoder = files.manifest, files.exact_decoder
    pairs = files.pairs()
    scenes = make_scenes(manifest)
    precisions = dict.fromkeys((EXACT_VISION, *manifest.vision.files))
    bar = tqdm(total=len(precisions) + 2 + len(pairs), desc="answers", disable=not progress)
    stored = {}
    for precision in precisions:
        bar.set_postfix_str(precision)
        images = [scene.image for scene in scenes]
        stored[precision] = StoredVision(manifest, files.vision[precision], images)
        for scene in scenes:
            if not np.isfinite(stored[precision].embeddings(scene.image)).all():
                raise DriftError(
                    f"the vision graph in {precision} makes embeddings of {scene.name} that are not finite; "
                    f"export other precisions with --vision"
                )
        bar.update()

    def engine(vision: str, decoder: str) -> Engine:
        return load_engine(manifest, stored[vision], files.decoder[decoder], scenes)

    bar.set_postfix_str(f"{EXACT_VISION}, {exact_decoder}")
    with closing(engine(EXACT_VISION, exact_decoder)) as pair:
        exact = [answer_exactly(pair, scene) for scene in scenes]
        bar.update()
        image = image_scale(pair, scenes, exact)
        bar.update()
    context = context_scale(exact)
    drifts = []
    errors = {}
    for vision, decoder in pairs:
        bar.set_postfix_str(f"{vision}, {decoder}")
        with closing(engine(vision, decoder)) as pair:
            found = force(pair, scenes, exact)
        drift = answer_drift(exact, found, (vision, decoder), image, context)
        drifts.append(drift)
        if vision == EXACT_VISION:
            expected = np.concatenate([answer.logits for answer in exact])
            error = relative_error(np.concatenate(found), expected)
            errors[decoder] = Drift(error, None, drift.top1_agreement)
        bar.update()
    bar.close()
    automatic = files.automatic
    report = AnswerReport(
        exact_vision=EXACT_VISION,
        exact_decoder=exact_decoder,
        auto_vision=automatic[0],
        auto_decoder=automatic[1],
        images=tuple(scene.name for scene in scenes),
        positions=sum(len(answer.tokens) for answer in exact),
        image_kl=image.kl,
        image_agreement=image.agreement,
        context_kl=context.kl,
        context_agreement=context.agreement,
        pairs=tuple(drifts),
    )
    embeddings = {
        precision: vision_drift(scenes, stored[precision], stored[EXACT_VISION])
        for precision in precisions
        if precision != EXACT_VISION
    }
    return report, embeddings, errors
