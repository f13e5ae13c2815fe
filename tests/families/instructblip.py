"""InstructBLIP, whose Q-Former reads the question beside the image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from tests.families.blip_2 import BLIP_PROCESSOR, QFORMER, QUERIES, VISION
from tests.families.llava import LLAMA_SPECIAL, text_config
from tests.families.row import IMAGE, Message, Row, save, text
from tests.families.tokenizers import bert_tokenizer, llama_tokenizer


def instructblip(folder: Path) -> Path:
    """A ViT, a Q-Former with the embeddings of a BERT, and a Llama, as instructblip-vicuna-7b."""
    tokenizer, words = llama_tokenizer(), bert_tokenizer()
    config = InstructBlipConfig(
        vision_config=VISION,
        qformer_config={
            **QFORMER,
            "vocab_size": words.get_vocab_size(),
            "max_position_embeddings": 96,
        },
        text_config=text_config("llama", tokenizer),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.token_to_id("<image>"),
    )
    checkpoint = save(
        folder,
        InstructBlipForConditionalGeneration(config),
        tokenizer,
        BLIP_PROCESSOR,
        # transformers' processor takes no tokenizer with an attribute for it
        special={name: token for name, token in LLAMA_SPECIAL.items() if name != "image_token"},
        template="",
        end="</s>",
        processor={"processor_class": "InstructBlipProcessor", "num_query_tokens": QUERIES},
    )
    (checkpoint / "chat_template.jinja").unlink()  # the published one has none
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(checkpoint / "qformer_tokenizer")
    return checkpoint


class OwnPrompt(InstructBlipProcessor):
    """transformers' processor, which puts images before the text by itself."""

    def apply_chat_template(self, messages: list[Message], **settings: Any) -> str:
        (message,) = messages
        return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def load_processor(checkpoint: Path) -> OwnPrompt:
    processor = OwnPrompt(
        BlipImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint / "qformer_tokenizer"),
        num_query_tokens=QUERIES,
    )
    processor.chat_template = "its own"
    return processor


class TextAlone(InstructBlipForConditionalGeneration):
    """transformers' model, and its language model for a prompt without an image."""

    def generate(self, pixel_values: torch.Tensor | None = None, **settings: Any) -> Any:
        if pixel_values is None:
            plain = {name: value for name, value in settings.items() if "qformer" not in name}
            return self.language_model.generate(**plain)
        return super().generate(pixel_values, **settings)


def load_model(checkpoint: Path) -> Any:
    return TextAlone.from_pretrained(checkpoint, dtype=torch.float32).eval()


def questions() -> list[tuple[list[Message], int]]:
    image: list[dict[str, str]] = [IMAGE]
    return [
        ([{"role": "user", "content": [*image[:count], text(question)]}], count)
        for count, question in (
            (1, "What is this?\nIs it 12 or 345?"),
            (1, "Why?"),
            (1, " Çà, 字 e\u0301 😀 "),
            (0, "Who are you?"),
        )
    ]


ROWS = [
    Row(
        name,
        instructblip,
        works,
        "checkpoints with Flan-T5, an encoder-decoder; several images",
        processor=load_processor,
        model=load_model,
        messages=questions,
        single_question=True,
        decoder=decoder,
    )
    for name, works, decoder in (
        ("instructblip", "as blip-2, the Q-Former reads the question; Llama (Vicuna)", "f16"),
        ("instructblip, ONNX Runtime", "the same, decoder in ONNX Runtime", "fp32"),
    )
]
