"""Supervised attention: losses that teach some heads of the decoder where to look.

The targets of these heads are: the thing that a noun or a color in the prompt names, the thing that the
next output token names, the next letter of a word, the thing whose box is the next output, and, for a token
of a second image, the same place of the first. Without these losses a decoder of this size needs far more
images to learn that a noun relates to a place. `grounding` computes the targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SmolVLMForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from training import dialogues, labels
from training.grounding import ANY_SHAPE, MentionFinder
from training.model import TEXT_WIDTH, TOKENS, DenseHeads, share_right

# (layer, head): the target of the head's attention
WHERE = (
    1,
    0,
)  # from a word in the prompt to the cells of what it names, or to the row's first token
COUNT = (1, 2)  # the same, with an equal share for each thing and some for the row's first token
RECOUNT = (2, 2)  # the same one layer later, where the word has the appearance of such a thing
AREA = (1, 1)  # the same, with an equal share for each covered patch and some for the first token
SAY = (
    3,
    0,
)  # from the position before a word, a letter or a box to the cells of what it stands for
COMPARE = (0, 2)  # from a token of the second image to the same cell of the first

# Share of the first token in COUNT, in shares of a thing: the shares of five and six things differ more.
_FIRST_TOKEN_THINGS = 3.0
_FIRST_TOKEN_CELLS = 8.0  # share of the first token in AREA, in shares of a patch
_MAX_COUNT = 7  # larger numbers count as this one
MENTION_LAYER = 2  # after it, the token of a word has the information about what the word names


def initialize_words(
    model: SmolVLMForConditionalGeneration, heads: DenseHeads, finder: MentionFinder
) -> None:
    """Initialize the embeddings of nouns and colors from the classifiers of the dense heads.

    A word's embedding is its class's direction. The head `WHERE` compares tokens in the space of these
    directions, in the channels that the rotary position embedding rotates least.
    """
    kinds, colors = heads.directions()
    kinds = kinds - kinds.mean(0)
    colors = colors - colors.mean(0)
    both = torch.cat([functional.normalize(kinds, dim=1), functional.normalize(colors, dim=1)])
    text: Any = model.model.text_model
    attend = text.layers[WHERE[0]].self_attn
    size, group = attend.head_dim, attend.num_key_value_groups
    turning = text.rotary_emb.inv_freq
    still = (turning < 0.5 / 150).nonzero().squeeze(1)
    channels = torch.cat([still, still + size // 2])
    main = torch.linalg.svd(both, full_matrices=False)[2][: len(channels)]
    with torch.no_grad():
        words = text.embed_tokens.weight
        for token, name, color in finder.single_tokens():
            if name != ANY_SHAPE:
                at = labels.KINDS.index(name) if name else len(kinds) + labels.color_index(color)
                words[token] = both[at] * len(both[at]) ** 0.5 + 0.5 * words[token]
        for weight, head in (
            (attend.q_proj.weight, WHERE[1]),
            (attend.k_proj.weight, WHERE[1] // group),
        ):
            rows = weight[head * size : (head + 1) * size]
            rows[channels] = main


class AttentionProbe:
    """Computes the attention of single heads of the decoder again, from the inputs of the layers."""

    def __init__(
        self,
        model: SmolVLMForConditionalGeneration,
        hidden: Sequence[Tensor],
        batch: dict[str, Tensor],
    ) -> None:
        """Take the inputs of the layers as `hidden`, [rows, length, width] each."""
        self._text, self._hidden = model.model.text_model, hidden
        self._mask = dialogues.attention_mask(batch["owner"])
        self._turns = self._text.rotary_emb(hidden[0], batch["positions"])

    def log_shares(self, which: tuple[int, int], at: Tensor) -> Tensor:
        """Return the log of the attention of the tokens `at` [m, 2] (row, position), [m, length]."""
        layer: Any = self._text.layers[which[0]]
        attend = layer.self_attn
        size, group = attend.head_dim, attend.num_key_value_groups
        hidden = layer.input_layernorm(self._hidden[which[0]])
        head, shared = which[1], which[1] // group
        query = attend.q_proj.weight[head * size : (head + 1) * size]
        key = attend.k_proj.weight[shared * size : (shared + 1) * size]
        queries, keys = apply_rotary_pos_emb(
            functional.linear(hidden, query)[:, None],
            functional.linear(hidden, key)[:, None],
            *self._turns,
        )
        row, position = at.unbind(1)
        scores = torch.einsum("md,mkd->mk", queries[row, 0, position], keys[row, 0])
        allowed = self._mask[row, 0, position]
        return torch.log_softmax(scores * attend.scaling + allowed, -1)


class MentionHeads(nn.Module):
    """Predict from the token of a word how many things it names, and the box of the only one.

    Each answer about number, size or place needs this, but few dialogues ask for it. So the loss uses
    every mention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        self.numbers = nn.Linear(TEXT_WIDTH, 2 * (_MAX_COUNT + 1))
        self.box = nn.Linear(TEXT_WIDTH, 4)

    def forward(
        self, hidden: Sequence[Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss and the figures; `hidden` are the layers' inputs, [rows, length, width]."""
        row, position = batch["named_at"].unbind(1)
        read = self.norm(hidden[MENTION_LAYER + 1][row, position])
        true = batch["named_counts"].clamp(max=_MAX_COUNT)
        guessed = self.numbers(read).unflatten(-1, (2, -1))[:, : true.shape[1]]
        box, wanted = self.box(read), batch["named_boxes"]
        only = ~wanted[:, 0].isnan()
        off = functional.smooth_l1_loss(box[only], wanted[only], beta=0.05, reduction="sum")
        several = true.max(1).values > 1
        loss = functional.cross_entropy(guessed.transpose(1, 2), true, reduction="none").mean(1)
        counted = (loss * (1 + 3 * several)).sum()  # most words name one thing or none
        figures = {
            "numbered": share_right(guessed, true),
            "numbered_many": share_right(guessed[several], true[several]),
            "box_off": float((box[only] - wanted[only]).detach().abs().mean()),
        }
        return (counted + 4 * off) / max(1, len(row)), figures


def _equal_share_loss(looked: Tensor, things: Tensor) -> Tensor:
    """Return the divergence from equal shares for all things and the fixed share of the first token.

    Args:
        looked: logs of attention [m, 1 + cells]; the first column is the row's first token.
        things: the number of the thing that covers each cell, from 1, or 0 [m, cells].
    """
    # 0: the background, 1: the first token, from 2 on the things
    groups = functional.pad(torch.where(things > 0, things + 1, 0), (1, 0), value=1)
    each = torch.zeros(len(looked), int(groups.max()) + 1).scatter_add(1, groups, looked.exp())
    wanted = torch.zeros_like(each).scatter(1, groups, 1.0)
    wanted[:, 0], wanted[:, 1] = 0, _FIRST_TOKEN_THINGS
    wanted = wanted / wanted.sum(1, keepdim=True)
    return functional.kl_div((each + 1e-9).log(), wanted, reduction="batchmean")


def attention_loss(
    heads: AttentionProbe, batch: dict[str, Tensor], at: Sequence[int]
) -> tuple[Tensor, dict[str, float]]:
    """Return the loss of all supervised heads, and the figures.

    Args:
        heads: the attention of the heads.
        batch: the result of `training.grounding.attention_targets` and the row's ids.
        at: the position at which each image starts.
    """
    images = [torch.arange(first, first + TOKENS) for first in at]
    columns = torch.cat([torch.zeros(1, dtype=torch.long), *images])  # and the row's first token
    pieces: list[Tensor] = []
    figures: dict[str, float] = {}
    covered = batch["named_things"] > 0
    for name, head, where, cells in (
        ("where", WHERE, batch["named_at"], covered),
        ("say", SAY, batch["output_at"], batch["output_cells"]),
    ):
        if len(where):
            wanted = torch.cat([~cells.any(1, keepdim=True), cells], 1)
            looked = heads.log_shares(head, where)[:, columns]
            seen = looked.masked_fill(~wanted, -torch.inf).logsumexp(1)
            pieces.append(-seen.mean())
            figures[name] = float(seen.detach().exp().mean())
    if len(covered):
        for name, head in (("count", COUNT), ("recount", RECOUNT)):
            looked = heads.log_shares(head, batch["named_at"])[:, columns]
            pieces.append(_equal_share_loss(looked, batch["named_things"]))
            figures[name] = float(pieces[-1].detach())
        wanted = functional.pad(covered.float(), (1, 0), value=_FIRST_TOKEN_CELLS)
        looked = heads.log_shares(AREA, batch["named_at"])[:, columns]
        shares = wanted / wanted.sum(1, keepdim=True)
        pieces.append(functional.kl_div(looked, shares, reduction="batchmean"))
        figures["area"] = float(pieces[-1].detach())
    if len(at) == 2:
        rows = torch.arange(len(batch["ids"])).repeat_interleave(TOKENS)
        first, second = (image.repeat(len(batch["ids"])) for image in images)
        looked = heads.log_shares(COMPARE, torch.stack([rows, second], 1))
        same = looked.gather(1, first[:, None])
        pieces.append(-same.mean())
        figures["compare"] = float(same.detach().exp().mean())
    return torch.stack(pieces).sum(), figures
