"""A row's checkpoint in transformers and its bundle, and how far they are apart."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgevlm import VLM
from edgevlm.cli import main
from edgevlm.inputs.images import load_image
from tests.families.row import IMAGE, Message, Reference, Row, conversations, picture, text

MODULES = (
    "aya_vision",
    "blip_2",
    "cohere2_vision",
    "deepseek_vl",
    "gemma3",
    "gemma4",
    "got_ocr2",
    "idefics3",
    "instructblip",
    "internvl",
    "janus",
    "lfm2_vl",
    "llava",
    "llava_next",
    "llava_onevision",
    "minicpmv4_6",
    "mllama",
    "original",
    "ovis2",
    "paddleocr_vl",
    "paligemma",
    "pixtral",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_vl",
    "smolvlm",
    "vipllava",
)
"""Modules with rows, each named for a ``model_type``."""
ROWS: list[Row] = [
    row for name in MODULES for row in importlib.import_module(f"tests.families.{name}").ROWS
]
ANSWER_TOKENS = 6
MAX_EMBEDDINGS_ERROR = 1e-4
"""Bound of the relative error of embeddings by the graph in float32."""
MAX_LOGITS_ERROR = 5e-3
"""Bound of the relative error of logits by the decoder in float16."""


class Case:
    """A checkpoint in transformers, and its bundle as the command line exports it."""

    def __init__(self, row: Row, folder: Path) -> None:
        self.row = row
        checkpoint = row.build(folder / "checkpoint")
        self.bundle = folder / "bundle"
        command = ["export", str(checkpoint), str(self.bundle), "--quiet", "--quick"]
        if row.image_size is not None:
            command += ["--image-size", "{}x{}".format(*row.image_size)]
        with contextlib.redirect_stderr(io.StringIO()) as messages:
            status = main([*command, "--vision", "fp32", "--decoder", row.decoder])
        assert status == 0, messages.getvalue()
        self.reference = Reference(checkpoint, row)
        self.vlm = self.load()
        prompt = self.vlm.manifest.prompt
        self.special = {token.text: token.id for token in prompt.special_tokens}
        self.image_id = self.special[prompt.image_token]

    def load(self, context_length: int | None = None) -> VLM:
        """Load the bundle anew; nothing is in its caches.

        On CPUs with AMX the device ``auto`` would compute float32 graphs in bf16.
        """
        return VLM.from_pretrained(
            self.bundle,
            vision="fp32",
            device="cpu",
            decoder=self.row.decoder,
            threads=1,
            context_length=context_length,
        )

    def images(self, count: int) -> list[Image.Image]:
        sizes = self.row.sizes
        return [picture(seed, sizes[seed % len(sizes)]) for seed in range(count)]

    def ids(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> list[int]:
        """Our prompt, with the image token in the places of embeddings."""
        engine = self.vlm._engine
        prepared = [engine.process_image(load_image(image)) for image in images]
        ids: list[int] = []
        for item in engine.tokenize(messages, prepared):
            ids += [item] if isinstance(item, int) else [self.image_id] * item.length
        return ids

    def image_end(self, messages: Sequence[Message], images: Sequence[Image.Image]) -> int:
        """Number of entries of our prompt up to the last embedding."""
        ids = self.ids(messages, images)
        return len(ids) - ids[::-1].index(self.image_id)

    def pieces(self, ids: Sequence[int]) -> str:
        """Text of token ids, one token a line, for a readable difference."""
        pieces = self.reference.processor.tokenizer.convert_ids_to_tokens(ids)
        return "\n".join(f"{piece} {token}" for piece, token in zip(pieces, ids, strict=True))

    def conversations(self) -> Sequence[tuple[list[Message], int]]:
        return (self.row.messages or conversations)()

    def embeddings_error(self) -> float:
        """Return the largest relative error of the embeddings of an image."""
        errors = []
        for seed, size in enumerate(self.row.sizes):
            image = picture(seed, size)
            inputs = self.reference.inputs(
                [{"role": "user", "content": [IMAGE, text("What?")]}], [image]
            )
            expected = self.reference.embeddings(inputs)
            found = self.encode(image, "What?") / self.vlm.manifest.decoder.embedding_scale
            assert found.shape == expected.shape
            errors.append(relative_error(found, expected))
        return max(errors)

    def encode(self, image: Image.Image, question: str) -> NDArray[np.float32]:
        """Return the embeddings of an image, which depend on the question in some families."""
        if self.vlm.manifest.vision.text_input is None:
            return self.vlm.encode_image(image)
        engine = self.vlm._engine
        return engine.encode_image(engine.process_image(load_image(image)).asked(question))

    def logits_error(self) -> float:
        """Return the largest relative error of the logits of an answer."""
        engine = self.vlm._engine
        errors = []
        for messages, count in self.conversations():
            images = self.images(count)
            inputs = self.reference.inputs(messages, images)
            ids, expected = self.reference.answer_and_logits(inputs, ANSWER_TOKENS)
            prepared = [engine.process_image(load_image(image)) for image in images]
            found = engine.logits(messages, prepared, ids)
            # transformers may pad the vocabulary
            errors.append(relative_error(found, expected[:, : found.shape[1]]))
        return max(errors)


def relative_error(found: Any, expected: Any) -> float:
    """Return ``|found - expected| / |expected|`` (L2)."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def answer(vlm: VLM, messages: Sequence[Message], images: Sequence[Image.Image]) -> Any:
    remaining = iter(images)
    placed = [
        {
            **message,
            "content": [
                {**part, "image": next(remaining)} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in messages
    ]
    return vlm.generate(placed, max_tokens=ANSWER_TOKENS, temperature=0, top_logprobs=1)
