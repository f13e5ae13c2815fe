"""How the tests of tiling split images, and random images of every Pillow mode."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edgevlm.manifest import GridTiling, StretchTiling

# A small tile and edge in SmolVLM's proportions (512 and 2048) keep the suite quick.
GRID = GridTiling((64, 64), "lanczos", longest_edge=256)
WHOLE = StretchTiling((64, 64), "lanczos", longest_edge=256)
STRETCH = StretchTiling((56, 56), "bicubic")


def random_image(width: int, height: int, mode: str = "RGB") -> Image.Image:
    random = np.random.default_rng(width * 10_007 + height)
    if mode == "PA":
        return random_image(width, height, "P").convert("PA")
    if mode == "LAB":
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.frombytes("LAB", (width, height), pixels.tobytes())
    image = Image.fromarray(random.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)
