"""LLaVA 1.5 as its authors published it; see `edgevlm.export.original_llava`."""

from __future__ import annotations

from typing import Any

from transformers import LlavaForConditionalGeneration, LlavaProcessor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family, llava
from edgevlm.export.original_llava import IMAGE_TOKEN, PLACEHOLDER

TENSORS = {
    r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?": "tower.",
    r"(?:vision_model\.)?(?=(?:embeddings|encoder|pre_layrnorm|post_layernorm)\.)": "tower.",
    r"model\.mm_projector\.0\.": "connector.linear_1.",
    r"model\.mm_projector\.2\.": "connector.linear_2.",
    r"lm_head\.": "head.",
    r"model\.(?=(?:embed_tokens|layers|norm)\.)": "decoder.",
}


class Processor(LlavaProcessor):
    """transformers' processor, with a token in place of the text that stands for an image."""

    def __call__(self, images: Any = None, text: Any = None, **settings: Any) -> Any:
        """Return the model's inputs."""
        texts = [text] if isinstance(text, str) else text
        replaced = [single.replace(PLACEHOLDER, IMAGE_TOKEN) for single in texts]
        return super().__call__(images=images, text=replaced, **settings)


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Processor:
    """Return transformers' processor, with settings that give the tokens of the model."""
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    return Processor(
        image_processor,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=tokens_per_tile - patches,
    )


FAMILY = Family(
    tensors=TENSORS,
    vision=llava.vision,
    image_processor="LlavaImageProcessor",
    processor=processor,
    image_token=IMAGE_TOKEN,
    image_placeholder=PLACEHOLDER,
    model=LlavaForConditionalGeneration,
)
