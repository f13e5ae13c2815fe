"""Puts items to a model: with their own pictures, with another item's, and with grey ones.

A model that answers as well without the right picture does not look at it. Covered: bundles through
`edgevlm.VLM` and checkpoints through transformers in float32, both greedy, with all pictures in the
first message and the model's own answers between the turns. Not covered: time and memory.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image

from edgevlm.errors import InputError, MissingDependencyError
from edgevlm.evaluation import metrics
from edgevlm.evaluation.dataset import Item, Picture
from edgevlm.vlm import VLM

MAX_TOKENS = 60
BATCH = 16
GROUNDED_PER_ROW = 100

_GREY = (128, 128, 128)


class Asked(NamedTuple):
    """A conversation to be held: pictures, and what the user says turn by turn."""

    images: list[Image.Image]
    turns: tuple[str, ...]


class Answerer(Protocol):
    """Anything that answers questions about pictures."""

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        """The answer to the last turn of each conversation; at most `BATCH` come at once."""


class BundleAnswerer:
    """A bundle, one conversation after the other."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        return [self._answer(one) for one in asked]

    def _answer(self, asked: Asked) -> str:
        chat = self._vlm.chat()
        images = asked.images
        for text in asked.turns:
            said = chat.send(text, images, max_tokens=MAX_TOKENS, temperature=0.0).text
            images = []
        return said.strip()


class CheckpointAnswerer:
    """A checkpoint in transformers, float32, several conversations at once.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        InputError: the folder holds no checkpoint that transformers loads.
    """

    def __init__(self, folder: Path) -> None:
        try:
            import torch
            from transformers import AutoModelForImageTextToText, AutoProcessor
        except ImportError as error:
            raise MissingDependencyError(
                f"running a checkpoint needs torch and transformers ({error}): "
                f"pip install 'edgevlm[export]'"
            ) from error
        if not folder.is_dir():
            raise InputError(f"no checkpoint at {str(folder)!r}: not a folder")
        try:
            # a checkpoint's own code is never run, nor a pickle opened
            self._processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise InputError(f"transformers cannot load {str(folder)!r}: {error}") from error
        self._model: Any = model.eval()

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        talks: list[list[dict[str, Any]]] = [[] for _ in asked]
        said = [""] * len(asked)
        for turn in range(max(len(one.turns) for one in asked)):
            groups = defaultdict(list)  # a batch has as many pictures in each conversation
            for index, one in enumerate(asked):
                if turn < len(one.turns):
                    groups[len(one.images)].append(index)
                    images = one.images if turn == 0 else []
                    parts = [{"type": "image", "image": image} for image in images]
                    text = {"type": "text", "text": one.turns[turn]}
                    talks[index].append({"role": "user", "content": [*parts, text]})
            for group in groups.values():
                answers = self._generate([talks[index] for index in group])
                for index, answer in zip(group, answers, strict=True):
                    said[index] = answer
                    content = [{"type": "text", "text": answer}]
                    talks[index].append({"role": "assistant", "content": content})
        return said

    def _generate(self, talks: list[list[dict[str, Any]]]) -> list[str]:
        inputs = self._processor.apply_chat_template(
            talks,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        )
        out = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [
            said.strip() for said in self._processor.batch_decode(new, skip_special_tokens=True)
        ]


@dataclass(frozen=True)
class Swapped:
    """What was said to the same turns about other pictures."""

    pictures: tuple[Picture, ...]
    said: str
    said_grey: str


@dataclass(frozen=True)
class Answered:
    """An item and what was said; `swapped` is None where there was no other picture to show."""

    item: Item
    said: str
    swapped: Swapped | None = None

    def score(self, said: str) -> float:
        """How right a text would be as this item's answer, from 0 to 1."""
        return metrics.score(self.item.judge, said, self.item.answers)


def partners(items: Mapping[int, Item]) -> dict[int, int]:
    """Whose pictures each item gets instead of its own, by index: a derangement.

    Partners are of one row and have as many pictures, with other names. An item for which there is
    none, or that has no picture, is left out.
    """
    groups: dict[tuple[str, int], dict[tuple[str, ...], list[int]]] = defaultdict(dict)
    for index in np.random.default_rng(0).permutation(list(items)).tolist():
        item = items[index]
        names = tuple(picture.name for picture in item.pictures)
        groups[item.row, len(names)].setdefault(names, []).append(index)
    found = {}
    for (_, pictures), alike in groups.items():
        ring = [(names, index) for names, same in alike.items() for index in same]
        shift = max(map(len, alike.values()))
        for (names, index), (others, other) in zip(ring, ring[shift:] + ring[:shift], strict=True):
            if pictures and names != others:
                found[index] = other
    return found


def _first(items: Sequence[Item], per_row: int) -> dict[int, Item]:
    """The first items of each row, by index."""
    taken: Counter[str] = Counter()
    kept = {}
    for index, item in enumerate(items):
        taken[item.row] += 1
        if taken[item.row] <= per_row:
            kept[index] = item
    return kept


def run(
    answerer: Answerer,
    items: Sequence[Item],
    *,
    grounded_per_row: int = GROUNDED_PER_ROW,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """Put every item to a model, in batches.

    Args:
        grounded_per_row: ask the first so many items of each row again with other pictures, and
            with grey ones of the same size.
        progress: is told after each batch how many items are done.
    """
    others = partners(_first(items, grounded_per_row))
    answered: list[Answered] = []
    for first in range(0, len(items), BATCH):
        batch = range(first, min(first + BATCH, len(items)))
        own = [
            Asked([picture.open() for picture in items[i].pictures], items[i].turns) for i in batch
        ]
        said = answerer.answers(own)
        swapped = {}
        if again := [i for i in batch if i in others]:
            shown = {i: items[others[i]].pictures for i in again}
            other = [Asked([picture.open() for picture in shown[i]], items[i].turns) for i in again]
            grey = [
                Asked([Image.new("RGB", image.size, _GREY) for image in asked.images], asked.turns)
                for asked in (own[i - first] for i in again)
            ]
            both = zip(again, answerer.answers(other), answerer.answers(grey), strict=True)
            swapped = {i: Swapped(shown[i], text, text_grey) for i, text, text_grey in both}
        for i, text in zip(batch, said, strict=True):
            answered.append(Answered(items[i], text, swapped.get(i)))
        progress(len(answered))
    return answered
