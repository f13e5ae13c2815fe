"""How much each input channel of the decoder's matrices matters, for the rounding of quantized types.

llama.cpp rounds a matrix so that the error of its products is small for typical inputs, if it knows the mean
square of each input channel. Its own tool computes them from text. In a vision-language model most positions
of a prompt are embeddings of images, so here they come from dialogues about photographs, through the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import TEXT_LENGTH, load_decoder, load_recording_decoder
from edgevlm.export.quantize import Importance
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.prompt import user_message
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.manifest import Manifest

QUESTIONS = (
    "Describe the image in detail.",
    "What do you see?",
    "Which colors are there?",
    "Is there a person in the image?",
)
"""Questions of the dialogues, in turn; others than those that the parity report asks."""
MAX_ANSWER_TOKENS = 24
"""Tokens of the longest answer."""


def measure_importance(
    manifest: Manifest,
    vision: Path,
    decoder: Path,
    images: Sequence[NDArray[np.uint8]],
    *,
    progress: bool,
) -> Importance:
    """Return the mean square of each input channel over one question and answer about each image.

    The answers are the decoder's own, greedily. Each image has the fewest tiles that the model allows.

    Args:
        vision: the fp32 vision graph.
        decoder: the decoder that will be quantized, in f16.
        images: RGB images, uint8 ``[height, width, 3]``.

    Raises:
        LoadError: a file cannot be loaded.
        InferenceError: the activations cannot be read.
    """
    processor = ImageProcessor(manifest.image, manifest.vision)
    processed = [processor.process(image, ImageBudget("low")) for image in images]
    stored = StoredVision(manifest, vision, processed)
    longest = max(sum(span.length for span in image.spans) for image in processed)
    length = min(longest + TEXT_LENGTH, manifest.decoder.context_length)
    prompts = [
        ([user_message(QUESTIONS[index % len(QUESTIONS)], 1)], [image])
        for index, image in enumerate(processed)
    ]
    with closing(
        Engine(manifest, stored, load_decoder(manifest, decoder, context_length=length))
    ) as engine:
        answers = []
        for messages, shown in tqdm(prompts, "importance: answers", disable=not progress):
            room = length - engine.prompt_tokens(messages, shown)
            answers.append(engine.greedy_answer(messages, shown, min(MAX_ANSWER_TOKENS, room))[0])
    recorder = load_recording_decoder(manifest, decoder, context_length=length)
    with closing(Engine(manifest, stored, recorder)) as engine:
        dialogues = list(zip(prompts, answers, strict=True))
        for (messages, shown), answer in tqdm(dialogues, "importance", disable=not progress):
            engine.logits(messages, shown, answer)
    return recorder.mean_squares()
