"""The processor of Pixtral and Mistral 3, without torchvision, which that of transformers needs."""

from __future__ import annotations

from typing import Any

from transformers import ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

IMAGE, BREAK, END = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
"""What stands for an embedding, what follows a line of them, and what follows the last line."""


class LineProcessor(ProcessorMixin):
    """What ``PixtralProcessor`` does with images and text.

    Args:
        side: side in pixels of the square that one embedding stands for.
    """

    image_token = IMAGE

    def __init__(
        self, image_processor: PilBackend, tokenizer: TokenizersBackend, side: int
    ) -> None:
        super().__init__(image_processor, tokenizer)
        self.side = side

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the names of the parts that the processor is made of."""
        return ["image_processor", "tokenizer"]

    def replace_image_token(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        """Return the text that stands for an image."""
        lines, columns = (
            int(length) // self.side for length in image_inputs["image_sizes"][image_idx]
        )
        return BREAK.join([IMAGE * columns] * lines) + END
