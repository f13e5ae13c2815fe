"""Endless training batches, generated on the fly.

Images are prepared with the arithmetic of transformers' SmolVLM image processor (its Pillow back end, one
tile). `edgevlm eval --reference` uses the processor itself.
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
from training.grounding import MentionFinder, ThingLocations, attention_targets
from training.labels import Labels
from training.model import GRID, LONGEST_EDGE, TILE
from training.stages import Stage

SHAPES = 0.3  # share of plain shapes among the things
SIDES = (
    144,
    256,
)  # smallest and largest side of an image, in pixels; larger ones would only cost time


def squeeze(image: Image.Image) -> NDArray[np.uint8]:
    """Resize as the image processor does, first the longer side, then to the square tile [3, H, W]."""
    width, height = image.size
    if width >= height:
        size = LONGEST_EDGE, int(LONGEST_EDGE / (width / height))
        size = size[0], size[1] + size[1] % 2
    else:
        size = int(LONGEST_EDGE * (width / height)), LONGEST_EDGE
        size = size[0] + size[0] % 2, size[1]
    lanczos = Image.Resampling.LANCZOS
    tile = image.resize(size, lanczos).resize((TILE, TILE), lanczos)
    return np.asarray(tile).transpose(2, 0, 1)


def normalize(tiles: Tensor) -> Tensor:
    """Return uint8 tiles as floats from -1 to 1, as the processor does."""
    return (tiles.float() / 255 - 0.5) / 0.5


def draw_tiles(batch: list[Scene]) -> dict[str, Tensor]:
    """Return the scenes' images as `tiles` [n, 3, TILE, TILE], uint8."""
    return {"tiles": torch.from_numpy(np.stack([squeeze(composition.draw(s)) for s in batch]))}


def dense_labels(found: list[Labels]) -> dict[str, Tensor]:
    """Return the scenes' labels as one batch, each [n, patches, ...]."""
    return {
        name: torch.from_numpy(np.stack([vars(one)[name] for one in found]))
        for name in vars(found[0])
    }


class Batches:
    """Endless seeded batches of a stage: tiles, dense labels, and rows of dialogues.

    A batch of pairs has half as many rows as images; the two images of a row are neighbors.
    """

    def __init__(
        self,
        seed: list[int],
        stage: Stage,
        packer: Packer | None = None,
        finder: MentionFinder | None = None,
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
        rng, packer, text_data = self._rng, self._packer, self._stage.text_data
        rows: list[dict[str, NDArray[np.int64]]] = []
        if packer is None or text_data == "none":
            shown = [[self._scene()] for _ in range(self._size)]
        elif rng.random() < self._stage.pairs:
            pairs = [sample_pair(rng, sides=SIDES, shapes=SHAPES) for _ in range(self._size // 2)]
            rows = [packer.row(packer.pair_dialogues(pair, rng)) for pair in pairs]
            shown = [[pair.first, pair.second] for pair in pairs]
        else:
            speak = packer.captions if text_data == "captions" else packer.dialogues
            shown = [[self._scene()] for _ in range(self._size)]
            rows = [packer.row(speak(scene, rng)) for (scene,) in shown]
        known = [[labels.label(scene, GRID) for scene in row] for row in shown]
        out = draw_tiles([scene for row in shown for scene in row])
        out |= dense_labels([one for row in known for one in row])
        if rows:
            out |= stack_rows(rows)
        if rows and self._finder is not None:
            places = [
                [ThingLocations(scene, found) for scene, found in zip(row, labelled, strict=True)]
                for row, labelled in zip(shown, known, strict=True)
            ]
            out |= attention_targets(self._finder, rows, places)
        return out
