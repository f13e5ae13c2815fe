"""Seeded pictures of simple shapes, with everything that is known about them.

Covered: one to four flat shapes that do not overlap, in the picture's quarters or anywhere, on
plain or shaded grounds that contrast with them, in pictures of any size and aspect; and dense
labels for a square grid over the picture. Not covered: overlap, texture, perspective, outlines, text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Rgb = tuple[int, int, int]
Points = NDArray[np.float64]

KINDS = ("circle", "square", "triangle", "star", "cross", "heart")
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
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
MAX_SHAPES = 4

_SUPERSAMPLE = 4
_JITTER = 12  # how far a colour may stray from its anchor, per channel
_CONTRAST = 95.0  # least distance in RGB between a ground and any shape on it


@dataclass(frozen=True)
class Shape:
    """One shape; its centre and its size (the diameter of the circle around it) are in pixels."""

    kind: str
    color: str
    rgb: Rgb
    x: float
    y: float
    size: float
    angle: float

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Ground:
    """What lies behind the shapes: two colours along a direction, a light spot, and noise."""

    start: Rgb
    end: Rgb
    angle: float
    light: float
    light_x: float
    light_y: float
    noise: int
    noise_seed: int


@dataclass(frozen=True)
class Scene:
    """A picture before it is drawn."""

    width: int
    height: int
    shapes: tuple[Shape, ...]
    ground: Ground

    def place(self, shape: Shape) -> tuple[float, float]:
        """The shape's centre as fractions of the picture's width and height."""
        return shape.x / self.width, shape.y / self.height

    def quarter(self, shape: Shape) -> str:
        """The quarter that holds the shape's centre."""
        x, y = self.place(shape)
        return QUARTERS[2 * int(y >= 0.5) + int(x >= 0.5)]


@dataclass(frozen=True)
class Labels:
    """What stands in each cell of a square grid over the picture; class 0 is the ground.

    `kind` and `color` are [grid, grid]; `inside` tells for each of a cell's 4 x 4 parts whether a
    shape covers it, [grid, grid, 16]; `box` is where the shape's centre lies from the cell's centre
    and how large it is, as fractions of the picture (dx, dy, width, height), [grid, grid, 4];
    `centre` tells whether a shape's centre lies in the cell, [grid, grid].
    """

    kind: NDArray[np.int64]
    color: NDArray[np.int64]
    inside: NDArray[np.float32]
    box: NDArray[np.float32]
    centre: NDArray[np.float32]


def _turn(points: Points, degrees: float) -> Points:
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    turned: Points = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def _around(count: int, radii: tuple[float, ...]) -> Points:
    """A closed ring of `count` points from the top on, their radii taken in turn."""
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
    return np.concatenate([_turn(quarter, 90 * i) for i in range(4)])


OUTLINES: dict[str, Points] = {
    "circle": _around(48, (0.9,)),
    "square": np.array([[-0.78, -0.78], [0.78, -0.78], [0.78, 0.78], [-0.78, 0.78]]),
    "triangle": _around(3, (1.0,)) + np.array([0.0, 0.2]),
    "star": _around(10, (1.0, 0.42)),
    "cross": _cross(),
    "heart": _heart(),
}


def outline(shape: Shape) -> Points:
    """The shape's corners in pixels, [n, 2]."""
    turned = _turn(OUTLINES[shape.kind], shape.angle)
    placed: Points = turned * (shape.size / 2) + np.array([shape.x, shape.y])
    return placed


def _rgb_near(anchor: Rgb, rng: np.random.Generator, spread: int) -> Rgb:
    r, g, b = np.clip(np.array(anchor) + rng.integers(-spread, spread + 1, 3), 0, 255).tolist()
    return r, g, b


def _between(one: Rgb, other: Rgb) -> Rgb:
    return (one[0] + other[0]) // 2, (one[1] + other[1]) // 2, (one[2] + other[2]) // 2


def _sample_ground(rng: np.random.Generator, colors: list[Rgb]) -> Ground:
    """A ground whose two colours, and the one between, stand clear of the shapes' colours."""
    shaded = rng.random() < 0.6
    best: tuple[Rgb, Rgb] = ((128, 128, 128), (128, 128, 128))
    best_distance = min(math.dist(best[0], c) for c in colors)
    for _ in range(60):
        if rng.random() < 0.4:
            level = int(rng.integers(0, 256))
            start = _rgb_near((level, level, level), rng, 6)
        else:
            r, g, b = rng.integers(0, 256, 3).tolist()
            start = r, g, b
        end = _rgb_near(start, rng, 60) if shaded else start
        middle = _between(start, end)
        distance = min(math.dist(g, c) for g in (start, middle, end) for c in colors)
        if distance >= _CONTRAST:
            best = start, end
            break
        if distance > best_distance:
            best, best_distance = (start, end), distance
    return Ground(
        start=best[0],
        end=best[1],
        angle=float(rng.uniform(0, 2 * math.pi)),
        light=float(rng.uniform(-0.15, 0.15)) if shaded else 0.0,
        light_x=float(rng.random()),
        light_y=float(rng.random()),
        noise=int(rng.integers(2, 12)) if rng.random() < 0.5 else 0,
        noise_seed=int(rng.integers(2**31)),
    )


def _sample_size(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    """Width and height between the given sides (log-uniform), at most 2:1 either way."""
    low, high = sides
    side = math.exp(rng.uniform(math.log(low), math.log(high)))
    aspect = 2.0 ** rng.uniform(-1, 1) if rng.random() < 0.85 else 1.0
    width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
    grow = max(low / min(width, height), min(1.0, high / max(width, height)))
    width, height = round(width * grow), round(height * grow)
    return min(max(width, low), high), min(max(height, low), high)


Spot = tuple[float, float, float]


def _spots_in_quarters(
    rng: np.random.Generator, width: int, height: int, count: int, sizes: tuple[float, float]
) -> list[Spot]:
    spots = []
    for quarter in rng.permutation(4)[:count].tolist():
        size = rng.uniform(sizes[0], min(sizes[1], 0.44)) * min(width, height)
        x = rng.uniform(size / 2, width / 2 - size / 2) + (quarter % 2) * width / 2
        y = rng.uniform(size / 2, height / 2 - size / 2) + (quarter // 2) * height / 2
        spots.append((x, y, size))
    return spots


def _spots_anywhere(
    rng: np.random.Generator, width: int, height: int, count: int, sizes: tuple[float, float]
) -> list[Spot]:
    largest = sizes[1] * (1.3 if count == 1 else 1.0 if count == 2 else 0.85)
    spots: list[Spot] = []
    for attempt in range(400):
        shrink = max(0.0, 1 - attempt / 100)
        size = rng.uniform(sizes[0], max(sizes[0], largest * shrink)) * min(width, height)
        x, y = rng.uniform(size / 2, width - size / 2), rng.uniform(size / 2, height - size / 2)
        if all(math.hypot(x - a, y - b) > 0.52 * (size + s) for a, b, s in spots):
            spots.append((x, y, size))
        if len(spots) == count:
            break
    return spots


def sample(
    rng: np.random.Generator,
    sides: tuple[int, int] = (96, 800),
    sizes: tuple[float, float] = (0.2, 0.45),
) -> Scene:
    """A random scene; `sizes` bounds the shapes' diameters as fractions of the shorter side."""
    width, height = _sample_size(rng, sides)
    count = int(rng.integers(1, MAX_SHAPES + 1))
    layout = _spots_in_quarters if rng.random() < 0.6 else _spots_anywhere
    shapes = []
    for x, y, size in layout(rng, width, height, count, sizes):
        color = str(rng.choice(list(COLORS)))
        shapes.append(
            Shape(
                kind=str(rng.choice(KINDS)),
                color=color,
                rgb=_rgb_near(COLORS[color], rng, _JITTER),
                x=x,
                y=y,
                size=size,
                angle=float(rng.uniform(-18, 18)),
            )
        )
    return Scene(width, height, tuple(shapes), _sample_ground(rng, [s.rgb for s in shapes]))


def _draw_ground(scene: Scene) -> Image.Image:
    ground = scene.ground
    steps = (np.arange(16) + 0.5) / 16
    x, y = np.meshgrid(steps, steps)
    along = (x - 0.5) * math.cos(ground.angle) + (y - 0.5) * math.sin(ground.angle) + 0.5
    mix = np.clip(along, 0, 1)[..., None]
    pixels = (1 - mix) * np.array(ground.start) + mix * np.array(ground.end)
    far = (x - ground.light_x) ** 2 + (y - ground.light_y) ** 2
    pixels = pixels * (1 + ground.light * np.exp(-4 * far))[..., None]
    small = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    return small.resize((scene.width, scene.height), Image.Resampling.BILINEAR)


def draw(scene: Scene) -> Image.Image:
    """The scene as an RGB picture, edges smoothed."""
    picture = _draw_ground(scene)
    for shape in scene.shapes:
        corners = outline(shape)
        left, top = np.floor(corners.min(axis=0)).astype(int).tolist()
        right, bottom = (np.ceil(corners.max(axis=0)).astype(int) + 1).tolist()
        large = ((right - left) * _SUPERSAMPLE, (bottom - top) * _SUPERSAMPLE)
        mask = Image.new("L", large)
        points = ((corners - np.array([left, top])) * _SUPERSAMPLE).ravel().tolist()
        ImageDraw.Draw(mask).polygon(points, fill=255)
        picture.paste(shape.rgb, (left, top), mask.reduce(_SUPERSAMPLE))
    if scene.ground.noise:
        rng = np.random.default_rng(scene.ground.noise_seed)
        shape_hw = (scene.height, scene.width, 1)
        noise = rng.integers(-scene.ground.noise, scene.ground.noise + 1, shape_hw, dtype=np.int16)
        picture = Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def label(scene: Scene, grid: int) -> Labels:
    """Dense labels for a grid x grid division of the picture (squeezed to a square)."""
    fine = grid * 4
    scale = np.array([fine / scene.width, fine / scene.height])
    owners = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(owners)
    for i, shape in enumerate(scene.shapes):
        pen.polygon((outline(shape) * scale - 0.5).ravel().tolist(), fill=i + 1)
    cells = np.asarray(owners).reshape(grid, 4, grid, 4).transpose(0, 2, 1, 3)
    parts = cells.reshape(grid, grid, 16)
    counts = np.stack([(parts == i + 1).sum(-1) for i in range(len(scene.shapes))], axis=-1)
    owner = np.where(counts.max(-1) >= 2, counts.argmax(-1) + 1, 0)

    colors = list(COLORS)
    kinds = np.array([0, *(KINDS.index(s.kind) + 1 for s in scene.shapes)])
    hues = np.array([0, *(colors.index(s.color) + 1 for s in scene.shapes)])
    extent = np.array([scene.width, scene.height, scene.width, scene.height])
    boxes = np.array([[0.0] * 4, *([s.x, s.y, s.size, s.size] / extent for s in scene.shapes)])
    box = boxes[owner]
    middle = (np.arange(grid) + 0.5) / grid
    box[..., 0] -= middle[None, :]
    box[..., 1] -= middle[:, None]
    box[owner == 0] = 0
    centre = np.zeros((grid, grid), np.float32)
    for shape in scene.shapes:
        x, y = scene.place(shape)
        centre[int(y * grid), int(x * grid)] = 1
    inside = (parts > 0).astype(np.float32)
    return Labels(kinds[owner], hues[owner], inside, box.astype(np.float32), centre)
