"""What can be said of a scene without doubt, and how to say it in a language.

Covered: names that fit one thing only, things that are clearly not there, quarters, sides, what is
within what, phrasings. Not covered: which questions there are (see `families` and `dialogues`).
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
APART = 0.15  # centres are clearly apart on an axis, in fractions of the picture

_OFF_MIDDLE = 0.08  # a centre is clearly in a quarter this far from the middle lines
_SMALLEST = 12  # sides of a box that is asked for, in percent of the picture's

# Things of which one may pass for, contain or be a kind of another: the one is not asked about where
# the other is in the picture.
_ALIKE = tuple(
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
LIKE = {
    name: frozenset().union(*(g for g in _ALIKE if name in g)) - {name}
    for name in frozenset().union(*_ALIKE)
}

Reference = tuple[str, str | None]  # a name, and a colour where it is needed


def written_box(box: Box, scene: Scene) -> str:
    """A box in pixels as a model writes it: [left, top, right, bottom], 0 to 100, rounded."""
    left, top, right, bottom = box
    across, down = 100 / scene.width, 100 / scene.height
    sides = (left * across, top * down, right * across, bottom * down)
    return str([min(max(round(side), 0), 100) for side in sides])


@dataclass(frozen=True)
class Turn:
    """What is asked and the right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Answer:
    """The parts of a question that a family decides."""

    family: str
    turns: tuple[Turn, ...]
    accepted: tuple[str, ...]
    judge: str = "words"


class View:
    """A scene together with the language and the chance that questions are put with."""

    def __init__(
        self, scene: Scene, rng: np.random.Generator, language: str, unseen: bool, blur: float = 0.0
    ) -> None:
        self.scene, self.rng, self.unseen, self.blur = scene, rng, unseen, blur
        self.wording = WORDINGS[language]
        self.things = scene.things
        self.names = {thing.name for thing in scene.things}
        self._boxes: dict[int, Box] = {}

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def say(self, key: str, **words: str) -> str:
        """A phrasing, filled in, as people type it."""
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

    def turn(self, key: str, answer: str, **words: str) -> Turn:
        return Turn(self.say(key, **words), answer)

    def one(
        self, family: str, key: str, accepted: tuple[str, ...], judge: str = "words", **words: str
    ) -> Answer:
        """A question of a single turn."""
        return Answer(family, (self.turn(key, accepted[0], **words),), accepted, judge)

    def term(self, word: str) -> tuple[str, ...]:
        return (self.wording.terms[word],)

    def box(self, item: Thing | Word) -> Box:
        """In pixels."""
        known = self._boxes.get(id(item))
        if known is None:
            known = self._boxes[id(item)] = item.box()
        return known

    def place(self, item: Thing | Word) -> tuple[float, float]:
        left, top, right, bottom = self.box(item)
        return (left + right) / 2 / self.scene.width, (top + bottom) / 2 / self.scene.height

    def touched(self, item: Thing | Word) -> list[str]:
        """The quarters that may be said to hold the centre."""
        x, y = self.place(item)
        columns = [0, 1] if abs(x - 0.5) < _OFF_MIDDLE else [int(x > 0.5)]
        rows = [0, 1] if abs(y - 0.5) < _OFF_MIDDLE else [int(y > 0.5)]
        return [CORNERS[2 * row + column] for row in rows for column in columns]

    def corner(self, item: Thing | Word) -> str | None:
        """The quarter that holds the centre, beyond doubt."""
        corners = self.touched(item)
        return corners[0] if len(corners) == 1 else None

    def at(self, thing: Thing) -> str | None:
        """ "at the top left", where the thing is alone in its quarter beyond doubt."""
        corner = self.corner(thing)
        items: list[Thing | Word] = [*self.things, *self.scene.words]
        if corner is None or sum(corner in self.touched(item) for item in items) > 1:
            return None
        places = self.wording.places[corner]
        return places[0] if self.rng.random() < 0.5 else self.pick(places)

    def percent(self, item: Thing | Word) -> tuple[str, ...] | None:
        """The box as an answer, or None where it is small."""
        left, top, right, bottom = self.box(item)
        across, down = 100 / self.scene.width, 100 / self.scene.height
        if (right - left) * across < _SMALLEST or (bottom - top) * down < _SMALLEST:
            return None
        return (written_box(self.box(item), self.scene),)

    def is_doubtful(self, name: str) -> bool:
        """Whether something here may pass for it."""
        return not self.names.isdisjoint(LIKE.get(name, ()))

    def is_like(self, name: str) -> bool:
        """Whether it, or something that may pass for it, is here."""
        return name in self.names or self.is_doubtful(name)

    def reference(self, thing: Thing) -> Reference | None:
        """A name that fits this thing only, with the colour of a shape if need be, or at times."""
        if self.is_doubtful(thing.name):
            return None
        same = [other for other in self.things if other.name == thing.name]
        if len(same) == 1:
            return thing.name, thing.color if self.rng.random() < 0.6 else None
        if thing.color and sum(other.color == thing.color for other in same) == 1:
            return thing.name, thing.color
        return None

    def referable(self) -> list[tuple[Thing, Reference]]:
        """The things that can be referred to, in random order."""
        order = self.rng.permutation(len(self.things)).tolist()
        found = []
        for index in order:
            reference = self.reference(self.things[index])
            if reference is not None:
                found.append((self.things[index], reference))
        return found

    def absent_name(self, near: Thing | None) -> str | None:
        """A name that fits nothing here, of a shape if `near` is one, often of a like thing."""
        names = SHAPES if near is not None and near.color else drawings.things()
        for _ in range(20):
            name = self.pick(names)
            if near is not None and near.name in drawings.things() and self.rng.random() < 0.5:
                index = drawings.things().index(near.name) + int(self.rng.integers(-8, 9))
                name = names[min(max(index, 0), len(names) - 1)]
            if not self.is_like(name):
                return name
        return None

    def absent(self) -> Reference | None:
        """What is not here: a near miss of a thing that is, the more so of a shape."""
        near = self.pick(self.things) if self.things else None
        color = None if near is None else near.color
        if near is not None and color is not None and self.rng.random() < 0.4:
            there = {(thing.name, thing.color) for thing in self.things}
            for _ in range(20):
                missed: Reference = self.pick(SHAPES), color
                if self.rng.random() < 0.6:
                    missed = near.name, self.pick(COLOR_NAMES)
                if missed not in there and not self.is_doubtful(missed[0]):
                    return missed
            return None
        missing = self.absent_name(near)
        if missing is None:
            return None
        return missing, color if self.rng.random() < 0.35 else None

    def beside(self, anchor: Thing) -> tuple[str, Thing] | None:
        """A direction in which exactly one thing lies clearly, and nothing else perhaps."""
        found = []
        for direction in DIRECTIONS:
            sure, doubtful = [], False
            for other in self.things:
                if other is anchor:
                    continue
                along, aside = self.apart(anchor, other, direction)
                if along >= APART and along >= 0.5 * aside:
                    sure.append(other)
                elif along > 0:
                    doubtful = True
            if len(sure) == 1 and not doubtful:
                found.append((direction, sure[0]))
        return self.pick(found) if found else None

    def apart(self, anchor: Thing, other: Thing, direction: str) -> tuple[float, float]:
        """How far the other lies in the direction, and how far aside, in fractions."""
        (x, y), (ax, ay) = self.place(other), self.place(anchor)
        if direction in ("left", "right"):
            return (x - ax if direction == "right" else ax - x), abs(y - ay)
        return (y - ay if direction == "below" else ay - y), abs(x - ax)

    def inside(self) -> tuple[Thing, Thing] | None:
        """An outlined shape and the only thing within it."""
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

    def fill(self, reference: Reference) -> dict[str, str]:
        return self.wording.filling(*reference)
