"""What lies behind a scene's things, and what happens to the finished picture.

Covered: plain and shaded grounds, textures (blotches, stripes, checks, scribbles), a light spot,
blur, noise and JPEG. Everything is drawn from the numbers in `Ground` and `Finish`, so the same
scene gives the same picture.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

Rgb = tuple[int, int, int]

TEXTURES = ("none", "blotches", "stripes", "checks", "scribbles")


@dataclass(frozen=True)
class Ground:
    """Two colours along a direction (radians), and a texture of the given strength over them."""

    start: Rgb
    end: Rgb
    angle: float
    texture: str
    strength: int
    seed: int


@dataclass(frozen=True)
class Finish:
    """A light spot, blur (as a share of the longer side), noise, and JPEG quality (0: none)."""

    light: float
    light_x: float
    light_y: float
    blur: float
    noise: int
    noise_seed: int
    jpeg: int


def rgb_near(anchor: Sequence[float], rng: np.random.Generator, spread: int) -> Rgb:
    moved = np.array(anchor) + rng.integers(-spread, spread + 1, 3)
    r, g, b = np.clip(np.rint(moved), 0, 255).astype(int).tolist()
    return r, g, b


def sample_ground(
    rng: np.random.Generator, keep_off: Sequence[tuple[Sequence[float], float]]
) -> Ground:
    """A ground that stays `distance` away in RGB from each given colour, as far as can be."""
    shaded = rng.random() < 0.6
    anchors = np.array([c for c, _ in keep_off]).reshape(-1, 3)
    distances = np.array([d for _, d in keep_off])
    best: tuple[Rgb, Rgb] = ((128, 128, 128), (128, 128, 128))
    best_room = -math.inf
    for _ in range(40):
        if rng.random() < 0.4:
            start = rgb_near([int(rng.integers(0, 256))] * 3, rng, 6)
        else:
            start = rgb_near(rng.integers(0, 256, 3).tolist(), rng, 0)
        end = rgb_near(start, rng, 60) if shaded else start
        three = np.array([start, end, (np.array(start) + np.array(end)) / 2])
        away = np.linalg.norm(three[:, None] - anchors[None], axis=2)
        room = float((away - distances).min()) if len(anchors) else 0.0
        if room > best_room:
            best, best_room = (start, end), room
        if room >= 0:
            break
    texture = "none" if rng.random() < 0.45 else str(rng.choice(TEXTURES[1:]))
    strength = int(rng.integers(6, 26)) if best_room >= 0 else 6
    seed = int(rng.integers(2**31))
    return Ground(best[0], best[1], float(rng.uniform(0, 2 * math.pi)), texture, strength, seed)


def sample_finish(rng: np.random.Generator) -> Finish:
    return Finish(
        light=float(rng.uniform(-0.25, 0.25)) if rng.random() < 0.5 else 0.0,
        light_x=float(rng.random()),
        light_y=float(rng.random()),
        blur=float(rng.uniform(0.001, 0.006)) if rng.random() < 0.3 else 0.0,
        noise=int(rng.integers(2, 16)) if rng.random() < 0.4 else 0,
        noise_seed=int(rng.integers(2**31)),
        jpeg=int(rng.integers(35, 95)) if rng.random() < 0.4 else 0,
    )


def _texture(ground: Ground, width: int, height: int) -> Image.Image | None:
    """A grey picture around 128 that is added to the ground, or None."""
    rng = np.random.default_rng(ground.seed)
    low, high = 128 - ground.strength, 128 + ground.strength
    if ground.texture == "blotches":
        cells = int(rng.integers(3, 14))
        small = rng.integers(low, high + 1, (cells, cells)).astype(np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    if ground.texture in ("stripes", "checks"):
        across = int(rng.integers(4, 16))
        y, x = np.mgrid[0:height, 0:width] * (across / max(width, height))
        turn = ground.angle
        u = np.floor(x * math.cos(turn) + y * math.sin(turn))
        v = np.floor(y * math.cos(turn) - x * math.sin(turn)) if ground.texture == "checks" else 0
        return Image.fromarray(np.where((u + v) % 2 > 0, low, high).astype(np.uint8))
    if ground.texture == "scribbles":
        picture = Image.new("L", (width, height), 128)
        pen = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(5, 30))):
            points = rng.random((3, 2)) * 0.5 + rng.random(2) * 1.2 - 0.35
            line = (points * np.array([width, height])).ravel().tolist()
            thick = max(1, round(float(rng.uniform(0.003, 0.015)) * max(width, height)))
            pen.line(line, fill=int(rng.integers(low, high + 1)), width=thick)
        return picture
    return None


def draw_ground(ground: Ground, width: int, height: int) -> Image.Image:
    steps = (np.arange(16) + 0.5) / 16
    x, y = np.meshgrid(steps, steps)
    along = (x - 0.5) * math.cos(ground.angle) + (y - 0.5) * math.sin(ground.angle) + 0.5
    mix = np.clip(along, 0, 1)[..., None]
    pixels = (1 - mix) * np.array(ground.start) + mix * np.array(ground.end)
    small = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    picture = small.resize((width, height), Image.Resampling.BILINEAR)
    texture = _texture(ground, width, height)
    if texture is None:
        return picture
    added = np.asarray(picture).astype(np.int16) + np.asarray(texture).astype(np.int16)[..., None]
    return Image.fromarray(np.clip(added - 128, 0, 255).astype(np.uint8))


def finish(picture: Image.Image, how: Finish) -> Image.Image:
    """Light, blur, noise and JPEG, in this order."""
    width, height = picture.size
    if how.blur:
        picture = picture.filter(ImageFilter.GaussianBlur(how.blur * max(width, height)))
    if how.light or how.noise:
        pixels = np.asarray(picture).astype(np.float32)
        if how.light:
            x = (np.arange(width) + 0.5) / width - how.light_x
            y = (np.arange(height) + 0.5) / height - how.light_y
            spot = np.exp(-4 * y * y)[:, None] * np.exp(-4 * x * x)[None, :]
            pixels = pixels * (1 + how.light * spot.astype(np.float32))[..., None]
        if how.noise:
            rng = np.random.default_rng(how.noise_seed)
            bytes_ = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width, 1)
            pixels = pixels + (bytes_.astype(np.float32) - 127.5) * (how.noise / 127.5)
        picture = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if how.jpeg:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=how.jpeg)
        picture = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    return picture
