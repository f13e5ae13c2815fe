"""Seeded scenes of shapes, drawings and printed words, and their images.

A layout is the kind of a scene: `single` (one large thing), `mixed` (two to four things), `crowd` (things
to count), `nested` (a thing inside an outlined shape) and `text` (a word or a number, sometimes with
things). Three more layouts are for training only: `mosaic` (many things that overlap), `page` (many words)
and `sign` (a word among several things). Scenes have no perspective and no shadows.
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
    Background,
    Distortion,
    Rgb,
    distort,
    draw_background,
    rgb_near,
    sample_background,
    sample_distortion,
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
_JITTER = 12  # largest difference of a shape's color from that in COLORS, per channel
_SHAPE_CONTRAST, _DRAWING_CONTRAST, _WORD_CONTRAST = 95.0, 55.0, 110.0  # distance in RGB
_OUTLINE_WIDTH = 0.14  # width of an outlined shape's line, as a share of its size

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Thing:
    """A shape or a drawing at its place in a scene."""

    name: str
    style: str | None
    """Style of a drawing; None for a shape."""
    color: str | None
    """Name of a shape's color; None for a drawing."""
    rgb: Rgb
    filled: bool
    """False if only the outline of a shape is drawn."""
    x: float
    """Center, in pixels."""
    y: float
    """Center, in pixels."""
    size: float
    """Longer side before the rotation, in pixels."""
    angle: float
    """Rotation in degrees, clockwise."""
    flipped: bool
    """True if the thing is mirrored left to right."""

    @property
    def label(self) -> str:
        """Name with the color of a shape: "red star" or "cat"."""
        return f"{self.color} {self.name}" if self.color else self.name

    def outline(self) -> Points:
        """Return the corners in pixels, [n, 2]."""
        turned = drawings.transformed_outline(self.name, self.style, self.angle, self.flipped)
        placed: Points = turned * (self.size / 2) + np.array([self.x, self.y])
        return placed

    def box(self) -> Box:
        """Return left, top, right and bottom in pixels."""
        return _box_around(self.outline())


@dataclass(frozen=True)
class Word:
    """Printed letters or digits at their place in a scene."""

    text: str
    typeface: str
    font_size: int
    """Pixels per em."""
    rgb: Rgb
    x: float
    """Center, in pixels."""
    y: float
    """Center, in pixels."""
    angle: float
    """Rotation in degrees, clockwise."""

    def _ink(self) -> Box:
        return drawings.font(self.typeface, self.font_size).getbbox(self.text)

    def extent(self) -> tuple[float, float]:
        """Return width and height of the ink before the rotation, in pixels."""
        left, top, right, bottom = self._ink()
        return right - left, bottom - top

    def letter_ends(self) -> NDArray[np.float64]:
        """Return the right end of each letter from the left edge of the ink, in pixels.

        The rotation is not applied.
        """
        font = drawings.font(self.typeface, self.font_size)
        ends = [font.getlength(self.text[: i + 1]) for i in range(len(self.text))]
        return np.array(ends) - self._ink()[0]

    def outline(self) -> Points:
        """Return the corners of the rectangle around the ink in pixels, [4, 2]."""
        width, height = self.extent()
        corners = np.array([[-width, -height], [width, -height], [width, height], [-width, height]])
        placed: Points = drawings.rotate(corners / 2, self.angle) + np.array([self.x, self.y])
        return placed

    def box(self) -> Box:
        """Return left, top, right and bottom in pixels."""
        return _box_around(self.outline())


@dataclass(frozen=True)
class Scene:
    """Everything that an image shows; `draw` draws it."""

    width: int
    height: int
    things: tuple[Thing, ...]
    words: tuple[Word, ...]
    background: Background
    distortion: Distortion

    def center(self, item: Thing | Word) -> tuple[float, float]:
        """Return the center of an item's box as fractions of the image's width and height."""
        left, top, right, bottom = item.box()
        return (left + right) / 2 / self.width, (top + bottom) / 2 / self.height


def _box_around(points: Points) -> Box:
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return left, top, right, bottom


def sample_rgb(color: str, rng: np.random.Generator) -> Rgb:
    """Return a random RGB value that clearly is the given color of COLORS."""
    return rgb_near(COLORS[color], rng, _JITTER)


def sample_sides(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    """Return a random width and height between the given sides (log-uniform), at most 2:1 or 1:2."""
    low, high = sides
    side = math.exp(rng.uniform(math.log(low), math.log(high)))
    aspect = 2.0 ** rng.uniform(-1, 1) if rng.random() < 0.7 else 1.0
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    grow = max(low / min(width, height), min(1.0, high / max(width, height)))
    width, height = round(width * grow), round(height * grow)
    return min(max(width, low), high), min(max(height, low), high)


class SceneSampler:
    """Builds one random scene.

    Args:
        rng: source of randomness.
        sides: smallest and largest side of the image, in pixels.
        styles: styles of drawings to choose from.
        typefaces: typefaces to choose from.
        unseen_words: print only words that training never shows.
    """

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
        self.shorter_side = min(self.width, self.height)
        self.things: list[Thing] = []
        self.words: list[Word] = []
        self.boxes: list[Box] = []
        self.overlap = float(rng.uniform(0.03, 0.15)) if rng.random() < 0.35 else 0.0

    def new_name(self, shapes: float) -> str:
        """Return the name of a shape with probability `shapes`, else that of a drawing."""
        if self.rng.random() < shapes:
            return str(self.rng.choice(SHAPES))
        names = drawings.drawing_names()
        return names[int(self.rng.integers(len(names)))]

    def new_thing(self, name: str, size: float, filled: bool | None = None) -> Thing:
        """Return a random thing that is not placed yet.

        Args:
            name: name of a shape or a drawing.
            size: longer side of the thing as a fraction of the image's shorter side.
            filled: False for an outlined shape; None: random.
        """
        rng = self.rng
        style, color, rgb = None, None, (0, 0, 0)
        if name in SHAPES:
            color = str(rng.choice(list(COLORS)))
            rgb = sample_rgb(color, rng)
        else:
            having = [style for style in self.styles if name in drawings.drawings(style)]
            style = having[int(rng.integers(len(having)))]
        if filled is None:
            filled = bool(style is not None or rng.random() < 0.75)
        turn = 18 if rng.random() < 0.7 else 4
        flipped = bool(style is not None and rng.random() < 0.3)
        angle = float(rng.uniform(-turn, turn))
        return Thing(
            name, style, color, rgb, filled, 0, 0, size * self.shorter_side, angle, flipped
        )

    def _fits(self, box: Box, overlap: float) -> bool:
        left, top, right, bottom = box
        area = (right - left) * (bottom - top)
        gap = 0.0 if overlap else 0.02 * self.shorter_side
        for a, b, c, d in self.boxes:
            across = min(right, c) - max(left, a) + gap
            down = min(bottom, d) - max(top, b) + gap
            if across > 0 and down > 0:
                shared = across * down / min(area, (c - a) * (d - b))
                if shared > overlap:
                    return False
        return True

    def _find_place(self, outline: Points, overlap: float) -> tuple[float, float] | None:
        """Return a center with which the outline is inside the image and apart from the others."""
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

    def add(self, thing: Thing, overlap: float | None = None, min_scale: float = 0.6) -> bool:
        """Place a thing at a random free place.

        Args:
            thing: the thing to place.
            overlap: largest fraction of a box that another one may cover; None: that of the scene.
            min_scale: how much smaller the thing may become to find a place, as a fraction.

        Returns:
            False if there is no place.
        """
        overlap = self.overlap if overlap is None else overlap
        shrunk = 1.0
        while shrunk >= min_scale:
            tried = replace(thing, size=thing.size * shrunk)
            place = self._find_place(tried.outline(), overlap)
            if place is not None:
                self.things.append(replace(tried, x=place[0], y=place[1]))
                return True
            shrunk *= 0.85
        return False

    def new_text(self, jumble: float) -> str:
        """Return a word, a number, or with probability `jumble` random letters."""
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
            for _ in range(6):  # makes all lengths about equally frequent
                if len(text) == length:
                    break
                text = known[int(rng.integers(len(known)))]
        case = rng.random()
        return text.upper() if case < 0.45 else text.capitalize() if case < 0.65 else text

    def add_word(self, text: str, share: tuple[float, float]) -> bool:
        """Print a text at a random free place.

        Args:
            text: the text to print.
            share: smallest and largest width of the text as fractions of the image's width. Its height is
                at most 45 % of the image's height.

        Returns:
            False if there is no place.
        """
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
            place = self._find_place(word.outline(), 0.0)
            if place is not None:
                self.words.append(replace(word, x=place[0], y=place[1]))
                return True
            scale *= 0.9
        return False

    def scene(self) -> Scene:
        """Return the scene with a background that contrasts with its things and words."""
        avoid: list[tuple[Sequence[float], float]] = []
        for thing in self.things:
            if thing.style is None:
                avoid.append((thing.rgb, _SHAPE_CONTRAST))
            else:
                drawing = drawings.drawings(thing.style)[thing.name]
                avoid.append((drawing.mean, _DRAWING_CONTRAST))
        avoid += [(word.rgb, _WORD_CONTRAST) for word in self.words]
        background = sample_background(self.rng, avoid)
        distortion = sample_distortion(self.rng)
        things, words = tuple(self.things), tuple(self.words)
        return Scene(self.width, self.height, things, words, background, distortion)


def _single(s: SceneSampler, shapes: float) -> None:
    s.add(s.new_thing(s.new_name(shapes), float(s.rng.uniform(0.35, 0.95))), min_scale=0.3)


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
    alike = rng.random() < 0.6  # drawings of one kind usually have one style
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
    """Return a random scene with at least one thing or word.

    Args:
        rng: source of randomness.
        layout: kind of the scene; see the module.
        sides: smallest and largest side of the image, in pixels.
        styles: styles of drawings to choose from.
        typefaces: typefaces to choose from; None: those of training.
        unseen_words: print only words that training never shows.
        shapes: share of shapes among the things, from 0 to 1.
    """
    given = drawings.training_typefaces() if typefaces is None else typefaces
    while True:
        sampler = SceneSampler(rng, sides, styles, given, unseen_words)
        _LAYOUTS[layout](sampler, shapes)
        if sampler.things or sampler.words:
            return sampler.scene()


def _draw_shape(image: Image.Image, thing: Thing) -> None:
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
        thick = max(2, round(thing.size * _OUTLINE_WIDTH * _SUPERSAMPLE))
        ImageDraw.Draw(line).line([*points, points[0], points[1]], fill=255, width=thick)
        mask = ImageChops.multiply(mask, line)
    image.paste(thing.rgb, (left, top), mask.reduce(_SUPERSAMPLE))


def _draw_drawing(image: Image.Image, thing: Thing) -> None:
    assert thing.style is not None
    drawn = drawings.drawings(thing.style)[thing.name].image
    scale = thing.size / max(drawn.size)
    size = max(1, round(drawn.width * scale)), max(1, round(drawn.height * scale))
    drawn = drawn.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BOX)
    if thing.flipped:
        drawn = drawn.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = drawn.rotate(-thing.angle, Image.Resampling.BICUBIC, expand=True)
    corner = round(thing.x - drawn.width / 2), round(thing.y - drawn.height / 2)
    image.paste(drawn, corner, drawn)


def _draw_word(image: Image.Image, word: Word) -> None:
    font = drawings.font(word.typeface, word.font_size)
    left, top, right, bottom = font.getbbox(word.text)
    mask = Image.new("L", (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), word.text, fill=255, font=font)
    mask = mask.rotate(-word.angle, Image.Resampling.BICUBIC, expand=True)
    corner = round(word.x - mask.width / 2), round(word.y - mask.height / 2)
    image.paste(word.rgb, corner, mask)


def draw(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image."""
    image = draw_background(scene.background, scene.width, scene.height)
    for thing in scene.things:
        (_draw_shape if thing.style is None else _draw_drawing)(image, thing)
    for word in scene.words:
        _draw_word(image, word)
    return distort(image, scene.distortion)
