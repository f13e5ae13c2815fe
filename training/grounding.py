"""Where in the picture the words of a dialogue are, to teach the decoder's attention.

A few heads of the decoder are told where to look: at what a noun or a colour just heard names, at
what is about to be said, at the letter about to be spelt, and, in the second of two pictures, at the
same place of the first. Left alone, a decoder of this size takes far more pictures to find out that a
noun has to do with a place. Covered: things and plain colours in English and Russian, printed words.
Not covered: places ("at the top left"), sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, SmolVLMForConditionalGeneration
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from edgevlm.evaluation import drawings
from edgevlm.evaluation.scenes import COLORS, Scene, Word
from edgevlm.evaluation.wording import color_forms, noun
from training import labels
from training.dialogues import attention
from training.labels import Labels
from training.model import GRID, SHUFFLE, TOKENS, DenseHeads

SIDE = GRID // SHUFFLE
ANY_SHAPE = "shape"

Entry = tuple[tuple[int, ...], str | None, str | None]  # tokens of a word, its name or its colour

# (layer, head): what the head looks at
WHERE = (1, 0)  # a word just heard: the cells of what it names, or the row's first token
COUNT = (1, 2)  # the same with one share for each thing's centre and one for the row's first token
SAY = (3, 0)  # a word about to be said, or a letter about to be spelt: its cells
COMPARE = (0, 2)  # a token of the second picture: the same cell of the first


@dataclass(frozen=True)
class Mention:
    """A noun with or without a colour, or a colour alone, at tokens `start` to `end` (included).

    `noun_start` is where the noun itself starts. `heard` are the tokens at which it has been named:
    a plural's last and, where the singular is its beginning, the singular's.
    """

    start: int
    noun_start: int
    end: int
    heard: tuple[int, ...]
    name: str | None
    color: str | None


class Finder:
    """Finds things, colours and printed words among token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        texts = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self._quotes = {i for i, text in enumerate(texts) if text.endswith('"')}
        # byte-level pieces that go on with a word: a Latin letter, or the bytes of other letters
        self._inner = {
            i for i, t in enumerate(texts) if t and (t[0].isalpha() and t[0] != "\u0120")
        }
        self._words: dict[int, list[Entry]] = {}
        for name in (*drawings.nouns(), ANY_SHAPE):
            known = noun(name)
            forms = (known.name, known.plural, known.russian)
            for form in {*forms, known.genitive, known.genitive_plural}:
                self._add(form, name, None)
        for color in COLORS:
            for form in color_forms(color):
                self._add(form, None, color)
        for known_words in self._words.values():
            known_words.sort(key=lambda entry: -len(entry[0]))

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._encode(text, add_special_tokens=False).ids)

    def _add(self, form: str, name: str | None, color: str | None) -> None:
        ids = self._ids(f" {form}")
        self._words.setdefault(ids[0], []).append((ids, name, color))

    def single_tokens(self) -> list[tuple[int, str | None, str | None]]:
        """Words of one token: its id, and the name or the colour."""
        words = [entry for known in self._words.values() for entry in known]
        return [(ids[0], name, color) for ids, name, color in words if len(ids) == 1]

    def mentions(self, ids: Sequence[int]) -> list[Mention]:
        """All mentions, in order."""
        found: list[Mention] = []
        at = 0
        while at < len(ids):
            longest = self._longest(ids, at)
            if longest is None:
                at += 1
                continue
            word, name, color = longest
            begun = (
                len(w) for w, n, _ in self._words[ids[at]] if n == name and w == word[: len(w)]
            )
            heard = tuple(sorted({at + size - 1 for size in begun}))
            end = at + len(word)
            before = found[-1] if found else None
            if name and before and before.name is None and before.end == at - 1:
                found.append(Mention(before.start, at, end - 1, heard, name, before.color))
            else:
                found.append(Mention(at, at, end - 1, heard, name, color))
            at = end
        return found

    def _longest(self, ids: Sequence[int], at: int) -> Entry | None:
        for entry in self._words.get(ids[at], ()):
            end = at + len(entry[0])
            if tuple(ids[at:end]) == entry[0] and (end == len(ids) or ids[end] not in self._inner):
                return entry
        return None

    def spelt(self, ids: Sequence[int], text: str) -> list[int]:
        """Where the quoted text starts, its letters one by one."""
        letters = tuple(i for letter in text for i in self._ids(letter))
        size = len(letters)
        return [
            at
            for at in range(1, len(ids) - size + 1)
            if ids[at - 1] in self._quotes and tuple(ids[at : at + size]) == letters
        ]


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


def _by_token(cells: NDArray[Any]) -> NDArray[np.float32]:
    """Sums over each token's patches, [TOKENS]; `cells` [GRID * GRID]."""
    square = cells.reshape(SIDE, SHUFFLE, SIDE, SHUFFLE).astype(np.float32)
    summed: NDArray[np.float32] = square.sum((1, 3)).reshape(TOKENS)
    return summed


class Places:
    """Where a scene's things and letters are, in tokens of its picture."""

    def __init__(self, scene: Scene, found: Labels) -> None:
        """`found` are the labels of the scene's `GRID` x `GRID` patches."""
        self._scene = scene
        self._kind, self._color = found.kind, found.color
        self._known: dict[tuple[str | None, str | None], tuple[Any, Any]] = {}

    def _matches(self, name: str | None, color: str | None) -> list[bool]:
        return [
            (name in (None, thing.name) or (name == ANY_SHAPE and thing.color is not None))
            and color in (None, thing.color)
            for thing in self._scene.things
        ]

    def of(self, name: str | None, color: str | None) -> tuple[NDArray[Any], NDArray[Any]]:
        """Covered cells and number of centres, each [TOKENS]."""
        known = self._known.get((name, color))
        if known is None:
            scene = self._scene
            covered = np.zeros(GRID * GRID, bool)
            centres = np.zeros(TOKENS, np.float32)
            for thing, matches in zip(scene.things, self._matches(name, color), strict=True):
                if not matches:
                    continue
                kind = self._kind == 1 + labels.KINDS.index(thing.name)
                covered |= kind & (self._color == labels.color_index(thing.color))
                x, y = scene.place(thing)
                column, row = (min(SIDE - 1, max(0, int(at * SIDE))) for at in (x, y))
                centres[row * SIDE + column] += 1
            known = self._known[name, color] = _by_token(covered), centres
        return known

    @property
    def words(self) -> tuple[Word, ...]:
        return self._scene.words

    def of_letters(self, word: Word) -> list[NDArray[Any]]:
        """For each letter of one of `words`, the cells that it covers, [TOKENS]."""
        order = labels.letter_order(word, self._scene, GRID).reshape(GRID * GRID, 2)
        return [_by_token((order == i).any(-1)) for i in range(len(word.text))]


def ground(
    finder: Finder, rows: Sequence[dict[str, NDArray[np.int64]]], shown: Sequence[Sequence[Places]]
) -> dict[str, Tensor]:
    """What the attention heads of each row should look at; `shown` are the places in its pictures.

    `heard_at` [m, 2] are rows and positions, `heard_cells` and `heard_centres` [m, pictures *
    TOKENS] the covered cells and the numbers of centres; `said_at` and `said_cells` likewise for
    positions whose next token names what is there or spells it.
    """
    heard: list[tuple[tuple[int, int], Any, Any]] = []
    said: list[tuple[tuple[int, int], Any]] = []
    for number, (row, places) in enumerate(zip(rows, shown, strict=True)):
        ids, owner, targets = (row[k].tolist() for k in ("ids", "owner", "targets"))
        for mention in finder.mentions(ids):
            if owner[mention.end] <= 0:
                continue
            cells, centres = zip(
                *(place.of(mention.name, mention.color) for place in places), strict=True
            )
            for at in mention.heard:
                heard.append(((number, at), np.concatenate(cells), np.concatenate(centres)))
            if mention.name is None:
                continue
            for at in {mention.start, mention.noun_start}:
                if targets[at - 1] >= 0:
                    said.append(((number, at - 1), np.concatenate(cells)))
        for which, place in enumerate(places):
            for word in place.words:
                starts = finder.spelt(ids, word.text)
                if not starts:
                    continue
                letters = place.of_letters(word)
                for start in starts:
                    for at, cells_of_letter in enumerate(letters, start - 1):
                        if targets[at] >= 0 and cells_of_letter.any():
                            whole = np.zeros(len(places) * TOKENS, np.float32)
                            whole[which * TOKENS : (which + 1) * TOKENS] = cells_of_letter
                            said.append(((number, at), whole))
    width = len(shown[0]) * TOKENS
    return {
        "heard_at": torch.tensor([h[0] for h in heard], dtype=torch.long).view(-1, 2),
        "heard_cells": _stack([h[1] for h in heard], width),
        "heard_centres": _stack([h[2] for h in heard], width),
        "said_at": torch.tensor([s[0] for s in said], dtype=torch.long).view(-1, 2),
        "said_cells": _stack([s[1] for s in said], width),
    }


def _stack(arrays: list[NDArray[Any]], width: int) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, width)


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
        self._mask = attention(batch["owner"])
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


def attention_loss(
    heads: Attention, batch: dict[str, Tensor], at: Sequence[int]
) -> tuple[Tensor, dict[str, float]]:
    """How far the heads are from what they should look at; `at` is where the pictures start."""
    pictures = [torch.arange(first, first + TOKENS) for first in at]
    columns = torch.cat([torch.zeros(1, dtype=torch.long), *pictures])  # and the row's first token
    pieces: list[Tensor] = []
    figures: dict[str, float] = {}
    for name, head, where, cells in (
        ("where", WHERE, batch["heard_at"], batch["heard_cells"]),
        ("say", SAY, batch["said_at"], batch["said_cells"]),
    ):
        if len(where):
            absent = ~cells.bool().any(1, keepdim=True)
            wanted = torch.cat([absent, cells.bool()], 1)
            looked = heads.log_shares(head, where)[:, columns]
            seen = looked.masked_fill(~wanted, -torch.inf).logsumexp(1)
            pieces.append(-seen.mean())
            figures[name] = float(seen.detach().exp().mean())
    if len(batch["heard_at"]):
        wanted = functional.pad(batch["heard_centres"], (1, 0), value=1.0)
        wanted = wanted / wanted.sum(1, keepdim=True)
        looked = heads.log_shares(COUNT, batch["heard_at"])[:, columns]
        pieces.append(functional.kl_div(looked, wanted, reduction="batchmean"))
        figures["count"] = float(pieces[-1].detach())
    if len(at) == 2:
        rows = torch.arange(len(batch["ids"])).repeat_interleave(TOKENS)
        first, second = (picture.repeat(len(batch["ids"])) for picture in pictures)
        looked = heads.log_shares(COMPARE, torch.stack([rows, second], 1))
        same = looked.gather(1, first[:, None])
        pieces.append(-same.mean())
        figures["compare"] = float(same.detach().exp().mean())
    return torch.stack(pieces).sum(), figures
