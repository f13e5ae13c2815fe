"""A copy of what the KV cache of the ONNX decoder holds, as bytes.

It has keys and values of the entries, their numbers (`CachePositions.numbers`), and, for a decoder with
cross-attention, keys and values of each image, then entry, cells and `CrossStates.seen` of each, and the
number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.cache_positions import belong_together
from edgevlm.runtimes.onnx.cross_table import HeldImage
from edgevlm.runtimes.onnx.decoder_graph import DecoderGraph
from edgevlm.runtimes.protocols import Place


@dataclass(frozen=True, eq=False)
class CopiedImage:
    """An image of a copy."""

    entry: int
    """As of `HeldImage`."""
    seen: int
    """As of `HeldImage`."""
    data: NDArray[np.uint8]
    """Its cells, as of `CellMemory.read`."""


@dataclass(frozen=True, eq=False)
class CacheParts:
    """The parts of a copy."""

    numbers: NDArray[np.int32]
    """As of `CachePositions.numbers`."""
    entries: NDArray[np.uint8]
    """The cells of the entries, as of `CellMemory.read`."""
    images: list[CopiedImage]
    """The images in their order."""


def copy_cache(
    graph: DecoderGraph,
    cells: NDArray[np.int64],
    numbers: NDArray[np.int32],
    images: Sequence[HeldImage],
) -> NDArray[np.uint8]:
    """Return a copy, uint8 ``[bytes]``.

    Args:
        graph: the graph with its memory.
        cells: the cells of the entries.
        numbers: as of `CachePositions.numbers`.
        images: the images of the sequence.
    """
    parts = [graph.entries.read(cells), numbers.view(np.uint8)]
    if graph.images is not None:
        described = [(image.entry, len(image.cells), image.seen) for image in images]
        parts += [graph.images.read(image.cells) for image in images]
        parts.append(np.array([*sum(described, ()), len(images)], np.int32).view(np.uint8))
    return np.concatenate(parts)


def split_copy(copy: NDArray[np.uint8], graph: DecoderGraph, place: Place) -> CacheParts | None:
    """Return the parts of a copy; None: it is no copy of this decoder that was made at `place`."""
    size = graph.entries.cell_bytes * place.entries
    end = size + 4 * (place.entries + 1)
    images = _split_images(copy[end:], graph)
    if len(copy) < end or images is None:
        return None
    numbers = copy[size:end].copy().view(np.int32)
    last = int(numbers[-2]) if place.entries else -1
    if not belong_together(numbers, place, last):
        return None
    return CacheParts(numbers, copy[:size], images)


def _split_images(data: NDArray[np.uint8], graph: DecoderGraph) -> list[CopiedImage] | None:
    """Return the images of the end of a copy; None: they are not of this decoder."""
    if graph.images is None:
        return None if len(data) else []
    count = int(data[-4:].copy().view(np.int32)[0]) if len(data) >= 4 else -1
    end = len(data) - 4 - 12 * count
    if count < 0 or end < 0:
        return None
    described = data[end:-4].copy().view(np.int32).reshape(count, 3)
    sizes = [int(cells) * graph.images.cell_bytes for _, cells, _ in described]
    if sum(sizes) != end or any(size <= 0 for size in sizes):
        return None
    ends = np.cumsum([0, *sizes])
    return [
        CopiedImage(int(entry), int(seen), data[first:last])
        for (entry, _, seen), first, last in zip(described, ends[:-1], ends[1:], strict=True)
    ]
