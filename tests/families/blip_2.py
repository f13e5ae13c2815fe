"""BLIP-2, which answers one question about one image, or goes on with its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, Blip2Config, Blip2ForConditionalGeneration, Blip2Processor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.families.row import IMAGE, Message, Row, save, text
from tests.families.tokenizers import opt_tokenizer

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QFORMER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,  # the first and the third look at the image
    "num_attention_heads": 2,
    "vocab_size": 64,
}
BLIP_PROCESSOR = {
    "image_processor_type": "BlipImageProcessor",
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 56, "width": 56},
}
QUERIES = 5


def blip_2(folder: Path, **text_config: Any) -> Path:
    """A ViT, a Q-Former and an OPT of two layers, as blip2-opt-2.7b."""
    tokenizer = opt_tokenizer(["<image>"])
    ids = tokenizer.token_to_id
    config = Blip2Config(
        vision_config=VISION,
        qformer_config=QFORMER,
        text_config={
            "model_type": "opt",
            "vocab_size": tokenizer.get_vocab_size() + 5,  # padded, as checkpoints are
            "hidden_size": 64,
            "ffn_dim": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "bos_token_id": ids("</s>"),
            "eos_token_id": ids("</s>"),
            "pad_token_id": ids("<pad>"),
            **text_config,
        },
        num_query_tokens=QUERIES,
        image_token_index=ids("<image>"),
    )
    checkpoint = save(
        folder,
        Blip2ForConditionalGeneration(config),
        tokenizer,
        BLIP_PROCESSOR,
        special={
            "bos_token": "</s>",
            "eos_token": "</s>",
            "unk_token": "</s>",
            "pad_token": "<pad>",
        },
        template="",
        end="</s>",
        processor={"processor_class": "Blip2Processor", "num_query_tokens": QUERIES},
    )
    (checkpoint / "chat_template.jinja").unlink()  # the published one has none
    return checkpoint


class OwnPrompt(Blip2Processor):
    """transformers' processor, which puts images before the text by itself."""

    def apply_chat_template(self, messages: list[Message], **settings: Any) -> str:
        (message,) = messages
        return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def load_processor(checkpoint: Path) -> OwnPrompt:
    processor = OwnPrompt(
        BlipImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        num_query_tokens=QUERIES,
    )
    processor.chat_template = "its own"
    return processor


class TextAlone(Blip2ForConditionalGeneration):
    """transformers' model, and its language model for a prompt without an image."""

    def generate(self, pixel_values: torch.Tensor | None = None, **settings: Any) -> Any:
        if pixel_values is None:
            return self.language_model.generate(**settings)
        return super().generate(pixel_values, **settings)


def load_model(checkpoint: Path) -> Any:
    return TextAlone.from_pretrained(checkpoint, dtype=torch.float32).eval()


def questions() -> list[tuple[list[Message], int]]:
    image: list[dict[str, str]] = [IMAGE]
    return [
        ([{"role": "user", "content": [*image[:count], text(question)]}], count)
        for count, question in (
            (1, "Question: What is this?\nIs it 12 or 345? Answer:"),
            (1, "a photo of"),
            (1, " Çà, 字 e\u0301 😀 "),
            (0, "Question: who are you? Answer:"),
        )
    ]


ROWS = [
    Row(
        "blip-2",
        blip_2,
        "one image and one text; ViT, Q-Former; OPT, in ONNX Runtime only",
        "checkpoints with Flan-T5, an encoder-decoder; several images",
        processor=load_processor,
        model=load_model,
        messages=questions,
        single_question=True,
        decoder="fp32",
    )
]
