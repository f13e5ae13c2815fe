"""Endless training batches, made on the fly.

Pictures go through the arithmetic of transformers' SmolVLM image processor (its Pillow back end,
one tile); `edgevlm eval --checkpoint` goes through the processor itself.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgevlm.scenes import composition
from edgevlm.scenes.composition import Scene
from edgevlm.scenes.pairs import sample_pair
from training import labels
from training.dialogues import Packer, stack_rows
from training.grounding import Finder, Places, ground
from training.labels import Labels
from training.model import GRID, LONGEST_EDGE, TILE
from training.stages import Stage

SHAPES = 0.3  # share of plain shapes among the things
SIDES = (144, 256)  # of training pictures, in pixels; drawing larger ones would cost time only


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


def pictures(batch: list[Scene]) -> dict[str, Tensor]:
    """`tiles` [n, 3, TILE, TILE] uint8."""
    return {"tiles": torch.from_numpy(np.stack([squeeze(composition.draw(s)) for s in batch]))}


def dense_labels(found: list[Labels]) -> dict[str, Tensor]:
    """One batch of the scenes' labels, each [n, patches, ...]."""
    return {
        name: torch.from_numpy(np.stack([vars(one)[name] for one in found]))
        for name in vars(found[0])
    }


class Batches:
    """Batches for a stage, seeded, without an end: tiles, dense labels, and rows of dialogues.

    A batch about pairs has half as many rows as pictures; a row's two pictures follow one another.
    """

    def __init__(
        self,
        seed: list[int],
        stage: Stage,
        packer: Packer | None = None,
        finder: Finder | None = None,
        size: int | None = None,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._stage, self._packer, self._finder = stage, packer, finder
        self._size = size or stage.batch
        self._layouts = list(stage.layouts)
        self._shares = np.cumsum(list(stage.layouts.values())) / sum(stage.layouts.values())

    def _scene(self) -> Scene:
        layout = self._layouts[int(np.searchsorted(self._shares, self._rng.random()))]
        return composition.sample(self._rng, layout, SIDES, shapes=SHAPES)

    def next(self) -> dict[str, Tensor]:
        rng, packer, talk = self._rng, self._packer, self._stage.talk
        rows: list[dict[str, NDArray[np.int64]]] = []
        if packer is None or talk == "none":
            shown = [[self._scene()] for _ in range(self._size)]
        elif rng.random() < self._stage.pairs:
            pairs = [sample_pair(rng, sides=SIDES, shapes=SHAPES) for _ in range(self._size // 2)]
            rows = [packer.row(packer.about_pair(pair, rng)) for pair in pairs]
            shown = [[pair.first, pair.second] for pair in pairs]
        else:
            speak = packer.captions if talk == "captions" else packer.about
            shown = [[self._scene()] for _ in range(self._size)]
            rows = [packer.row(speak(scene, rng)) for (scene,) in shown]
        known = [[labels.label(scene, GRID) for scene in row] for row in shown]
        out = pictures([scene for row in shown for scene in row])
        out |= dense_labels([one for row in known for one in row])
        if rows:
            out |= stack_rows(rows)
        if rows and self._finder is not None:
            places = [
                [Places(scene, found) for scene, found in zip(row, labelled, strict=True)]
                for row, labelled in zip(shown, known, strict=True)
            ]
            out |= ground(self._finder, rows, places)
        return out
