"""The Q-Former of BLIP-2 and InstructBLIP: learned queries that look at the features of an image."""

from __future__ import annotations

import torch
from torch import nn
from transformers import Blip2QFormerModel, PretrainedConfig, PreTrainedModel


class QFormer(nn.Module):
    """The connector: learned queries that look at the features of a tile, and a linear layer."""

    def __init__(
        self, config: PretrainedConfig, kind: type[PreTrainedModel] = Blip2QFormerModel
    ) -> None:
        super().__init__()
        width = config.qformer_config.hidden_size
        self.query_tokens = nn.Parameter(torch.empty(1, config.num_query_tokens, width))
        self.qformer = kind._from_config(config.qformer_config)
        self.language_projection = nn.Linear(width, config.text_config.hidden_size)

    def forward(self, features: torch.Tensor, **question: torch.Tensor) -> torch.Tensor:
        """Return embeddings ``[n, queries, width]``.

        Args:
            features: ``[n, patches + 1, width of the tower]``.
            question: ``input_ids`` of a Q-Former that reads the question, int64 ``[n, length]``.
        """
        queries = self.query_tokens.expand(features.shape[0], -1, -1)
        found = self.qformer(
            query_embeds=queries, encoder_hidden_states=features, return_dict=True, **question
        ).last_hidden_state
        embeddings: torch.Tensor = self.language_projection(found[:, : queries.shape[1]])
        return embeddings
