"""Grounding: the place in the image of each word of a dialogue, as targets for `attention`.

It covers things and colors in English and Russian, printed words and boxes. It does not cover places ("at
the top left").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edgevlm.scenes import drawings
from edgevlm.scenes.composition import COLORS, Scene, Thing, Word
from edgevlm.scenes.view import format_box
from edgevlm.scenes.wording import color_forms, noun
from training import labels
from training.labels import Labels
from training.model import GRID, TOKENS

ANY_SHAPE = "shape"

Entry = tuple[tuple[int, ...], str | None, str | None]  # tokens of a word, its name or its color


@dataclass(frozen=True)
class Mention:
    """A noun with or without a color, or a color alone, in a row of tokens."""

    start: int
    """Index of the first token."""
    noun_start: int
    """Index of the first token of the noun."""
    end: int
    """Index of the last token."""
    named_at: tuple[int, ...]
    """Indices at which the name is complete: the last token, and that of a singular within a plural."""
    name: str | None
    color: str | None


class MentionFinder:
    """Finds things, colors and printed words in token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encode = tokenizer.backend_tokenizer.encode
        texts = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        self.bracket = self.ids(" [")[0]  # every box starts with it
        self.articles = {self.ids(word)[0] for word in (" a", " an", " the")}
        self._quotes = {i for i, text in enumerate(texts) if text.endswith('"')}
        # byte-level tokens that continue a word: a Latin letter, or the bytes of other letters
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

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._encode(text, add_special_tokens=False).ids)

    def _add(self, form: str, name: str | None, color: str | None) -> None:
        ids = self.ids(f" {form}")
        self._words.setdefault(ids[0], []).append((ids, name, color))

    def single_tokens(self) -> list[tuple[int, str | None, str | None]]:
        """Return the words of one token: its id, and the name or the color."""
        words = [entry for known in self._words.values() for entry in known]
        return [(ids[0], name, color) for ids, name, color in words if len(ids) == 1]

    def mentions(self, ids: Sequence[int]) -> list[Mention]:
        """Return all mentions, in order."""
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
            named_at = tuple(sorted({at + size - 1 for size in begun}))
            end = at + len(word)
            before = found[-1] if found else None
            if name and before and before.name is None and before.end == at - 1:
                found.append(Mention(before.start, at, end - 1, named_at, name, before.color))
            else:
                found.append(Mention(at, at, end - 1, named_at, name, color))
            at = end
        return found

    def _longest(self, ids: Sequence[int], at: int) -> Entry | None:
        for entry in self._words.get(ids[at], ()):
            end = at + len(entry[0])
            if tuple(ids[at:end]) == entry[0] and (end == len(ids) or ids[end] not in self._inner):
                return entry
        return None

    def spelled(self, ids: Sequence[int], text: str) -> list[int]:
        """Return the indices at which the quoted text starts, spelled letter by letter."""
        letters = tuple(i for letter in text for i in self.ids(letter))
        return [at for at in _find(ids, letters) if at and ids[at - 1] in self._quotes]


class ThingLocations:
    """The cells of a scene's things and letters; a cell is a token of the image."""

    def __init__(self, scene: Scene, found: Labels) -> None:
        """Take the labels of the scene's `GRID` x `GRID` patches as `found`."""
        self._scene, self._found = scene, found
        self._cells = found.thing.copy()
        for number, thing in enumerate(scene.things, 1):
            if not (self._cells == number).any():  # hidden, or too thin to own a cell
                x, y = scene.center(thing)
                column, row = (min(GRID - 1, max(0, int(at * GRID))) for at in (x, y))
                self._cells[row * GRID + column] = number

    def things_in_cells(self, name: str | None, color: str | None) -> NDArray[np.int64]:
        """Return the number, from 1, of the thing of that name and color in each cell, or 0 [TOKENS]."""
        matches = [
            (name in (None, thing.name) or (name == ANY_SHAPE and thing.color is not None))
            and color in (None, thing.color)
            for thing in self._scene.things
        ]
        kept: NDArray[np.int64] = np.where(np.array([False, *matches])[self._cells], self._cells, 0)
        return kept

    def box(self, number: int) -> NDArray[np.float32]:
        """Return center, width and height of a thing as fractions of the image [4]; NaN if hidden."""
        cells = np.flatnonzero(self._found.thing == number)
        return self._found.box[cells[0]] if len(cells) else np.full(4, np.nan, np.float32)

    @property
    def words(self) -> tuple[Word, ...]:
        return self._scene.words

    def letter_cells(self, word: Word) -> list[NDArray[np.bool_]]:
        """Return the cells that each letter of one of `words` covers, [TOKENS] each."""
        order = labels.letter_order(word, self._scene, GRID).reshape(TOKENS, 2)
        return [(order == i).any(-1) for i in range(len(word.text))]

    def boxes(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """Return the box of each thing and word as text, and the cells that it covers [TOKENS]."""
        scene = self._scene
        written: list[tuple[str, NDArray[np.bool_]]] = []
        items: list[Thing | Word] = [*scene.things, *scene.words]
        for number, item in enumerate(items, 1):
            if isinstance(item, Thing):
                cells = self._cells == number
            else:
                cells = (labels.letter_order(item, scene, GRID).reshape(TOKENS, 2) >= 0).any(-1)
            written.append((f" {format_box(item.box(), scene)}", cells))
        return written


def _find(ids: Sequence[int], part: Sequence[int]) -> list[int]:
    """Return the indices at which `part` starts in `ids`."""
    size, first = len(part), part[0]
    return [
        at
        for at in range(len(ids) - size + 1)
        if ids[at] == first and tuple(ids[at : at + size]) == tuple(part)
    ]


def attention_targets(
    finder: MentionFinder,
    rows: Sequence[dict[str, NDArray[np.int64]]],
    shown: Sequence[Sequence[ThingLocations]],
) -> dict[str, Tensor]:
    """Return the targets of the supervised attention heads.

    Args:
        finder: finds the mentions.
        rows: the rows of tokens.
        shown: the things in the images of each row.

    Returns:
        named_at: [m, 2], rows and positions of the mentions.
        named_things: [m, images * TOKENS], the number of the thing in each cell, from 1, or 0.
        named_counts: [m, images], the number of things.
        named_boxes: [m, 4], center, width and height of the only thing as fractions of the image; NaN if
            it is not the only one.
        output_at: [k, 2], rows and positions before a word, a letter or a box in an answer.
        output_cells: [k, images * TOKENS], the cells of what it stands for.
    """
    named_at: list[tuple[tuple[int, int], NDArray[np.int64], list[int], NDArray[np.float32]]] = []
    outputs: list[tuple[tuple[int, int], NDArray[np.bool_]]] = []
    for number, (row, places) in enumerate(zip(rows, shown, strict=True)):
        ids, owner, targets = (row[k].tolist() for k in ("ids", "owner", "targets"))
        mentions = finder.mentions(ids)
        with_noun = {mention.start for mention in mentions if mention.name}
        for mention in mentions:
            if owner[mention.end] <= 0:
                continue
            things = [place.things_in_cells(mention.name, mention.color) for place in places]
            numbers = [len(set(one[one > 0].tolist())) for one in things]
            box = np.full(4, np.nan, np.float32)
            if sum(numbers) == 1:
                which = numbers.index(1)
                box = places[which].box(int(things[which].max()))
            for which in range(1, len(things)):
                later = things[which]
                later[later > 0] += things[which - 1].max()
            for at in mention.named_at:
                named_at.append(((number, at), np.concatenate(things), numbers, box))
            if mention.name is None and mention.start in with_noun:
                continue
            if (
                len(things) == 2
            ):  # the same place of the second image also tells what the first shows
                things[1] = np.maximum(*things)
            cells = np.concatenate(things) > 0
            # "a" or "an" depends on the name that follows
            article = mention.start - (ids[mention.start - 1] in finder.articles)
            for at in {article, mention.start, mention.noun_start}:
                if targets[at - 1] >= 0:
                    outputs.append(((number, at - 1), cells))
        for which, place in enumerate(places):
            written: list[tuple[int, NDArray[np.bool_]]] = []
            for word in place.words:
                starts = finder.spelled(ids, word.text)
                letters = place.letter_cells(word) if starts else []
                written += [(s + i - 1, cells) for s in starts for i, cells in enumerate(letters)]
            if finder.bracket in ids:
                for text, cells in place.boxes():
                    part = finder.ids(text)
                    written += [
                        (s + i - 1, cells) for s in _find(ids, part) for i in range(len(part))
                    ]
            for at, cells in written:
                if targets[at] >= 0 and cells.any():
                    whole = np.zeros(len(places) * TOKENS, bool)
                    whole[which * TOKENS : (which + 1) * TOKENS] = cells
                    outputs.append(((number, at), whole))
    width = len(shown[0]) * TOKENS
    return {
        "named_at": torch.tensor([h[0] for h in named_at], dtype=torch.long).view(-1, 2),
        "named_things": _stack([h[1] for h in named_at], width).long(),
        "named_counts": torch.tensor([h[2] for h in named_at]).view(-1, len(shown[0])).long(),
        "named_boxes": _stack([h[3] for h in named_at], 4),
        "output_at": torch.tensor([s[0] for s in outputs], dtype=torch.long).view(-1, 2),
        "output_cells": _stack([s[1] for s in outputs], width).bool(),
    }


def _stack(arrays: Sequence[NDArray[Any]], width: int) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, width)
