"""The rows of tiles that a vision graph has encoded, to use them with several decoders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.loading import load_vision
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.manifest import Manifest


class StoredVision:
    """A `VisionRuntime` that returns stored rows.

    Args:
        path: the vision graph, which runs on the CPU, one tile at a time, and is closed again.
        images: images whose tiles it encodes.

    Raises:
        LoadError: the graph cannot be loaded.
    """

    device = "cpu"
    on_cpu = True

    def __init__(self, manifest: Manifest, path: Path, images: Iterable[ProcessedImage]) -> None:
        self._rows: dict[tuple[tuple[int, ...], bytes], NDArray[np.float32]] = {}
        runtime = load_vision(manifest, path)
        try:
            for image in images:
                for pixels in image.pixels:
                    if _key(pixels) not in self._rows:
                        self._rows[_key(pixels)] = runtime.encode(pixels[None])[0]
        finally:
            runtime.close()

    def encode(
        self, tiles: NDArray[np.uint8], *, cancel: CancelSignal | None = None
    ) -> NDArray[np.float32]:
        """Return the rows of uint8 tiles ``[n, height, width, 3]``, float32 ``[n, rows, width]``."""
        return np.stack([self._rows[_key(tile)] for tile in tiles])

    def embeddings(self, image: ProcessedImage) -> NDArray[np.float32]:
        """Return the embeddings of an image as they stand in the prompt, float32 ``[tokens, width]``."""
        rows = [self._rows[_key(pixels)] for pixels in image.pixels]
        return np.concatenate(
            [plan.pack([rows[tile] for tile in plan.tiles]) for plan in image.plans]
        )

    def close(self) -> None:
        """Do nothing: the engine of the next decoder uses the rows again."""


def _key(pixels: NDArray[np.uint8]) -> tuple[tuple[int, ...], bytes]:
    """Return shape and pixels of a tile, since blank tiles of one area have the same bytes."""
    return pixels.shape, pixels.tobytes()
