"""Which cells of cross-attention hold the images of each sequence, and what an entry sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.onnx.cell_table import BLANK, HELD


@dataclass(frozen=True, eq=False)
class HeldImage:
    """An image of a sequence."""

    entry: int
    """The entry of the sequence in whose place the image stands."""
    cells: NDArray[np.int64]
    """The cells of its features, ``[n]``."""
    seen: int
    """As of `edgevlm.runtimes.protocols.CrossStates`."""


class CrossTable:
    """The images of each sequence in their order. Sequences may share them.

    The cell `BLANK` is that of no image: an entry that sees it alone gets nothing.
    """

    def __init__(self) -> None:
        self._sequences: dict[int, tuple[HeldImage, ...]] = {HELD: ()}

    def images(self, sequence: int) -> tuple[HeldImage, ...]:
        """Return the images of a sequence."""
        return self._sequences[sequence]

    def set(self, sequence: int, images: tuple[HeldImage, ...]) -> None:
        """Let a sequence have these images."""
        self._sequences[sequence] = images

    def drop(self, sequence: int) -> None:
        """Forget a sequence."""
        del self._sequences[sequence]

    @property
    def end(self) -> int:
        """One more than the last cell that is taken."""
        cells = [image.cells for images in self._sequences.values() for image in images]
        return max((int(one.max()) + 1 for one in cells), default=BLANK + 1)

    def free(self, count: int) -> NDArray[np.int64]:
        """Return the first cells int64 ``[count]`` that no image has, in ascending order."""
        taken = np.zeros(self.end + count, np.bool_)
        taken[BLANK] = True
        for images in self._sequences.values():
            for image in images:
                taken[image.cells] = True
        return np.flatnonzero(~taken)[:count]

    def mask(
        self, sequences: Sequence[int], entries: Sequence[int], total: int
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return what entries see, as of `edgevlm.runtimes.protocols.DecoderRuntime.set_images`.

        Args:
            sequences: ``[n]``, the sequence of each entry.
            entries: ``[n]``, the number of each entry in its sequence.
            total: number of cells.

        Returns:
            Bool ``[n, total]``, the cells that each entry sees, and bool ``[n]``, whether it follows an
            image.
        """
        seen = np.zeros((len(entries), total), np.bool_)
        follows = np.zeros(len(entries), np.bool_)
        for row, (sequence, entry) in enumerate(zip(sequences, entries, strict=True)):
            images = self._sequences[sequence]
            latest = latest_run(images, entry)
            for image in latest:
                seen[row, image.cells[: image.seen]] = True
            follows[row] = bool(latest)
            if not latest:
                for image in images:
                    seen[row, image.cells] = True
                seen[row, BLANK] = not images
        return seen, follows


def latest_run(images: Sequence[HeldImage], entry: int) -> list[HeldImage]:
    """Return the images without an entry between them that end last at an entry or before it."""
    run: list[HeldImage] = []
    for image in images:
        if image.entry > entry:
            break
        if run and image.entry > run[-1].entry + 1:
            run.clear()
        run.append(image)
    return run
