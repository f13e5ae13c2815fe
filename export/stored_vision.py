"""The rows of tiles that a vision graph has encoded, to use them with several decoders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.loading import load_vision
from edgevlm.inputs.image_processor import ProcessedImage
from edgevlm.manifest import Manifest

_Key: TypeAlias = "tuple[tuple[int, ...], bytes, str]"
"""Shape and pixels of a tile, since blank tiles of one area have the same bytes, and the question."""


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
        self._rows: dict[_Key, NDArray[np.float32]] = {}
        self._runtime = load_vision(manifest, path)
        for image in images:
            for pixels in image.pixels:
                self._encode(pixels, image.question)
        # Questions about these images come later, if the graph reads them.
        if manifest.vision.text_input is None:
            self._runtime.close()

    def encode(
        self,
        tiles: NDArray[np.uint8],
        *,
        question: str = "",
        cancel: CancelSignal | None = None,
    ) -> NDArray[np.float32]:
        """Return the rows of uint8 tiles ``[n, height, width, 3]``, float32 ``[n, rows, width]``."""
        return np.stack([self._encode(tile, question) for tile in tiles])

    def _encode(self, pixels: NDArray[np.uint8], question: str) -> NDArray[np.float32]:
        key = pixels.shape, pixels.tobytes(), question
        if key not in self._rows:
            self._rows[key] = self._runtime.encode(pixels[None], question=question)[0]
        return self._rows[key]

    def embeddings(self, image: ProcessedImage) -> NDArray[np.float32]:
        """Return the embeddings of an image as they stand in the prompt, float32 ``[tokens, width]``."""
        rows = [self._encode(pixels, image.question) for pixels in image.pixels]
        return np.concatenate(
            [plan.pack([rows[tile] for tile in plan.tiles]) for plan in image.plans]
        )

    def close(self) -> None:
        """Do nothing: the engine of the next decoder uses the rows again."""
