"""Backgrounds of scenes, and distortions of the drawn image.

A background is plain or a gradient, with a texture: blotches, stripes, checks or scribbles. Distortions
are a light spot, blur, noise and JPEG. All is drawn from the numbers in `Background` and `Distortion`, so
the same scene gives the same image.
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
class Background:
    """A gradient between two colors, with a texture over it."""

    start: Rgb
    end: Rgb
    angle: float
    """Direction of gradient and texture, in radians."""
    texture: str
    """One of `TEXTURES`."""
    strength: int
    """Largest change by the texture, in levels of 0 to 255."""
    seed: int


@dataclass(frozen=True)
class Distortion:
    """Light spot, blur, noise and JPEG compression. Zero means: none."""

    light: float
    """Change of brightness at the center of the spot, as a fraction."""
    light_x: float
    """Center of the spot as a fraction of the width."""
    light_y: float
    """Center of the spot as a fraction of the height."""
    blur: float
    """Radius as a fraction of the longer side."""
    noise: int
    """Largest change, in levels of 0 to 255."""
    noise_seed: int
    jpeg: int
    """JPEG quality."""


def rgb_near(anchor: Sequence[float], rng: np.random.Generator, spread: int) -> Rgb:
    """Return a random color that differs from `anchor` by at most `spread` in each channel."""
    moved = np.array(anchor) + rng.integers(-spread, spread + 1, 3)
    r, g, b = np.clip(np.rint(moved), 0, 255).astype(int).tolist()
    return r, g, b


def sample_background(
    rng: np.random.Generator, avoid: Sequence[tuple[Sequence[float], float]]
) -> Background:
    """Return a random background in a color that differs from those of the things.

    Args:
        rng: source of randomness.
        avoid: pairs of an RGB color and the distance in RGB to keep from it. If no color of 40 keeps all
            distances, the best of them is used.
    """
    shaded = rng.random() < 0.6
    anchors = np.array([c for c, _ in avoid]).reshape(-1, 3)
    distances = np.array([d for _, d in avoid])
    best: tuple[Rgb, Rgb] = ((128, 128, 128), (128, 128, 128))
    best_margin = -math.inf
    for _ in range(40):
        if rng.random() < 0.4:
            start = rgb_near([int(rng.integers(0, 256))] * 3, rng, 6)
        else:
            start = rgb_near(rng.integers(0, 256, 3).tolist(), rng, 0)
        end = rgb_near(start, rng, 60) if shaded else start
        three = np.array([start, end, (np.array(start) + np.array(end)) / 2])
        away = np.linalg.norm(three[:, None] - anchors[None], axis=2)
        margin = float((away - distances).min()) if len(anchors) else 0.0
        if margin > best_margin:
            best, best_margin = (start, end), margin
        if margin >= 0:
            break
    texture = "none" if rng.random() < 0.45 else str(rng.choice(TEXTURES[1:]))
    strength = int(rng.integers(6, 26)) if best_margin >= 0 else 6
    seed = int(rng.integers(2**31))
    return Background(best[0], best[1], float(rng.uniform(0, 2 * math.pi)), texture, strength, seed)


def sample_distortion(rng: np.random.Generator) -> Distortion:
    """Return random distortions; each one is none in about half of the draws."""
    return Distortion(
        light=float(rng.uniform(-0.25, 0.25)) if rng.random() < 0.5 else 0.0,
        light_x=float(rng.random()),
        light_y=float(rng.random()),
        blur=float(rng.uniform(0.001, 0.006)) if rng.random() < 0.3 else 0.0,
        noise=int(rng.integers(2, 16)) if rng.random() < 0.4 else 0,
        noise_seed=int(rng.integers(2**31)),
        jpeg=int(rng.integers(35, 95)) if rng.random() < 0.4 else 0,
    )


def _draw_texture(background: Background, width: int, height: int) -> Image.Image | None:
    """Return the texture as a grey image around 128 to add to the background, or None."""
    rng = np.random.default_rng(background.seed)
    low, high = 128 - background.strength, 128 + background.strength
    if background.texture == "blotches":
        cells = int(rng.integers(3, 14))
        small = rng.integers(low, high + 1, (cells, cells)).astype(np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    if background.texture in ("stripes", "checks"):
        across = int(rng.integers(4, 16))
        y, x = np.mgrid[0:height, 0:width] * (across / max(width, height))
        turn = background.angle
        u = np.floor(x * math.cos(turn) + y * math.sin(turn))
        v = (
            np.floor(y * math.cos(turn) - x * math.sin(turn))
            if background.texture == "checks"
            else 0
        )
        return Image.fromarray(np.where((u + v) % 2 > 0, low, high).astype(np.uint8))
    if background.texture == "scribbles":
        image = Image.new("L", (width, height), 128)
        pen = ImageDraw.Draw(image)
        for _ in range(int(rng.integers(5, 30))):
            points = rng.random((3, 2)) * 0.5 + rng.random(2) * 1.2 - 0.35
            line = (points * np.array([width, height])).ravel().tolist()
            thick = max(1, round(float(rng.uniform(0.003, 0.015)) * max(width, height)))
            pen.line(line, fill=int(rng.integers(low, high + 1)), width=thick)
        return image
    return None


def draw_background(background: Background, width: int, height: int) -> Image.Image:
    """Return the background as an RGB image."""
    steps = (np.arange(16) + 0.5) / 16
    x, y = np.meshgrid(steps, steps)
    along = (x - 0.5) * math.cos(background.angle) + (y - 0.5) * math.sin(background.angle) + 0.5
    mix = np.clip(along, 0, 1)[..., None]
    pixels = (1 - mix) * np.array(background.start) + mix * np.array(background.end)
    small = Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))
    image = small.resize((width, height), Image.Resampling.BILINEAR)
    texture = _draw_texture(background, width, height)
    if texture is None:
        return image
    added = np.asarray(image).astype(np.int16) + np.asarray(texture).astype(np.int16)[..., None]
    return Image.fromarray(np.clip(added - 128, 0, 255).astype(np.uint8))


def distort(image: Image.Image, distortion: Distortion) -> Image.Image:
    """Return the image after blur, light spot, noise and JPEG, in this order."""
    width, height = image.size
    if distortion.blur:
        image = image.filter(ImageFilter.GaussianBlur(distortion.blur * max(width, height)))
    if distortion.light or distortion.noise:
        pixels = np.asarray(image).astype(np.float32)
        if distortion.light:
            x = (np.arange(width) + 0.5) / width - distortion.light_x
            y = (np.arange(height) + 0.5) / height - distortion.light_y
            spot = np.exp(-4 * y * y)[:, None] * np.exp(-4 * x * x)[None, :]
            pixels = pixels * (1 + distortion.light * spot.astype(np.float32))[..., None]
        if distortion.noise:
            rng = np.random.default_rng(distortion.noise_seed)
            bytes_ = np.frombuffer(rng.bytes(height * width), np.uint8).reshape(height, width, 1)
            pixels = pixels + (bytes_.astype(np.float32) - 127.5) * (distortion.noise / 127.5)
        image = Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
    if distortion.jpeg:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=distortion.jpeg)
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    return image
