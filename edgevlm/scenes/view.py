"""Facts of a scene that are certain, in the words of a language.

These are: names that refer to one thing only, things that are certainly absent, quarters of the image,
sides, a thing inside another one, and phrasings. `single_turn` and `multi_turn` make questions of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from edgevlm.scenes import drawings
from edgevlm.scenes.composition import COLORS, Box, Scene, Thing, Word
from edgevlm.scenes.drawings import SHAPES
from edgevlm.scenes.wording import WORDINGS

T = TypeVar("T")

COLOR_NAMES = tuple(COLORS)
CORNERS = ("top left", "top right", "bottom left", "bottom right")
DIRECTIONS = ("left", "right", "above", "below")
MIN_SEPARATION = 0.15
"""Smallest clear distance of two centers along an axis, as a fraction of the image."""

_MIN_OFFSET_FROM_MIDDLE = (
    0.08  # of a center that is clearly in a quarter, as a fraction of the image
)
_MIN_BOX_SIDE = 12  # of a box that is asked for, in percent of the image

# Groups of things that one can confuse, or of which one contains or is a kind of another. No question asks
# about a thing if another one of its group is in the image.
_CONFUSABLE_GROUPS = tuple(
    frozenset(group.split(","))
    for group in (
        "car,taxi,ambulance,fire engine,truck,bus",
        "tree,palm tree,house",
        "bear,panda,koala",
        "ship,sailboat",
        "key,wrench,lock",
        "fish,shark,whale,dolphin",
        "ring,circle",
        "cross,ambulance,syringe",
        "computer,television,phone,camera",
        "candle,cake,strawberry",
        "snowman,hat,carrot",
        "hat,clown,happy face",
        "cloud,rainbow,sun",
        "house,door",
        "star,moon",
        "candy,lollipop",
        "gift,square,die,envelope",
        "circle,soccer ball,basketball,globe,cookie,donut,alarm clock,pizza",
        "triangle,pizza,tent",
        "burger,tomato",
        "beer,coffee,wine glass",
    )
)
CONFUSABLE = {
    name: frozenset().union(*(g for g in _CONFUSABLE_GROUPS if name in g)) - {name}
    for name in frozenset().union(*_CONFUSABLE_GROUPS)
}

Reference = tuple[str, str | None]
"""A name, and the color if it is needed."""


def format_box(box: Box, scene: Scene) -> str:
    """Return a box as text: [left, top, right, bottom] in percent of the image, rounded.

    Args:
        box: left, top, right and bottom in pixels.
        scene: the scene that the box is in.
    """
    left, top, right, bottom = box
    across, down = 100 / scene.width, 100 / scene.height
    sides = (left * across, top * down, right * across, bottom * down)
    return str([min(max(round(side), 0), 100) for side in sides])


@dataclass(frozen=True)
class Exchange:
    """A user's message and the right answer."""

    question: str
    answer: str


@dataclass(frozen=True)
class QuestionSpec:
    """A question without its skill and language; see `edgevlm.scenes.questions.Question`."""

    question_type: str
    turns: tuple[Exchange, ...]
    accepted: tuple[str, ...]
    metric: str = "exact"


class View:
    """A scene, the language of the questions, and the source of randomness.

    Args:
        scene: the scene.
        rng: source of randomness.
        language: "en" or "ru".
        unseen: use phrasings that training never uses.
        order_noise: as in `edgevlm.scenes.questions.ask`.
    """

    def __init__(
        self,
        scene: Scene,
        rng: np.random.Generator,
        language: str,
        unseen: bool,
        order_noise: float = 0.0,
    ) -> None:
        self.scene, self.rng, self.unseen, self.order_noise = scene, rng, unseen, order_noise
        self.wording = WORDINGS[language]
        self.things = scene.things
        self.names = {thing.name for thing in scene.things}
        self._boxes: dict[int, Box] = {}

    def pick(self, options: Sequence[T]) -> T:
        """Return a random option."""
        return options[int(self.rng.integers(len(options)))]

    def phrase(self, key: str, **words: str) -> str:
        """Return a random phrasing with its slots filled, sometimes without capital or punctuation.

        Args:
            key: kind of question in the table of phrasings.
            words: text for each slot.
        """
        seen, unseen = self.wording.phrasings[key]
        chosen = self.pick(unseen) if self.unseen else seen[0]
        if not self.unseen and self.rng.random() >= 0.2:
            chosen = self.pick(seen)
        text = chosen.format_map(words)
        text = text[0].upper() + text[1:]
        if not self.unseen:
            if self.rng.random() < 0.15:
                text = text[0].lower() + text[1:]
            if self.rng.random() < 0.15:
                text = text[:-1]
        return text

    def exchange(self, key: str, answer: str, **words: str) -> Exchange:
        """Return a random phrasing with its answer; the arguments are those of `phrase`."""
        return Exchange(self.phrase(key, **words), answer)

    def question(
        self,
        question_type: str,
        key: str,
        accepted: tuple[str, ...],
        metric: str = "exact",
        **words: str,
    ) -> QuestionSpec:
        """Return a question of a single turn; `key` and `words` are those of `phrase`."""
        return QuestionSpec(
            question_type, (self.exchange(key, accepted[0], **words),), accepted, metric
        )

    def term(self, word: str) -> tuple[str, ...]:
        """Return the accepted answers of a fixed term, as "top left" or "yes"."""
        return (self.wording.terms[word],)

    def box(self, item: Thing | Word) -> Box:
        """Return left, top, right and bottom in pixels."""
        known = self._boxes.get(id(item))
        if known is None:
            known = self._boxes[id(item)] = item.box()
        return known

    def center(self, item: Thing | Word) -> tuple[float, float]:
        """Return the center of an item's box as fractions of the image's width and height."""
        left, top, right, bottom = self.box(item)
        return (left + right) / 2 / self.scene.width, (top + bottom) / 2 / self.scene.height

    def possible_corners(self, item: Thing | Word) -> list[str]:
        """Return the quarters of the image that may contain the item's center."""
        x, y = self.center(item)
        columns = [0, 1] if abs(x - 0.5) < _MIN_OFFSET_FROM_MIDDLE else [int(x > 0.5)]
        rows = [0, 1] if abs(y - 0.5) < _MIN_OFFSET_FROM_MIDDLE else [int(y > 0.5)]
        return [CORNERS[2 * row + column] for row in rows for column in columns]

    def corner(self, item: Thing | Word) -> str | None:
        """Return the quarter that clearly contains the item's center, or None."""
        corners = self.possible_corners(item)
        return corners[0] if len(corners) == 1 else None

    def unique_position(self, thing: Thing) -> str | None:
        """Return a phrase as "at the top left" if the thing is clearly alone there, else None."""
        corner = self.corner(thing)
        items: list[Thing | Word] = [*self.things, *self.scene.words]
        if corner is None or sum(corner in self.possible_corners(item) for item in items) > 1:
            return None
        places = self.wording.places[corner]
        return places[0] if self.rng.random() < 0.5 else self.pick(places)

    def box_answers(self, item: Thing | Word) -> tuple[str, ...] | None:
        """Return the accepted answers for a box, or None if the box is small."""
        left, top, right, bottom = self.box(item)
        across, down = 100 / self.scene.width, 100 / self.scene.height
        if (right - left) * across < _MIN_BOX_SIDE or (bottom - top) * down < _MIN_BOX_SIDE:
            return None
        return (format_box(self.box(item), self.scene),)

    def is_ambiguous(self, name: str) -> bool:
        """Return True if one can confuse a thing of the scene with a thing of this name."""
        return not self.names.isdisjoint(CONFUSABLE.get(name, ()))

    def may_be_present(self, name: str) -> bool:
        """Return True if the scene has a thing of this name, or one that can be confused with it."""
        return name in self.names or self.is_ambiguous(name)

    def reference(self, thing: Thing) -> Reference | None:
        """Return a name for this thing only, or None if there is none.

        A shape's color is added if it is needed, and sometimes if it is not.
        """
        if self.is_ambiguous(thing.name):
            return None
        same = [other for other in self.things if other.name == thing.name]
        if len(same) == 1:
            return thing.name, thing.color if self.rng.random() < 0.6 else None
        if thing.color and sum(other.color == thing.color for other in same) == 1:
            return thing.name, thing.color
        return None

    def referable(self) -> list[tuple[Thing, Reference]]:
        """Return the things that have a reference, each with the reference, in random order."""
        order = self.rng.permutation(len(self.things)).tolist()
        found = []
        for index in order:
            reference = self.reference(self.things[index])
            if reference is not None:
                found.append((self.things[index], reference))
        return found

    def absent_name(self, near: Thing | None) -> str | None:
        """Return the name of an absent thing, or None if none was found.

        Args:
            near: a shape gives the name of a shape; a drawing often gives a similar drawing.
        """
        names = SHAPES if near is not None and near.color else drawings.drawing_names()
        for _ in range(20):
            name = self.pick(names)
            if (
                near is not None
                and near.name in drawings.drawing_names()
                and self.rng.random() < 0.5
            ):
                index = drawings.drawing_names().index(near.name) + int(self.rng.integers(-8, 9))
                name = names[min(max(index, 0), len(names) - 1)]
            if not self.may_be_present(name):
                return name
        return None

    def absent_reference(self) -> Reference | None:
        """Return a reference to an absent thing, often similar to one that is present, or None."""
        near = self.pick(self.things) if self.things else None
        color = None if near is None else near.color
        if near is not None and color is not None and self.rng.random() < 0.4:
            there = {(thing.name, thing.color) for thing in self.things}
            for _ in range(20):
                missed: Reference = self.pick(SHAPES), color
                if self.rng.random() < 0.6:
                    missed = near.name, self.pick(COLOR_NAMES)
                if missed not in there and not self.is_ambiguous(missed[0]):
                    return missed
            return None
        missing = self.absent_name(near)
        if missing is None:
            return None
        return missing, color if self.rng.random() < 0.35 else None

    def neighbor(self, anchor: Thing) -> tuple[str, Thing] | None:
        """Return a direction in which clearly one thing lies, and that thing, or None."""
        found = []
        for direction in DIRECTIONS:
            sure, ambiguous = [], False
            for other in self.things:
                if other is anchor:
                    continue
                along, across = self.offset(anchor, other, direction)
                if along >= MIN_SEPARATION and along >= 0.5 * across:
                    sure.append(other)
                elif along > 0:
                    ambiguous = True
            if len(sure) == 1 and not ambiguous:
                found.append((direction, sure[0]))
        return self.pick(found) if found else None

    def offset(self, anchor: Thing, other: Thing, direction: str) -> tuple[float, float]:
        """Return the distance of `other` from `anchor` along a direction, and across it.

        Both are fractions of the image. The first one is negative in the opposite direction.
        """
        (x, y), (ax, ay) = self.center(other), self.center(anchor)
        if direction in ("left", "right"):
            return (x - ax if direction == "right" else ax - x), abs(y - ay)
        return (y - ay if direction == "below" else ay - y), abs(x - ax)

    def enclosed_pair(self) -> tuple[Thing, Thing] | None:
        """Return an outlined shape and the only thing inside it, or None."""
        for outer in self.things:
            if outer.filled:
                continue
            a, b, c, d = self.box(outer)
            within = []
            for other in self.things:
                left, top, right, bottom = self.box(other)
                if other is not outer and a <= left and b <= top and right <= c and bottom <= d:
                    within.append(other)
            if len(within) == 1:
                return outer, within[0]
        return None

    def slots(self, reference: Reference) -> dict[str, str]:
        """Return the text for each slot of a phrasing that refers to a thing."""
        return self.wording.slots(*reference)
