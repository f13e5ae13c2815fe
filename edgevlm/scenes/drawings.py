"""Material of scenes: drawings in several styles, shapes, typefaces and words.

The drawings are emoji of nine sets with open licences; `data/ATTRIBUTION.md` names each. Training never
uses the set `UNSEEN_STYLE`. An outline is a closed line of points, and its longer side spans -1 to 1. All
is loaded once. `composition` places and draws it.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont

Points = NDArray[np.float64]

_DATA = Path(__file__).parent / "data"

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
STYLES = (
    "emojione",
    "fluent-emoji",
    "fluent-emoji-flat",
    "fxemoji",
    "noto",
    "noto-v1",
    "openmoji",
    "streamline-emojis",
)
UNSEEN_STYLE = "twemoji"
UNSEEN_TYPEFACES = ("barlow-400", "nunito-400", "nunito-700", "pt-serif-400", "zilla-slab-400")


@dataclass(frozen=True)
class Noun:
    """The forms of a thing's name in English and Russian."""

    name: str
    plural: str
    russian: str
    genitive: str
    genitive_plural: str
    gender: str
    """Russian gender: m, f, n, or p for a noun that has a plural only."""


_SHAPE_NOUNS = (
    Noun("circle", "circles", "круг", "круга", "кругов", "m"),
    Noun("square", "squares", "квадрат", "квадрата", "квадратов", "m"),
    Noun("triangle", "triangles", "треугольник", "треугольника", "треугольников", "m"),
    Noun("star", "stars", "звезда", "звезды", "звёзд", "f"),
    Noun("cross", "crosses", "крест", "креста", "крестов", "m"),
    Noun("heart", "hearts", "сердце", "сердца", "сердец", "n"),
)


@cache
def nouns() -> dict[str, Noun]:
    """Return the nouns of all shapes and drawings by English name, shapes first."""
    with open(_DATA / "things.csv", encoding="utf-8", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != "emoji"} for row in csv.DictReader(file)]
    return {noun.name: noun for noun in (*_SHAPE_NOUNS, *(Noun(**row) for row in rows))}


@cache
def drawing_names() -> tuple[str, ...]:
    """Return the names of all drawings."""
    return tuple(name for name in nouns() if name not in SHAPES)


@dataclass(frozen=True)
class Drawing:
    """One thing in one style."""

    image: Image.Image
    """RGBA."""
    outline: Points
    """Convex, [n, 2]."""
    mean: tuple[float, float, float]
    """Mean RGB color of the visible pixels."""


def _convex_hull(points: Points) -> Points:
    """Return the convex hull, by Andrew's monotone chain."""
    ordered = sorted(map(tuple, points.tolist()))

    def one_side(chain: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for p in chain:
            while len(kept) > 1 and (
                (kept[-1][0] - kept[-2][0]) * (p[1] - kept[-2][1])
                <= (kept[-1][1] - kept[-2][1]) * (p[0] - kept[-2][0])
            ):
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(one_side(ordered) + one_side(ordered[::-1]))


@cache
def drawings(style: str) -> dict[str, Drawing]:
    """Return all drawings of a style by name."""
    found = {}
    with zipfile.ZipFile(_DATA / "drawings" / f"{style}.zip") as file:
        for entry in file.namelist():
            image = Image.open(io.BytesIO(file.read(entry))).convert("RGBA")
            pixels = np.asarray(image)
            solid = pixels[..., 3] > 60
            rows = np.nonzero(solid.any(axis=1))[0]
            first = solid[rows].argmax(axis=1)
            last = solid.shape[1] - solid[rows][:, ::-1].argmax(axis=1)
            sides = [(first, rows), (first, rows + 1), (last, rows), (last, rows + 1)]
            corners = np.concatenate([np.stack(side, axis=1) for side in sides])
            center = np.array(image.size) / 2
            outline = (_convex_hull(corners.astype(float)) - center) / (max(image.size) / 2)
            mean = pixels[solid][:, :3].mean(0).tolist()
            found[entry.removesuffix(".webp")] = Drawing(image, outline, tuple(mean))
    return found


def rotate(points: Points, degrees: float) -> Points:
    """Rotate points [n, 2] clockwise around the origin."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _ring(count: int, radii: tuple[float, ...]) -> Points:
    """Return `count` points around the origin, from the top on; the radii take turns."""
    angles = np.arange(count) * 2 * math.pi / count - math.pi / 2
    radius = np.resize(np.array(radii), count)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _heart() -> Points:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return np.stack([x / 17, (y - 2.5) / 16], axis=1)


def _cross() -> Points:
    arm, end = 0.3, 0.93
    quarter = np.array([[arm, -end], [arm, -arm], [end, -arm]])
    return np.concatenate([rotate(quarter, 90 * i) for i in range(4)])


SHAPE_OUTLINES: dict[str, Points] = {
    "circle": _ring(48, (0.9,)),
    "square": np.array([[-0.78, -0.78], [0.78, -0.78], [0.78, 0.78], [-0.78, 0.78]]),
    "triangle": _ring(3, (1.0,)) + np.array([0.0, 0.2]),
    "star": _ring(10, (1.0, 0.42)),
    "cross": _cross(),
    "heart": _heart(),
}


def transformed_outline(name: str, style: str | None, angle: float, flipped: bool) -> Points:
    """Return the outline of a shape (style None) or a drawing after mirroring and rotation, [n, 2]."""
    outline = SHAPE_OUTLINES[name] if style is None else drawings(style)[name].outline
    return rotate(outline * np.array([-1.0 if flipped else 1.0, 1.0]), angle)


@cache
def typefaces() -> dict[str, bytes]:
    """Return all typefaces by name, each a TrueType file with Latin letters and digits only."""
    with zipfile.ZipFile(_DATA / "typefaces.zip") as file:
        names = sorted(name for name in file.namelist() if name.endswith(".ttf"))
        return {name.removesuffix(".ttf"): file.read(name) for name in names}


@cache
def training_typefaces() -> tuple[str, ...]:
    """Return the names of the typefaces that training uses."""
    return tuple(name for name in typefaces() if name not in UNSEEN_TYPEFACES)


@cache
def font(typeface: str, size: int) -> ImageFont.FreeTypeFont:
    """Return a typeface at a size in pixels per em."""
    return ImageFont.truetype(io.BytesIO(typefaces()[typeface]), size)


@cache
def words(unseen: bool) -> tuple[str, ...]:
    """Return English words of 2 to 8 letters in lower case.

    Args:
        unseen: return the sixth of the words that training never uses, instead of the others.
    """
    text = (_DATA / "words.txt").read_text(encoding="ascii")
    return tuple(w for w in text.split() if (zlib.crc32(w.encode()) % 6 == 0) == unseen)
