"""Answers to evaluation items: about their own images, about swapped images and about grey ones.

A model that answers as well without the right image does not look at it. It decodes greedily. All images are
in the first message, and the answers between the turns are the model's own. Time and memory are not measured.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from edgevlm.evaluation import metrics
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.vlm import VLM

MAX_TOKENS = 60
BATCH_SIZE = 16
CONTROLS_PER_TASK = 100

_GREY = (128, 128, 128)


class Conversation(NamedTuple):
    """A conversation to run: its images, and the user's messages."""

    images: list[Image.Image]
    turns: tuple[str, ...]


class Answerer(Protocol):
    """A model that answers questions about images."""

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return the answer to the last turn of each conversation.

        Args:
            conversations: at most `BATCH_SIZE` of them.
        """


class BundleAnswerer:
    """Answers of a bundle, one conversation after the other."""

    def __init__(self, vlm: VLM) -> None:
        self._vlm = vlm

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        """Return the answer to the last turn of each conversation."""
        return [self._answer(conversation) for conversation in conversations]

    def _answer(self, conversation: Conversation) -> str:
        chat = self._vlm.chat()
        images = conversation.images
        for text in conversation.turns:
            answer = chat.send(text, images, max_tokens=MAX_TOKENS, temperature=0.0).text
            images = []
        return answer.strip()


@dataclass(frozen=True)
class Control:
    """The answers to the same turns about wrong images."""

    images: tuple[LazyImage, ...]
    """The images of another item."""
    answer: str
    """The answer about `images`."""
    grey_answer: str
    """The answer about grey images of the right sizes."""


@dataclass(frozen=True)
class Answered:
    """An item and its answer."""

    item: Item
    answer: str
    control: Control | None = None
    """None: the item was not asked about wrong images."""

    def score(self, answer: str) -> float:
        """Return the score of `answer` as an answer to this item, from 0 to 1."""
        return metrics.score(self.item.metric, answer, self.item.answers)


def swap_images(items: Mapping[int, Item]) -> dict[int, int]:
    """Choose another item for each item, of which it gets the images: a derangement.

    Both items have the same task and the same number of images, and the images have other names.

    Args:
        items: items by index.

    Returns:
        The index of the other item by the index of the item. An item without an image, or for which
        no other item exists, is missing.
    """
    groups: dict[tuple[str, int], dict[tuple[str, ...], list[int]]] = defaultdict(dict)
    for index in np.random.default_rng(0).permutation(list(items)).tolist():
        item = items[index]
        names = tuple(image.name for image in item.images)
        groups[item.task, len(names)].setdefault(names, []).append(index)
    found = {}
    for (_, images), same_images in groups.items():
        ring = [(names, index) for names, indices in same_images.items() for index in indices]
        shift = max(map(len, same_images.values()))
        for (names, index), (others, other) in zip(ring, ring[shift:] + ring[:shift], strict=True):
            if images and names != others:
                found[index] = other
    return found


def first_per_task(items: Sequence[Item], per_task: int) -> dict[int, Item]:
    """Return the first `per_task` items of each task, by index."""
    counts: Counter[str] = Counter()
    first = {}
    for index, item in enumerate(items):
        counts[item.task] += 1
        if counts[item.task] <= per_task:
            first[index] = item
    return first


def run(
    answerer: Answerer,
    items: Sequence[Item],
    *,
    controls_per_task: int = CONTROLS_PER_TASK,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Answered]:
    """Ask a model all items, in batches.

    Args:
        answerer: the model.
        items: the items to ask.
        controls_per_task: how many items of each task are asked again, with swapped images and with
            grey ones of the same size.
        progress: called after each batch with the number of items that are done.

    Returns:
        The answers, in the order of the items.
    """
    others = swap_images(first_per_task(items, controls_per_task))
    answered: list[Answered] = []
    for first in range(0, len(items), BATCH_SIZE):
        batch = range(first, min(first + BATCH_SIZE, len(items)))
        own = {i: Conversation(load_images(items[i].images), items[i].turns) for i in batch}
        answers = answerer.answer(list(own.values()))
        controls = {}
        if again := [i for i in batch if i in others]:
            shown = {i: items[others[i]].images for i in again}
            swapped = [Conversation(load_images(shown[i]), items[i].turns) for i in again]
            grey = [Conversation(_grey(own[i].images), items[i].turns) for i in again]
            both = zip(again, answerer.answer(swapped), answerer.answer(grey), strict=True)
            controls = {i: Control(shown[i], answer, on_grey) for i, answer, on_grey in both}
        for i, answer in zip(batch, answers, strict=True):
            answered.append(Answered(items[i], answer, controls.get(i)))
        progress(len(answered))
    return answered


def load_images(images: Sequence[LazyImage]) -> list[Image.Image]:
    """Return the RGB images."""
    return [image.load() for image in images]


def _grey(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [Image.new("RGB", image.size, _GREY) for image in images]
