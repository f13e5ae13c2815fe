"""MiniCPM-V 4.6: an overview and slices of an image, a SigLIP that merges patches twice, and a Qwen3.5.

Images only, no video.
"""

from __future__ import annotations

from typing import Any

from transformers import MiniCPMV4_6Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava
from edgevlm.export.minicpmv_tower import MiniCpmVTower

IMAGE_TEMPLATE = (
    "<image_id>{{ index }}</image_id><image>{{ image }}</image>"
    "{% for row in range(rows) %}{{ '\\n' if row }}"
    "{% for column in range(columns) %}<slice>{{ image }}</slice>{% endfor %}{% endfor %}"
)


class ImagesOnly(MiniCPMV4_6Processor):
    """transformers' processor without its part for video, which needs torchvision.

    It asks that part for two settings, which the image processor has, too.
    """

    def __init__(self, image_processor: PilBackend, tokenizer: TokenizersBackend) -> None:
        super().__init__(image_processor, image_processor, tokenizer)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts, in the order of transformers."""
        return ["image_processor", "video_processor", "tokenizer"]

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        """Accept the image processor as the part for video."""
        if argument_name == "video_processor":
            return type(argument)
        return super().check_argument_for_proper_class(argument_name, argument)


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> MiniCPMV4_6Processor:
    """Return transformers' processor."""
    return ImagesOnly(image_processor, tokenizer)


FAMILY = Family(
    tensors={
        r"(?:model\.)?mtp\.": "unused.",
        r"(?:model\.)?merger\.": "connector.",
        **llava.TENSORS,
    },
    vision=MiniCpmVTower,
    image_processor="MiniCPMV4_6ImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
    image_token="<|image_pad|>",
)
