"""Where in the picture the words of a dialogue are, for `attention` to teach.

Covered: things and plain colours in English and Russian, printed words, boxes. Not covered: places
("at the top left").
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
from edgevlm.scenes.view import written_box
from edgevlm.scenes.wording import color_forms, noun
from training import labels
from training.labels import Labels
from training.model import GRID, TOKENS

ANY_SHAPE = "shape"

Entry = tuple[tuple[int, ...], str | None, str | None]  # tokens of a word, its name or its colour


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
        self.bracket = self.ids(" [")[0]  # every box starts with it
        self.articles = {self.ids(word)[0] for word in (" a", " an", " the")}
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

    def ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._encode(text, add_special_tokens=False).ids)

    def _add(self, form: str, name: str | None, color: str | None) -> None:
        ids = self.ids(f" {form}")
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
        letters = tuple(i for letter in text for i in self.ids(letter))
        return [at for at in _find(ids, letters) if at and ids[at - 1] in self._quotes]


class Places:
    """Where a scene's things and letters are, in tokens of its picture."""

    def __init__(self, scene: Scene, found: Labels) -> None:
        """`found` are the labels of the scene's `GRID` x `GRID` patches."""
        self._scene, self._found = scene, found
        self._cells = found.thing.copy()
        for number, thing in enumerate(scene.things, 1):
            if not (self._cells == number).any():  # hidden, or too thin to be owner of a cell
                x, y = scene.place(thing)
                column, row = (min(GRID - 1, max(0, int(at * GRID))) for at in (x, y))
                self._cells[row * GRID + column] = number

    def of(self, name: str | None, color: str | None) -> NDArray[np.int64]:
        """1 + the number of the thing of that name and colour in each cell, or 0; [TOKENS]."""
        matches = [
            (name in (None, thing.name) or (name == ANY_SHAPE and thing.color is not None))
            and color in (None, thing.color)
            for thing in self._scene.things
        ]
        kept: NDArray[np.int64] = np.where(np.array([False, *matches])[self._cells], self._cells, 0)
        return kept

    def box(self, number: int) -> NDArray[np.float32]:
        """Middle, width and height of a thing as fractions of the picture, [4]; NaN if it is hidden."""
        cells = np.flatnonzero(self._found.thing == number)
        return self._found.box[cells[0]] if len(cells) else np.full(4, np.nan, np.float32)

    @property
    def words(self) -> tuple[Word, ...]:
        return self._scene.words

    def of_letters(self, word: Word) -> list[NDArray[np.bool_]]:
        """For each letter of one of `words`, the cells that it covers, [TOKENS]."""
        order = labels.letter_order(word, self._scene, GRID).reshape(TOKENS, 2)
        return [(order == i).any(-1) for i in range(len(word.text))]

    def boxes(self) -> list[tuple[str, NDArray[np.bool_]]]:
        """How each thing's and word's box is written, and the cells that they cover, [TOKENS]."""
        scene = self._scene
        written: list[tuple[str, NDArray[np.bool_]]] = []
        items: list[Thing | Word] = [*scene.things, *scene.words]
        for number, item in enumerate(items, 1):
            if isinstance(item, Thing):
                cells = self._cells == number
            else:
                cells = (labels.letter_order(item, scene, GRID).reshape(TOKENS, 2) >= 0).any(-1)
            written.append((f" {written_box(item.box(), scene)}", cells))
        return written


def _find(ids: Sequence[int], part: Sequence[int]) -> list[int]:
    """Where `part` starts in `ids`."""
    size, first = len(part), part[0]
    return [
        at
        for at in range(len(ids) - size + 1)
        if ids[at] == first and tuple(ids[at : at + size]) == tuple(part)
    ]


def ground(
    finder: Finder, rows: Sequence[dict[str, NDArray[np.int64]]], shown: Sequence[Sequence[Places]]
) -> dict[str, Tensor]:
    """What the attention heads of each row should look at; `shown` are the places in its pictures.

    `heard_at` [m, 2] are rows and positions, `heard_things` [m, pictures * TOKENS] which thing
    covers each cell, from 1, or 0; `heard_numbers` [m, pictures] how many things that are, and
    `heard_boxes` [m, 4] middle, width and height of the only one (fractions; NaN if it is not alone).
    `said_at` [k, 2] are positions before a word, a letter or a box about to be written,
    `said_cells` [k, pictures * TOKENS] the cells of what it stands for.
    """
    heard: list[tuple[tuple[int, int], NDArray[np.int64], list[int], NDArray[np.float32]]] = []
    said: list[tuple[tuple[int, int], NDArray[np.bool_]]] = []
    for number, (row, places) in enumerate(zip(rows, shown, strict=True)):
        ids, owner, targets = (row[k].tolist() for k in ("ids", "owner", "targets"))
        mentions = finder.mentions(ids)
        with_noun = {mention.start for mention in mentions if mention.name}
        for mention in mentions:
            if owner[mention.end] <= 0:
                continue
            things = [place.of(mention.name, mention.color) for place in places]
            numbers = [len(set(one[one > 0].tolist())) for one in things]
            box = np.full(4, np.nan, np.float32)
            if sum(numbers) == 1:
                which = numbers.index(1)
                box = places[which].box(int(things[which].max()))
            for which in range(1, len(things)):
                later = things[which]
                later[later > 0] += things[which - 1].max()
            for at in mention.heard:
                heard.append(((number, at), np.concatenate(things), numbers, box))
            if mention.name is None and mention.start in with_noun:
                continue
            if len(things) == 2:  # what was in the first is also known where the second differs
                things[1] = np.maximum(*things)
            cells = np.concatenate(things) > 0
            # "a" or "an" depends on what is to be named
            article = mention.start - (ids[mention.start - 1] in finder.articles)
            for at in {article, mention.start, mention.noun_start}:
                if targets[at - 1] >= 0:
                    said.append(((number, at - 1), cells))
        for which, place in enumerate(places):
            written: list[tuple[int, NDArray[np.bool_]]] = []
            for word in place.words:
                starts = finder.spelt(ids, word.text)
                letters = place.of_letters(word) if starts else []
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
                    said.append(((number, at), whole))
    width = len(shown[0]) * TOKENS
    return {
        "heard_at": torch.tensor([h[0] for h in heard], dtype=torch.long).view(-1, 2),
        "heard_things": _stack([h[1] for h in heard], width).long(),
        "heard_numbers": torch.tensor([h[2] for h in heard]).view(-1, len(shown[0])).long(),
        "heard_boxes": _stack([h[3] for h in heard], 4),
        "said_at": torch.tensor([s[0] for s in said], dtype=torch.long).view(-1, 2),
        "said_cells": _stack([s[1] for s in said], width).bool(),
    }


def _stack(arrays: Sequence[NDArray[Any]], width: int) -> Tensor:
    return torch.from_numpy(np.stack(arrays)) if arrays else torch.zeros(0, width)
