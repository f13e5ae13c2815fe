"""GOT-OCR 2.0, which reads the text of one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image
from transformers import (
    AutoTokenizer,
    GotOcr2Config,
    GotOcr2ForConditionalGeneration,
    GotOcr2Processor,
)
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from tests.families.llava import text_config
from tests.families.row import IMAGE, Message, Row, save, text
from tests.families.tokenizers import qwen_tokenizer

TASKS: dict[str, dict[str, Any]] = {
    "OCR": {},
    "OCR with format": {"format": True},
    "[red]  OCR": {"color": "red"},
    "[100, 200, 900, 400] OCR with format": {"box": [100, 200, 900, 400], "format": True},
}
"""Question of a user, and the arguments by which transformers' processor asks the same."""


class OwnPrompt(GotOcr2Processor):
    """transformers' processor, whose own prompt stands for the chat template that it lacks."""

    def apply_chat_template(self, messages: list[Message], **settings: Any) -> str:
        """Write the prompt of a task; of any other question that of OCR, with the question in its place."""
        question = messages[0]["content"][1]["text"]
        task = {"format": False, **TASKS.get(question, {})}
        _, (prompt,), *_ = self.prepare_inputs_layout(
            images=[Image.new("RGB", (1000, 1000))],  # boxes are in thousandths
            images_kwargs={"crop_to_patches": False},
            **task,
        )
        assert isinstance(prompt, str)
        return prompt if question in TASKS else prompt.replace(" OCR: ", f" {question}: ")


def load_processor(checkpoint: Path) -> OwnPrompt:
    processor = OwnPrompt(
        GotOcr2ImageProcessorPil.from_pretrained(checkpoint),
        AutoTokenizer.from_pretrained(checkpoint),
        chat_template="its own",
    )
    processor.num_image_tokens = 16
    return processor


def got_ocr2(folder: Path) -> Path:
    """Windows of 5 over 16 x 16 patches, so that they are padded; one layer is over all patches."""
    tokenizer = qwen_tokenizer(["<ref>", "</ref>", "<img>", "</img>", "<imgpad>"])
    config = GotOcr2Config(
        vision_config={
            "hidden_size": 32,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 128,
            "patch_size": 8,
            "window_size": 5,
            "global_attn_indexes": [1],
            "mlp_dim": 64,
        },
        text_config=text_config("qwen2", tokenizer, tie_word_embeddings=True),
        image_token_index=tokenizer.token_to_id("<imgpad>"),
        image_seq_length=16,
    )
    checkpoint = save(
        folder,
        GotOcr2ForConditionalGeneration(config),
        tokenizer,
        {
            "image_processor_type": "GotOcr2ImageProcessor",
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"height": 128, "width": 128},
        },
        special={
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
        },
        template="",
        end="<|endoftext|>",
        processor={"processor_class": "GotOcr2Processor"},
    )
    (checkpoint / "chat_template.jinja").unlink()  # the published one has none
    return checkpoint


def questions() -> list[tuple[list[Message], int]]:
    return [([{"role": "user", "content": [IMAGE, text(task)]}], 1) for task in TASKS]


ROWS = [
    Row(
        "got_ocr2",
        got_ocr2,
        "text of one image: `OCR`, `OCR with format`, of a color or in a box; Qwen 2",
        "several pages, large images cut into tiles (`crop_to_patches`)",
        processor=load_processor,
        messages=questions,
        single_question=True,
        sizes=((150, 100), (60, 130), (40, 40), (128, 128)),
    )
]
