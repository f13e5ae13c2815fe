"""The short convolutions of LFM2, which read the entries before each one from cells."""

from __future__ import annotations

import torch
from torch import nn
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from edgevlm.export.decoder_cache import Cells


class ShortConvolution(nn.Module):
    """A causal convolution over the entries of each sequence, between two gates.

    transformers keeps the last inputs of one sequence. This one keeps those of all entries, so that it may
    continue after any entry of any sequence.

    Args:
        original: transformers' module, whose parts and their names it takes.
    """

    def __init__(self, original: Lfm2ShortConv) -> None:
        super().__init__()
        self.conv = original.conv
        self.in_proj = original.in_proj
        self.out_proj = original.out_proj
        self.layer = original.layer_idx

    def forward(
        self, hidden_states: torch.Tensor, cache: Cells, **settings: object
    ) -> torch.Tensor:
        """Return the result ``[1, n, width]`` for new entries ``[1, n, width]``.

        Args:
            hidden_states: the entries.
            cache: the cells.
            settings: what transformers passes beside that.
        """
        gate, out_gate, values = self.in_proj(hidden_states).chunk(3, dim=-1)
        read = cache.update_inputs((gate * values).squeeze(0), self.layer)
        mixed = (read * self.conv.weight.squeeze(1).T).sum(dim=1)
        if self.conv.bias is not None:
            mixed = mixed + self.conv.bias
        result: torch.Tensor = self.out_proj(out_gate * mixed)
        return result


def replace_short_convolutions(layers: nn.ModuleList) -> None:
    """Let layers of transformers' LFM2 have a `ShortConvolution` where they have a convolution."""
    for layer in layers:
        found = getattr(layer, "conv", None)
        if isinstance(found, Lfm2ShortConv):
            layer.conv = ShortConvolution(found)
