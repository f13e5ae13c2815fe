"""Endless training batches, made on the fly.

Pictures go through the arithmetic of transformers' SmolVLM image processor (its Pillow back end,
one tile); `python -m training.evaluate` goes through the processor itself.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edgevlm.evaluation import scenes
from edgevlm.evaluation.pairs import sample_pair
from edgevlm.evaluation.scenes import Scene
from training import labels
from training.dialogues import Packer, stack_rows
from training.grounding import Finder, ground
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


def dense_labels(scene: Scene) -> dict[str, NDArray[np.generic]]:
    """The scene's labels per patch."""
    return vars(labels.label(scene, GRID))


def pictures(batch: list[Scene], dense: bool = True) -> dict[str, Tensor]:
    """`tiles` [n, 3, TILE, TILE] uint8 and if wished the dense labels, each [n, patches, ...]."""
    out: dict[str, Tensor] = {}
    if dense:
        found = [dense_labels(scene) for scene in batch]
        out = {k: torch.from_numpy(np.stack([one[k] for one in found])) for k in found[0]}
    out["tiles"] = torch.from_numpy(np.stack([squeeze(scenes.draw(s)) for s in batch]))
    return out


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
        return scenes.sample(self._rng, layout, SIDES, shapes=SHAPES)

    def next(self) -> dict[str, Tensor]:
        rng, packer, talk = self._rng, self._packer, self._stage.talk
        dense = self._stage.dense > 0
        if packer is None or talk == "none":
            return pictures([self._scene() for _ in range(self._size)], dense)
        shown: list[list[Scene]]
        if rng.random() < self._stage.pairs:
            pairs = [sample_pair(rng, sides=SIDES, shapes=SHAPES) for _ in range(self._size // 2)]
            rows = [packer.row(packer.about_pair(pair, rng)) for pair in pairs]
            shown = [[pair.first, pair.second] for pair in pairs]
        else:
            speak = packer.captions if talk == "captions" else packer.about
            shown = [[self._scene()] for _ in range(self._size)]
            rows = [packer.row(speak(scene, rng)) for (scene,) in shown]
        out = pictures([scene for row in shown for scene in row], dense) | stack_rows(rows)
        if self._finder is not None and self._stage.attention:
            out |= ground(self._finder, rows, shown)
        return out
