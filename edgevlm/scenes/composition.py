"""Seeded pictures of shapes, drawn things and printed words, with all that is known about them.

A layout says what a scene is for: `single` (one large thing), `mixed` (two to four), `crowd` (things
to count), `nested` (a thing inside an outlined shape), `text` (a word or a number, perhaps with
things), and for training `mosaic` (many things, overlapping), `page` (many words) and `sign` (a word
among several things). Not covered: perspective, lighting of the things themselves, photographs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from edgevlm.scenes import drawings
from edgevlm.scenes.backgrounds import (
    Finish,
    Ground,
    Rgb,
    draw_ground,
    finish,
    rgb_near,
    sample_finish,
    sample_ground,
)
from edgevlm.scenes.drawings import SHAPES, Points

COLORS: dict[str, Rgb] = {
    "red": (215, 30, 35),
    "green": (35, 150, 55),
    "blue": (35, 70, 210),
    "yellow": (245, 220, 40),
    "orange": (245, 135, 25),
    "purple": (130, 45, 165),
    "black": (16, 16, 16),
    "white": (246, 246, 246),
}
LAYOUTS = ("single", "mixed", "crowd", "nested", "text")

_SUPERSAMPLE = 4
_JITTER = 12  # how far a colour may stray from its anchor, per channel
_SHAPE_CONTRAST, _DRAWING_CONTRAST, _WORD_CONTRAST = 95.0, 55.0, 110.0  # distance in RGB
_OUTLINE = 0.14  # width of an outlined shape's line, as a share of its size

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """A shape (it has a colour, and no style) or a drawing (the other way round).

    Its centre and its size (the longer side before turning) are in pixels, its angle in degrees,
    clockwise.
    """

    name: str
    style: str | None
    color: str | None
    rgb: Rgb
    filled: bool
    x: float
    y: float
    size: float
    angle: float
    flipped: bool

    @property
    def label(self) -> str:
        """ "red star" or "cat"."""
        return f"{self.color} {self.name}" if self.color else self.name

    def outline(self) -> Points:
        """The corners in pixels, [n, 2]."""
        turned = drawings.turned_outline(self.name, self.style, self.angle, self.flipped)
        placed: Points = turned * (self.size / 2) + np.array([self.x, self.y])
        return placed

    def box(self) -> Box:
        """Left, top, right and bottom in pixels."""
        return _box_around(self.outline())


@dataclass(frozen=True)
class Word:
    """Printed letters or digits; the centre is in pixels, the font size in pixels per em."""

    text: str
    typeface: str
    font_size: int
    rgb: Rgb
    x: float
    y: float
    angle: float

    def _ink(self) -> Box:
        return drawings.font(self.typeface, self.font_size).getbbox(self.text)

    def extent(self) -> tuple[float, float]:
        """Width and height of the ink before turning."""
        left, top, right, bottom = self._ink()
        return right - left, bottom - top

    def edges(self) -> NDArray[np.float64]:
        """Where each letter ends, from the ink's left edge, in pixels before turning."""
        font = drawings.font(self.typeface, self.font_size)
        ends = [font.getlength(self.text[: i + 1]) for i in range(len(self.text))]
        return np.array(ends) - self._ink()[0]

    def outline(self) -> Points:
        """The corners of the ink's rectangle in pixels, [4, 2]."""
        width, height = self.extent()
        corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
        placed: Points = drawings.turn(corners / 2, self.angle) + np.array([self.x, self.y])
        return placed

    def box(self) -> Box:
        return _box_around(self.outline())


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    width: int
    height: int
    things: tuple[Thing, ...]
    words: tuple[Word, ...]
    ground: Ground
    finish: Finish

    def place(self, item: Thing | Word) -> tuple[float, float]:
        """The middle of the item's box as fractions of the picture's width and height."""
        left, top, right, bottom = item.box()
        return (left + right) / 2 / self.width, (top + bottom) / 2 / self.height


def _box_around(points: Points) -> Box:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def sample_sides(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    """Width and height between the given sides (log-uniform), at most 2:1 either way."""
    low, high = sides
    side = math.exp(rng.uniform(math.log(low), math.log(high)))
    aspect = 2.0 ** rng.uniform(-1, 1) if rng.random() < 0.7 else 1.0
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    grow = max(low / min(width, height), min(1.0, high / max(width, height)))
    width, height = round(width * grow), round(height * grow)
    return min(max(width, low), high), min(max(height, low), high)


class SceneSampler:
    """One scene in the making."""

    def __init__(
        self,
        rng: np.random.Generator,
        sides: tuple[int, int],
        styles: Sequence[str],
        typefaces: Sequence[str],
        unseen_words: bool,
    ) -> None:
        self.rng, self.styles, self.typefaces = rng, styles, typefaces
        self.unseen_words = unseen_words
        self.width, self.height = sample_sides(rng, sides)
        self.short = min(self.width, self.height)
        self.things: list[Thing] = []
        self.words: list[Word] = []
        self.boxes: list[Box] = []
        self.overlap = float(rng.uniform(0.03, 0.15)) if rng.random() < 0.35 else 0.0

    def new_name(self, shapes: float) -> str:
        """A shape with the given probability, else anything drawn."""
        if self.rng.random() < shapes:
            return str(self.rng.choice(SHAPES))
        names = drawings.things()
        return names[int(self.rng.integers(len(names)))]

    def new_thing(self, name: str, size: float, filled: bool | None = None) -> Thing:
        """Not placed yet; `size` is a share of the shorter side."""
        rng = self.rng
        style, color, rgb = None, None, (0, 0, 0)
        if name in SHAPES:
            color = str(rng.choice(list(COLORS)))
            rgb = rgb_near(COLORS[color], rng, _JITTER)
        else:
            having = [style for style in self.styles if name in drawings.drawings(style)]
            style = having[int(rng.integers(len(having)))]
        if filled is None:
            filled = bool(style is not None or rng.random() < 0.75)
        turn = 18 if rng.random() < 0.7 else 4
        flipped = bool(style is not None and rng.random() < 0.3)
        angle = float(rng.uniform(-turn, turn))
        return Thing(name, style, color, rgb, filled, 0, 0, size * self.short, angle, flipped)

    def _fits(self, box: Box, overlap: float) -> bool:
        left, top, right, bottom = box
        area = (right - left) * (bottom - top)
        gap = 0.0 if overlap else 0.02 * self.short
        for a, b, c, d in self.boxes:
            across = min(right, c) - max(left, a) + gap
            down = min(bottom, d) - max(top, b) + gap
            if across > 0 and down > 0:
                shared = across * down / min(area, (c - a) * (d - b))
                if shared > overlap:
                    return False
        return True

    def _somewhere(self, outline: Points, overlap: float) -> tuple[float, float] | None:
        """A centre that keeps the outline inside the picture and off the others."""
        left, top, right, bottom = _box_around(outline)
        if right - left > self.width or bottom - top > self.height:
            return None
        for _ in range(30):
            x = float(self.rng.uniform(-left, self.width - right))
            y = float(self.rng.uniform(-top, self.height - bottom))
            box = left + x, top + y, right + x, bottom + y
            if self._fits(box, overlap):
                self.boxes.append(box)
                return x, y
        return None

    def add(self, thing: Thing, overlap: float | None = None, least: float = 0.6) -> bool:
        """Place it anywhere, smaller (down to `least` of its size) where there is no room."""
        overlap = self.overlap if overlap is None else overlap
        shrunk = 1.0
        while shrunk >= least:
            tried = replace(thing, size=thing.size * shrunk)
            place = self._somewhere(tried.outline(), overlap)
            if place is not None:
                self.things.append(replace(tried, x=place[0], y=place[1]))
                return True
            shrunk *= 0.85
        return False

    def new_text(self, jumble: float) -> str:
        """A word, a number, or with probability `jumble` letters without a sense."""
        rng = self.rng
        if rng.random() < 0.3:
            return "".join(map(str, rng.integers(0, 10, int(rng.integers(1, 6))).tolist()))
        if rng.random() < jumble:
            letters = rng.integers(97, 123, int(rng.integers(2, 9))).tolist()
            text = "".join(map(chr, letters))
        else:
            known = drawings.words(self.unseen_words)
            length = int(rng.integers(2, 9))
            text = known[int(rng.integers(len(known)))]
            for _ in range(6):  # lengths come about equally often
                if len(text) == length:
                    break
                text = known[int(rng.integers(len(known)))]
        case = rng.random()
        return text.upper() if case < 0.45 else text.capitalize() if case < 0.65 else text

    def add_word(self, text: str, share: tuple[float, float]) -> bool:
        """Print a text that is `share` of the width wide, at most 45 % of the height high."""
        rng = self.rng
        typeface = self.typefaces[int(rng.integers(len(self.typefaces)))]
        rgb = rgb_near(list(COLORS.values())[int(rng.integers(len(COLORS)))], rng, 30)
        if rng.random() < 0.4:
            rgb = rgb_near([30, 30, 30] if rng.random() < 0.5 else [240, 240, 240], rng, 25)
        angle = float(rng.uniform(-10, 10)) if rng.random() < 0.5 else 0.0
        word = Word(text, typeface, 64, rgb, 0, 0, angle)
        width, height = word.extent()
        wide = float(rng.uniform(*share)) * self.width
        scale = min(wide / width, 0.45 * self.height / height)
        for _ in range(4):
            word = replace(word, font_size=max(8, int(64 * scale)))
            place = self._somewhere(word.outline(), 0.0)
            if place is not None:
                self.words.append(replace(word, x=place[0], y=place[1]))
                return True
            scale *= 0.9
        return False

    def scene(self) -> Scene:
        keep_off: list[tuple[Sequence[float], float]] = []
        for thing in self.things:
            if thing.style is None:
                keep_off.append((thing.rgb, _SHAPE_CONTRAST))
            else:
                drawing = drawings.drawings(thing.style)[thing.name]
                keep_off.append((drawing.mean, _DRAWING_CONTRAST))
        keep_off += [(word.rgb, _WORD_CONTRAST) for word in self.words]
        ground = sample_ground(self.rng, keep_off)
        end = sample_finish(self.rng)
        things, words = tuple(self.things), tuple(self.words)
        return Scene(self.width, self.height, things, words, ground, end)


def _single(s: SceneSampler, shapes: float) -> None:
    s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.35, 0.95))), least=0.3)


def _mixed(s: SceneSampler, shapes: float) -> None:
    count = int(s.rng.integers(2, 5))
    largest = {2: 0.55, 3: 0.48, 4: 0.44}[count]
    for _ in range(count):
        name = s.new_name(shapes)
        if s.things and s.rng.random() < 0.15:
            name = s.things[-1].name
        s.add(s.new_thing(name, float(s.rng.uniform(0.24, largest))))


def _crowd(s: SceneSampler, shapes: float) -> None:
    rng = s.rng
    many, other = s.new_name(max(shapes, 0.5)), s.new_name(max(shapes, 0.5))
    names = [many] * int(rng.integers(0, 7)) + [other] * int(rng.integers(0, 4))
    names += [s.new_name(shapes) for _ in range(int(rng.integers(0, 2)))]
    names = names[:7] or [other]
    first = s.new_thing(many, 1.0)
    alike = rng.random() < 0.6  # drawings of one kind usually in one style
    largest = 0.34 if len(names) < 5 else 0.28
    for name in names:
        thing = s.new_thing(name, float(rng.uniform(0.16, largest)))
        if alike and name == many:
            thing = replace(thing, style=first.style)
            if rng.random() < 0.5:
                thing = replace(thing, color=first.color, rgb=first.rgb, filled=first.filled)
        s.add(thing, overlap=min(s.overlap, 0.05))


def _nested(s: SceneSampler, shapes: float) -> None:
    rng = s.rng
    holder = str(rng.choice(("circle", "square", "triangle", "heart")))
    outer = s.new_thing(holder, float(rng.uniform(0.55, 0.8)), filled=False)
    s.add(outer, overlap=0.0)
    if s.things:
        outer = s.things[0]
        inner = s.new_thing(s.new_name(shapes), 1.0)
        room = {"triangle": 0.34, "heart": 0.42}.get(holder, 0.5)
        size = outer.size * float(rng.uniform(0.75, 1.0)) * room
        left, top, right, bottom = outer.box()
        x, y = (left + right) / 2, (top + bottom) / 2
        if holder == "triangle":
            y = outer.y + 0.18 * outer.size
        s.things.append(replace(inner, size=size, x=x, y=y))
    for _ in range(int(rng.integers(0, 3))):
        s.add(s.new_thing(s.new_name(shapes), float(rng.uniform(0.2, 0.35))), overlap=0.0)


def _text(s: SceneSampler, shapes: float) -> None:
    text = s.new_text(jumble=0.0 if s.unseen_words else 0.3)
    s.add_word(text, (0.2 + 0.07 * min(len(text), 8), 0.95))
    for _ in range(int(s.rng.choice([0, 0, 1, 2]))):
        s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.22, 0.4))), overlap=0.0)


def _mosaic(s: SceneSampler, shapes: float) -> None:
    s.overlap = 0.15
    largest = float(s.rng.uniform(0.28, 0.5))
    for _ in range(int(s.rng.integers(4, 11))):
        s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.2, largest))))


def _page(s: SceneSampler, shapes: float) -> None:
    for _ in range(int(s.rng.integers(2, 7))):
        text = s.new_text(jumble=0.6)
        s.add_word(text, (0.09 * len(text), min(0.95, 0.2 * len(text))))
    if s.rng.random() < 0.3:
        s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.2, 0.35))), overlap=0.0)


def _sign(s: SceneSampler, shapes: float) -> None:
    for _ in range(int(s.rng.integers(2, 5))):
        s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.22, 0.42))), overlap=0.0)
    text = s.new_text(jumble=0.2)
    s.add_word(text, (0.06 * len(text) + 0.1, 0.12 * len(text) + 0.15))


_LAYOUTS = {
    "single": _single,
    "mixed": _mixed,
    "crowd": _crowd,
    "nested": _nested,
    "text": _text,
    "mosaic": _mosaic,
    "page": _page,
    "sign": _sign,
}


def sample(
    rng: np.random.Generator,
    layout: str,
    sides: tuple[int, int] = (160, 640),
    styles: Sequence[str] = drawings.STYLES,
    typefaces: Sequence[str] | None = None,
    unseen_words: bool = False,
    shapes: float = 0.3,
) -> Scene:
    """A random scene with at least one thing or word; `shapes` is the share of plain shapes.

    `sides` bounds the picture's sides in pixels.
    """
    given = drawings.seen_typefaces() if typefaces is None else typefaces
    while True:
        sampler = SceneSampler(rng, sides, styles, given, unseen_words)
        _LAYOUTS[layout](sampler, shapes)
        if sampler.things or sampler.words:
            return sampler.scene()


def _draw_shape(picture: Image.Image, thing: Thing) -> None:
    corners = thing.outline()
    left, top, right, bottom = thing.box()
    left, top = math.floor(left), math.floor(top)
    large = (
        (math.ceil(right) + 1 - left) * _SUPERSAMPLE,
        (math.ceil(bottom) + 1 - top) * _SUPERSAMPLE,
    )
    points = [(x, y) for x, y in ((corners - np.array([left, top])) * _SUPERSAMPLE).tolist()]
    mask = Image.new("L", large)
    ImageDraw.Draw(mask).polygon(points, fill=255)
    if not thing.filled:
        line = Image.new("L", large)
        thick = max(2, round(thing.size * _OUTLINE * _SUPERSAMPLE))
        ImageDraw.Draw(line).line([*points, points[0], points[1]], fill=255, width=thick)
        mask = ImageChops.multiply(mask, line)
    picture.paste(thing.rgb, (left, top), mask.reduce(_SUPERSAMPLE))


def _draw_drawing(picture: Image.Image, thing: Thing) -> None:
    assert thing.style is not None
    drawn = drawings.drawings(thing.style)[thing.name].picture
    scale = thing.size / max(drawn.size)
    size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
    drawn = drawn.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    if thing.flipped:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = drawn.rotate(-thing.angle, Image.Resampling.BICUBIC, expand=True)
    corner = round(thing.x - drawn.width / 2), round(thing.y - drawn.height / 2)
    picture.paste(drawn, corner, drawn)


def _draw_word(picture: Image.Image, word: Word) -> None:
    font = drawings.font(word.typeface, word.font_size)
    left, top, right, bottom = font.getbbox(word.text)
    mask = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), word.text, fill=255, font=font)
    mask = mask.rotate(-word.angle, Image.Resampling.BICUBIC, expand=True)
    corner = round(word.x - mask.width / 2), round(word.y - mask.height / 2)
    picture.paste(word.rgb, corner, mask)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture."""
    picture = draw_ground(scene.ground, scene.width, scene.height)
    for thing in scene.things:
        (_draw_shape if thing.style is None else _draw_drawing)(picture, thing)
    for word in scene.words:
        _draw_word(picture, word)
    return finish(picture, scene.finish)
