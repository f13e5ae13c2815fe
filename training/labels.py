"""Dense labels: the content of each cell of a square grid over a scene's image.

They train the vision tower directly, before there is a decoder. They describe things (kind, color, filled
or not, place, size) and the letters of printed words with their positions in the word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgevlm.scenes import drawings
from edgevlm.scenes.composition import COLORS, Scene, Word

KINDS = tuple(drawings.nouns())
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"

_KIND = {name: i + 1 for i, name in enumerate(KINDS)}
_COLOR = {name: i for i, name in enumerate(COLORS)}


def color_index(color: str | None) -> int:
    """Return the index into COLORS; -1 for a drawing, which has no color."""
    return -1 if color is None else _COLOR[color]


@dataclass(frozen=True)
class Labels:
    """Labels of each cell, row by row."""

    thing: NDArray[np.int64]
    """[cells], 1 + index into the scene's things; 0: background."""
    kind: NDArray[np.int64]
    """[cells], 1 + index into KINDS; 0: background."""
    color: NDArray[np.int64]
    """[cells], index into COLORS; -1: no shape."""
    filled: NDArray[np.int64]
    """[cells], 1: filled; 0: outlined; -1: no shape."""
    inside: NDArray[np.float32]
    """[cells, 16], 1 for each of the cell's 4 x 4 parts that a thing covers."""
    box: NDArray[np.float32]
    """[cells, 4], center, width and height of the thing's box as fractions of the image."""
    centre: NDArray[np.float32]
    """[cells], 1 if the center of a thing is in the cell."""
    letters: NDArray[np.int64]
    """[cells, 2], letter at the middle of the left and the right half, 1 + index into LETTERS; 0: none."""
    order: NDArray[np.int64]
    """[cells, 2], index of that letter in its word; -1: none."""


def letter_order(word: Word, scene: Scene, grid: int) -> NDArray[np.int64]:
    """Return the index of the word's letter at the middle of each half cell, or -1 [grid, 2 * grid]."""
    x = (np.arange(2 * grid) + 0.5) / (2 * grid) * scene.width - word.x
    y = (np.arange(grid) + 0.5) / grid * scene.height - word.y
    turn = math.radians(word.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    along = x[None, :] * cos + y[:, None] * sin
    across = y[:, None] * cos - x[None, :] * sin
    width, height = word.extent()
    half_cell = scene.height / grid / 2
    index = np.searchsorted(word.letter_ends(), along + width / 2)
    here = (np.abs(across) <= max(height / 2, half_cell)) & (np.abs(along) <= width / 2)
    found: NDArray[np.int64] = np.where(here, np.minimum(index, len(word.text) - 1), -1)
    return found


def label(scene: Scene, grid: int) -> Labels:
    """Return the labels for a grid of grid x grid cells over the image (squeezed to a square)."""
    fine = grid * 4
    scale = np.array([fine / scene.width, fine / scene.height])
    owners = Image.new("L", (fine, fine))
    pen = ImageDraw.Draw(owners)
    for i, thing in enumerate(scene.things):
        pen.polygon((thing.outline() * scale - 0.5).ravel().tolist(), fill=i + 1)
    cells = np.asarray(owners).reshape(grid, 4, grid, 4).transpose(0, 2, 1, 3)
    parts = cells.reshape(grid, grid, 16)
    counts = np.stack(
        [np.full((grid, grid), 1), *((parts == i + 1).sum(-1) for i in range(len(scene.things)))],
        axis=-1,
    )
    owner = counts.argmax(-1)  # a thing needs two of the sixteen parts

    kinds = np.array([0, *(_KIND[t.name] for t in scene.things)])
    colors = np.array([-1, *(color_index(t.color) for t in scene.things)])
    filled = np.array([-1, *(int(t.filled) if t.color else -1 for t in scene.things)])
    boxes = np.zeros((len(scene.things) + 1, 4))
    centre = np.zeros((grid, grid), np.float32)
    extent = np.array([scene.width, scene.height] * 2)
    for i, thing in enumerate(scene.things):
        left, top, right, bottom = np.array(thing.box()) / extent
        boxes[i + 1] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        row, column = int(boxes[i + 1, 1] * grid), int(boxes[i + 1, 0] * grid)
        centre[min(row, grid - 1), min(column, grid - 1)] = 1
    letters = np.zeros((grid, 2 * grid), np.int64)
    orders = np.full((grid, 2 * grid), -1)
    for word in scene.words:
        order = letter_order(word, scene, grid)
        codes = np.array([LETTERS.index(c) + 1 for c in word.text.lower()])
        letters = np.where(order >= 0, codes[order], letters)
        orders = np.maximum(orders, order)
    flat = grid * grid
    return Labels(
        thing=owner.reshape(flat),
        kind=kinds[owner].reshape(flat),
        color=colors[owner].reshape(flat),
        filled=filled[owner].reshape(flat),
        inside=(parts > 0).astype(np.float32).reshape(flat, 16),
        box=boxes[owner].astype(np.float32).reshape(flat, 4),
        centre=centre.reshape(flat),
        letters=letters.reshape(flat, 2),
        order=orders.reshape(flat, 2),
    )
