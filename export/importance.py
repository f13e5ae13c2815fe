"""How much each input channel of the decoder's matrices matters, for the rounding of quantized types.

llama.cpp rounds a matrix so that the error of its products is small for typical inputs, if it knows the mean
square of each input channel. Its own tool computes them from text. In a vision-language model most positions
of a prompt are embeddings of images, so here they come from dialogues about photographs, through the engine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import TEXT_LENGTH, load_decoder, load_recording_decoder
from edgevlm.engine.teacher_forcing import FORCED_TOKENS_PER_CALL
from edgevlm.export.quantize import Importance
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor, ProcessedImage
from edgevlm.inputs.prompt import Message, user_message
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.manifest import Manifest

QUESTIONS = (
    "Describe the image in detail.",
    "What do you see?",
    "Which colors are there?",
    "Is there a person in the image?",
)
"""Questions about images, in turn, for models that do not say what they are asked; others than those that the
parity report asks."""
MAX_ANSWER_TOKENS = 24
"""Tokens of the longest answer."""


@dataclass(frozen=True)
class Dialogue:
    """A question about images, with the decoder's own answer."""

    question: str
    images: tuple[ProcessedImage, ...]
    answer: tuple[int, ...]
    """Token ids."""

    @property
    def messages(self) -> list[Message]:
        """The question as a message."""
        return [user_message(self.question, len(self.images))]


def measure_importance(
    manifest: Manifest,
    vision: Path,
    decoder: Path,
    images: Sequence[NDArray[np.uint8]],
    *,
    progress: bool,
) -> Importance:
    """Return the mean square of each input channel over one question and answer about each image.

    Args:
        vision: the fp32 vision graph.
        decoder: the decoder that will be quantized, in f16.
        images: RGB images, uint8 ``[height, width, 3]``. Each has the fewest tiles that the model allows.

    Raises:
        LoadError: a file cannot be loaded.
        InferenceError: the activations cannot be read.
    """
    processor = ImageProcessor(manifest.image, manifest.vision, manifest.decoder.positions)
    processed = [processor.process(image, ImageBudget("low")) for image in images]
    stored = StoredVision(manifest, vision, processed)
    dialogues = answer_questions(manifest, stored, decoder, processed, progress=progress)
    return record_importance(manifest, stored, decoder, dialogues, progress=progress)


def answer_questions(
    manifest: Manifest,
    vision: StoredVision,
    decoder: Path,
    images: Sequence[ProcessedImage],
    *,
    progress: bool,
) -> list[Dialogue]:
    """Return one question about each image, with the greedy answer; errors as of `measure_importance`."""
    length = context_length(manifest, images)
    runtime = load_decoder(manifest, decoder, context_length=length)
    dialogues = []
    questions = find_questions(manifest)
    with closing(Engine(manifest, vision, runtime)) as engine:
        for index, image in enumerate(tqdm(images, "importance: answers", disable=not progress)):
            asked = Dialogue(questions[index % len(questions)], (image,), ())
            room = length - engine.prompt_tokens(asked.messages, asked.images)
            answer, _ = engine.greedy_answer(
                asked.messages, asked.images, min(MAX_ANSWER_TOKENS, room)
            )
            dialogues.append(dataclasses.replace(asked, answer=answer))
    return dialogues


def record_importance(
    manifest: Manifest,
    vision: StoredVision,
    decoder: Path,
    dialogues: Sequence[Dialogue],
    *,
    progress: bool,
) -> Importance:
    """Return the mean square of each input channel over dialogues; errors as of `measure_importance`."""
    images = [image for dialogue in dialogues for image in dialogue.images]
    recorder = load_recording_decoder(
        manifest, decoder, context_length=context_length(manifest, images)
    )
    with closing(Engine(manifest, vision, recorder)) as engine:
        for dialogue in tqdm(dialogues, "importance", disable=not progress):
            engine.logits(
                dialogue.messages,
                dialogue.images,
                dialogue.answer,
                tokens_per_call=FORCED_TOKENS_PER_CALL,
            )
    return recorder.mean_squares()


def context_length(manifest: Manifest, images: Sequence[ProcessedImage]) -> int:
    """Return a context length that holds a dialogue about the largest of the images."""
    longest = max((sum(span.length for span in image.spans) for image in images), default=0)
    return min(longest + TEXT_LENGTH, manifest.decoder.context_length)


def find_questions(manifest: Manifest) -> Sequence[str]:
    """Return the questions that the model was trained to answer about any image, or else `QUESTIONS`."""
    usage = manifest.usage.questions("en").values() if manifest.usage else ()
    return [question for question in usage if "{thing}" not in question] or QUESTIONS
