"""A checkpoint in transformers, in float32: what a bundle of it is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    Idefics3Processor,
    PaliGemmaProcessor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.support.oracle import ANSWER_TOKENS, Conversation, Expected, tile_hash


class Reference:
    """Model and processor of a checkpoint.

    Args:
        family: the name of the function in `tests.support.checkpoints` that made the checkpoint.
    """

    def __init__(self, checkpoint: Path, family: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(
            checkpoint, dtype=torch.float32
        ).eval()
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        self.paligemma = family.startswith("paligemma")
        if self.paligemma:
            self.processor: Any = PaliGemmaProcessor(
                SiglipImageProcessorPil.from_pretrained(checkpoint), tokenizer
            )
            return
        # SmolVLM's own processor needs a video processor; Idefics3's writes the same prompt.
        images = Idefics3ImageProcessorPil if family == "idefics3" else SmolVLMImageProcessorPil
        config = self.model.config
        patches = config.vision_config.image_size // config.vision_config.patch_size
        self.processor = Idefics3Processor(
            images.from_pretrained(checkpoint),
            tokenizer,
            image_seq_len=(patches // config.scale_factor) ** 2,
            chat_template=(checkpoint / "chat_template.jinja").read_text(encoding="utf-8"),
        )

    def inputs(self, messages: Sequence[dict[str, Any]], images: Sequence[Image.Image]) -> Any:
        """Return what the model takes for messages whose parts say only ``{"type": "image"}``."""
        if self.paligemma:
            (message,) = messages
            *places, text = message["content"]
            rendered = "<image>" * len(places) + text["text"]
        else:
            rendered = self.processor.apply_chat_template(
                list(messages), add_generation_prompt=True
            )
        nested = [list(images)] if images else None
        inputs = self.processor(text=[rendered], images=nested, return_tensors="pt")
        inputs.pop("labels", None)
        return inputs

    def question(self, image: Image.Image, text: str) -> Any:
        """Return what the model takes for one question about an image."""
        content = [{"type": "image"}, {"type": "text", "text": text}]
        return self.inputs([{"role": "user", "content": content}], [image])

    @torch.no_grad()
    def answer_and_logits(self, inputs: Any, length: int) -> tuple[list[int], NDArray[np.float32]]:
        """Return `length` greedy tokens, and float32 logits ``[length, vocabulary]`` before each."""
        output = self.model.generate(
            **inputs,
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        ids = output.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        return ids, torch.stack(output.logits)[:, 0].numpy()

    def expected(self, conversation: Conversation) -> Expected:
        """Return what the committed oracle holds for a conversation."""
        images = [Image.fromarray(image) for image in conversation.images()]
        inputs = self.inputs(conversation.messages, images)
        answer, logits = self.answer_and_logits(inputs, ANSWER_TOKENS)
        prompt_ids = inputs["input_ids"][0].tolist()
        return Expected(tuple(prompt_ids), tuple(answer), logits, self._tile_hashes(inputs))

    def _tile_hashes(self, inputs: Any) -> tuple[str, ...]:
        if "pixel_values" not in inputs:
            return ()
        pixels = inputs["pixel_values"].numpy()
        pixels = pixels.reshape(-1, *pixels.shape[-3:]).transpose(0, 2, 3, 1)
        processor = self.processor.image_processor
        levels = (pixels * processor.image_std + processor.image_mean) / processor.rescale_factor
        tiles = np.rint(levels).astype(np.uint8)
        assert np.abs(levels - tiles).max() < 1e-2, "transformers' pixels are no grey levels"
        return tuple(tile_hash(tile) for tile in tiles)
