"""GOT-OCR 2.0: a ViT as SAM has, three layers of convolutions and a linear one, and a Qwen 2.

It reads the text of one image. transformers' processor writes the prompt in code. A user asks ``OCR``, or
``OCR with format`` for LaTeX and tables. ``[red]  OCR`` is about a color, ``[100, 200, 900, 400] OCR`` about
a box in thousandths of the image.
"""

from __future__ import annotations

from transformers import GotOcr2Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.got_ocr2.modeling_got_ocr2 import (
    GotOcr2MultiModalProjector,
    GotOcr2VisionEncoder,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava, read_template
from edgevlm.export.vision_parts import LastFeatures
from edgevlm.manifest import Tasks, Usage


def vision(config: PretrainedConfig) -> LastFeatures:
    """Return tower and projector."""
    tower = GotOcr2VisionEncoder._from_config(config.vision_config)
    return LastFeatures(tower, GotOcr2MultiModalProjector(config))


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> GotOcr2Processor:
    """Return transformers' processor."""
    made = GotOcr2Processor(image_processor, tokenizer)
    made.num_image_tokens = tokens_per_tile
    return made


FAMILY = Family(
    tensors=llava.TENSORS,
    vision=vision,
    image_processor="GotOcr2ImageProcessor",
    processor=processor,
    image_settings=lambda config: {"crop_to_patches": False},  # on only if a call asks for it
    image_token="<imgpad>",
    chat_template=read_template("got_ocr2"),
    # The checkpoint ends with <|endoftext|>; transformers' examples stop at this text.
    end_tokens=("<|im_end|>",),
    usage=lambda repository: Usage(images="photographs", tasks={"en": Tasks(read="OCR")}),
)
