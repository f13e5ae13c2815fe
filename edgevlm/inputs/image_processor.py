"""Pictures as the engine takes them: cut into tiles, each known by a hash of its pixels.

How recent pictures were cut is remembered, but not the tiles. So a picture that comes again, as it does in
every turn of a conversation, is not resized again while the caches hold what became of it.
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.inputs.tiling import ImageBudget, Tiles, prepare
from edgevlm.manifest import ImagePreparation

Pixels: TypeAlias = "Callable[[bytes], NDArray[np.uint8]]"
"""A tile ``[height, width, 3]`` by its key."""

REMEMBERED = 256
"""Pictures of which the grid and the keys are remembered, up to a kilobyte each."""


@dataclass(frozen=True)
class Picture:
    """A picture ready for the vision graph."""

    keys: tuple[bytes, ...]
    """Hash of each tile's pixels, in the order of `Tiles`."""
    rows: int
    columns: int
    """As in `Tiles`."""
    cut: Callable[[], Tiles]

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @functools.cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """``[n, height, width, 3]``, cut when they are first needed."""
        return self.cut().pixels


class PictureCutter:
    """Cuts pictures as a model was trained to see them; may be used by several threads at once."""

    def __init__(self, preparation: ImagePreparation, tokens_per_tile: int) -> None:
        self._preparation = preparation
        self._tokens_per_tile = tokens_per_tile
        self._remembered: OrderedDict[object, tuple[tuple[bytes, ...], int, int]] = OrderedDict()
        self._lock = threading.Lock()

    def cut(self, image: NDArray[np.uint8], budget: ImageBudget) -> Picture:
        """An RGB uint8 picture ``[height, width, 3]`` in tiles.

        Raises:
            InputError: a budget that is less than one tile.
        """
        most = budget.tiles(self._tokens_per_tile)
        cut = functools.partial(
            prepare, preparation=self._preparation, detail=budget.detail, most_tiles=most
        )
        if self._preparation.strategy != "grid":  # one tile is cut as fast as a picture is hashed
            return _picture(cut(image))
        name = _hash(image), image.shape, budget
        with self._lock:
            if name in self._remembered:
                self._remembered.move_to_end(name)
                # of a copy, as the caller may reuse the array before the tiles are needed
                return Picture(*self._remembered[name], functools.partial(cut, image.copy()))
        picture = _picture(cut(image))
        with self._lock:
            self._remembered[name] = picture.keys, picture.rows, picture.columns
            while len(self._remembered) > REMEMBERED:
                self._remembered.popitem(last=False)
        return picture


def pixels_by_key(pictures: Sequence[Picture]) -> Pixels:
    """Where the tiles of these pictures are found."""
    places = {
        key: (picture, index) for picture in pictures for index, key in enumerate(picture.keys)
    }

    def pixels(key: bytes) -> NDArray[np.uint8]:
        picture, index = places[key]
        tile: NDArray[np.uint8] = picture.pixels[index]
        return tile

    return pixels


def _picture(tiles: Tiles) -> Picture:
    return Picture(tuple(map(_hash, tiles.pixels)), tiles.rows, tiles.columns, lambda: tiles)


def _hash(pixels: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=16).digest()
