"""Idefics3, and the first generation of SmolVLM, whose ``model_type`` is ``idefics3``, too.

A SigLIP tower over tiles, pixel shuffle and one linear layer, and a Llama. Images are split into a grid.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import Idefics3Processor, PretrainedConfig, PreTrainedModel
from transformers.image_processing_backends import PilBackend
from transformers.models.idefics3.modeling_idefics3 import (
    Idefics3Connector,
    Idefics3VisionEmbeddings,
    Idefics3VisionTransformer,
)
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.export.families import Family

TENSORS = {
    r"model\.vision_model\.": "tower.",
    r"model\.connector\.": "connector.",
    r"model\.text_model\.": "decoder.",
    r"lm_head\.": "head.",
}
WHOLE = "<fake_token_around_image><global-img>{{ image }}<fake_token_around_image>"
IMAGE_TEMPLATE = (
    f"{{% if tiles == 1 %}}{WHOLE}{{% else %}}"
    "{% for row in range(1, rows + 1) %}{% for column in range(1, columns + 1) %}"
    "<fake_token_around_image><row_{{ row }}_col_{{ column }}>{{ image }}{% endfor %}\n{% endfor %}"
    f"\n{WHOLE}{{% endif %}}"
)
"""``get_image_prompt_string`` of ``processing_idefics3.py``."""


class Idefics3Vision(nn.Module):
    """Tower and connector for whole tiles, so that positions are constants of the graph.

    The reference puts the position of each patch into buckets, in float32. For some numbers of patches, such
    as 25 a side, this does not give one bucket after the other, so the graph takes the result of the
    reference.
    """

    position_ids: torch.Tensor

    def __init__(
        self,
        config: PretrainedConfig,
        tower: type[PreTrainedModel] = Idefics3VisionTransformer,
        embeddings: type[nn.Module] = Idefics3VisionEmbeddings,
        connector: type[nn.Module] = Idefics3Connector,
    ) -> None:
        super().__init__()
        self.tower = tower._from_config(config.vision_config)
        self.connector = connector(config)
        ids = position_ids(embeddings(config.vision_config), config.vision_config)
        self.register_buffer("position_ids", ids, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return tokens ``[n, tokens, width]`` for normalized pixels ``[n, 3, height, width]``."""
        embeddings = self.tower.embeddings
        patches = embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
        hidden = patches + embeddings.position_embedding(self.position_ids)
        hidden = self.tower.encoder(inputs_embeds=hidden).last_hidden_state
        tokens: torch.Tensor = self.connector(self.tower.post_layernorm(hidden))
        return tokens


def position_ids(embeddings: nn.Module, config: PretrainedConfig) -> torch.Tensor:
    """Return the positions that the reference uses for a whole tile, int64 ``[patches]``."""
    seen: list[torch.Tensor] = []
    hook = embeddings.position_embedding.register_forward_pre_hook(  # type: ignore[union-attr]  # a child by name
        lambda module, inputs: seen.append(inputs[0])
    )
    side = config.image_size // config.patch_size
    pixels = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
    with torch.no_grad():
        embeddings(pixels, torch.ones(1, side, side, dtype=torch.bool))
    hook.remove()
    return seen[0][0]


def processor(
    image_processor: PilBackend,
    tokenizer: TokenizersBackend,
    config: PretrainedConfig,
    tokens_per_tile: int,
) -> Idefics3Processor:
    """Return transformers' processor."""
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=tokens_per_tile)


FAMILY = Family(
    tensors=TENSORS,
    vision=Idefics3Vision,
    image_processor="Idefics3ImageProcessor",
    processor=processor,
    image_template=IMAGE_TEMPLATE,
)
