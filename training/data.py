"""Endless training batches, made on the fly.

Pictures go through the arithmetic of transformers' SmolVLM image processor (its Pillow back end,
one tile); `python -m training.evaluate` goes through the processor itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training import scenes
from training.dialogues import Packer, stack_rows
from training.model import GRID, LONGEST_EDGE, TILE


def squeeze(picture: Image.Image) -> NDArray[np.uint8]:
    """Resize as the image processor does: longer side first, then to the square tile; [3, H, W]."""
    width, height = picture.size
    if width >= height:
        size = LONGEST_EDGE, int(LONGEST_EDGE / (width / height))
        size = size[0], size[1] + size[1] % 2
    else:
        size = int(LONGEST_EDGE * (width / height)), LONGEST_EDGE
        size = size[0] + size[0] % 2, size[1]
    lanczos = Image.Resampling.LANCZOS
    tile = picture.resize(size, lanczos).resize((TILE, TILE), lanczos)
    return np.asarray(tile).transpose(2, 0, 1)


def normalise(tiles: Tensor) -> Tensor:
    """uint8 to the range -1 to 1, as the processor does."""
    return (tiles.float() / 255 - 0.5) / 0.5


def dense_labels(scene: scenes.Scene) -> dict[str, NDArray[np.generic]]:
    """The scene's labels per patch, flattened."""
    labels = scenes.label(scene, GRID)
    cells = GRID * GRID
    return {
        "kind": labels.kind.reshape(cells),
        "color": labels.color.reshape(cells),
        "inside": labels.inside.reshape(cells, 16),
        "box": labels.box.reshape(cells, 4),
        "centre": labels.centre.reshape(cells),
    }


class Batches:
    """Batches of tiles with dense labels and, given a packer, dialogues; seeded, without an end."""

    def __init__(
        self,
        seed: list[int],
        size: int,
        smallest: float,
        packer: Packer | None = None,
        sides: tuple[int, int] = (96, 256),
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._size, self._sides = size, sides
        self._sizes = (smallest, 0.47)
        self._packer = packer

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        while True:
            yield self.next()

    def next(self) -> dict[str, Tensor]:
        batch = [scenes.sample(self._rng, self._sides, self._sizes) for _ in range(self._size)]
        labels = [dense_labels(scene) for scene in batch]
        tiles = np.stack([squeeze(scenes.draw(scene)) for scene in batch])
        out = {k: torch.from_numpy(np.stack([one[k] for one in labels])) for k in labels[0]}
        out["tiles"] = torch.from_numpy(tiles)
        if self._packer is not None:
            packer = self._packer
            out |= stack_rows([packer.row(packer.about(s, self._rng)) for s in batch])
        return out
