"""The decoder's attention, taught: heads that are told where to look, and what words must then know.

A few heads are told to look at what a noun or a colour just heard names, at what is about to be said,
at the letter about to be spelt, at the thing whose box is about to be written, and, in the second of
two pictures, at the same place of the first. Left alone, a decoder of this size takes far more pictures
to find out that a noun has to do with a place. Where things are comes from `grounding`.
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
from training.grounding import ANY_SHAPE, Finder
from training.model import TEXT_WIDTH, TOKENS, DenseHeads, share_right

# (layer, head): what the head looks at
WHERE = (1, 0)  # a word just heard: the cells of what it names, or the row's first token
COUNT = (1, 2)  # the same with one share for each thing and a few for the row's first token
RECOUNT = (2, 2)  # that again, once the word has taken in what such a thing looks like here
AREA = (1, 1)  # the same with one share for each covered patch and a few for the first token
SAY = (3, 0)  # a word, a letter or a box about to be written: the cells of what it stands for
COMPARE = (0, 2)  # a token of the second picture: the same cell of the first

_NONE = 3.0  # things' worth of the first token's share in COUNT, so that five and six differ more
_REST = 8.0  # patches' worth of the first token's share in AREA
_MOST = 7  # larger numbers of things pass for this one
HEARD_LAYER = 2  # after it, a word just heard knows what it names


def start_words(model: SmolVLMForConditionalGeneration, heads: DenseHeads, finder: Finder) -> None:
    """Let nouns and colours start as what the picture's tokens were taught to be told apart by.

    A word's embedding is the direction of the dense heads' classifier, and the head `WHERE` compares
    in the space of these directions, in the channels that rotary positions turn least.
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


class Attention:
    """What chosen heads of the decoder look at, computed again from the layers' inputs."""

    def __init__(
        self,
        model: SmolVLMForConditionalGeneration,
        hidden: Sequence[Tensor],
        batch: dict[str, Tensor],
    ) -> None:
        """`hidden` are the inputs of the layers, [rows, length, width]."""
        self._text, self._hidden = model.model.text_model, hidden
        self._mask = dialogues.attention(batch["owner"])
        self._turns = self._text.rotary_emb(hidden[0], batch["positions"])

    def log_shares(self, which: tuple[int, int], at: Tensor) -> Tensor:
        """Log of the attention of the tokens `at` [m, 2] (row, position), [m, length]."""
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
    """How many things a word just heard names, and where the only one is, read from its token.

    Each answer about number, size or place needs this, and few dialogues ask for it: so every mention
    teaches it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TEXT_WIDTH)
        self.numbers = nn.Linear(TEXT_WIDTH, 2 * (_MOST + 1))
        self.box = nn.Linear(TEXT_WIDTH, 4)

    def forward(
        self, hidden: Sequence[Tensor], batch: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, float]]:
        """`hidden` are the inputs of the decoder's layers, [rows, length, width]."""
        row, position = batch["heard_at"].unbind(1)
        read = self.norm(hidden[HEARD_LAYER + 1][row, position])
        true = batch["heard_numbers"].clamp(max=_MOST)
        guessed = self.numbers(read).unflatten(-1, (2, -1))[:, : true.shape[1]]
        box, wanted = self.box(read), batch["heard_boxes"]
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


def _off_equal_shares(looked: Tensor, things: Tensor) -> Tensor:
    """Divergence of the things' shares from equal ones, and of the first token's from `_NONE` such.

    `looked` [m, 1 + cells] are logs of attention, the first token's first; `things` [m, cells].
    """
    # 0: the ground, 1: the first token, from 2 on the things
    groups = functional.pad(torch.where(things > 0, things + 1, 0), (1, 0), value=1)
    each = torch.zeros(len(looked), int(groups.max()) + 1).scatter_add(1, groups, looked.exp())
    wanted = torch.zeros_like(each).scatter(1, groups, 1.0)
    wanted[:, 0], wanted[:, 1] = 0, _NONE
    wanted = wanted / wanted.sum(1, keepdim=True)
    return functional.kl_div((each + 1e-9).log(), wanted, reduction="batchmean")


def attention_loss(
    heads: Attention, batch: dict[str, Tensor], at: Sequence[int]
) -> tuple[Tensor, dict[str, float]]:
    """How far the heads are from what they should look at; `at` is where the pictures start."""
    pictures = [torch.arange(first, first + TOKENS) for first in at]
    columns = torch.cat([torch.zeros(1, dtype=torch.long), *pictures])  # and the row's first token
    pieces: list[Tensor] = []
    figures: dict[str, float] = {}
    covered = batch["heard_things"] > 0
    for name, head, where, cells in (
        ("where", WHERE, batch["heard_at"], covered),
        ("say", SAY, batch["said_at"], batch["said_cells"]),
    ):
        if len(where):
            wanted = torch.cat([~cells.any(1, keepdim=True), cells], 1)
            looked = heads.log_shares(head, where)[:, columns]
            seen = looked.masked_fill(~wanted, -torch.inf).logsumexp(1)
            pieces.append(-seen.mean())
            figures[name] = float(seen.detach().exp().mean())
    if len(covered):
        for name, head in (("count", COUNT), ("recount", RECOUNT)):
            looked = heads.log_shares(head, batch["heard_at"])[:, columns]
            pieces.append(_off_equal_shares(looked, batch["heard_things"]))
            figures[name] = float(pieces[-1].detach())
        wanted = functional.pad(covered.float(), (1, 0), value=_REST)
        looked = heads.log_shares(AREA, batch["heard_at"])[:, columns]
        shares = wanted / wanted.sum(1, keepdim=True)
        pieces.append(functional.kl_div(looked, shares, reduction="batchmean"))
        figures["area"] = float(pieces[-1].detach())
    if len(at) == 2:
        rows = torch.arange(len(batch["ids"])).repeat_interleave(TOKENS)
        first, second = (picture.repeat(len(batch["ids"])) for picture in pictures)
        looked = heads.log_shares(COMPARE, torch.stack([rows, second], 1))
        same = looked.gather(1, first[:, None])
        pieces.append(-same.mean())
        figures["compare"] = float(same.detach().exp().mean())
    return torch.stack(pieces).sum(), figures
