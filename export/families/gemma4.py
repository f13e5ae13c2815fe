"""Gemma 4 E2B and E4B: images of their own aspect ratio, and a Gemma whose layers each embed the token.

Images only, no audio and no video. Text goes into llama.cpp as tokens alone: an embedding does not tell which
token the layers embed. For images they embed padding, in transformers and in llama.cpp.
"""

from __future__ import annotations

from transformers import AutoModel, Gemma4Processor, PretrainedConfig
from transformers.image_processing_backends import PilBackend
from transformers.models.gemma4.modeling_gemma4 import Gemma4MultimodalEmbedder
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.families import Family, images_only
from edgevlm.export.gemma4_tower import Gemma4Tower


def vision(config: PretrainedConfig) -> Gemma4Tower:
    """Return tower and connector.

    Raises:
        ExportError: the tower is not of the kind that E2B and E4B have.
    """
    tower = config.vision_config
    if tower.num_key_value_heads != tower.num_attention_heads:
        raise ExportError(
            f"the vision part has {tower.num_attention_heads} heads and {tower.num_key_value_heads} of keys "
            f"and values, edgevlm exports equal numbers"
        )
    if tower.standardize:
        raise ExportError(
            "standardize is true in vision_config, edgevlm exports the sizes of Gemma 4 without it (E2B, E4B)"
        )
    return Gemma4Tower(
        AutoModel.from_config(tower), Gemma4MultimodalEmbedder(tower, config.text_config)
    )


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Gemma4Processor:
    """Return transformers' processor without its parts for audio and video."""
    return images_only(Gemma4Processor)(None, image_processor, tokenizer, None)


FAMILY = Family(
    tensors={
        r"model\.vision_tower\.": "tower.",
        r"model\.embed_vision\.": "connector.",
        r"model\.(?:audio_tower|embed_audio)\.": "unused.",
        r"model\.language_model\.": "decoder.",
        r"lm_head\.": "head.",
    },
    vision=vision,
    image_processor="Gemma4ImageProcessor",
    processor=processor,
    image_template="<|image>{{ image }}<image|>",
    image_token="<|image|>",
    text_embedding_scale=None,
)
