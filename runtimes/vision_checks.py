"""What a vision graph must look like, checked alike whichever runtime loads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError, LoadError

Port = tuple[str, list[int | None]]
"""Element type as NumPy names it, and shape; None is a free side."""


def check_file(path: Path) -> None:
    """Raises:
    LoadError: there is no file.
    """
    if not path.is_file():
        raise LoadError(f"{path}: no such file; the bundle is incomplete, get it again")


def check_graph(
    path: Path,
    inputs: Mapping[str, Port],
    outputs: Mapping[str, Port],
    input_name: str,
    output_name: str,
) -> tuple[int, int, int]:
    """Height, width and channels of a tile, of a graph that has the promised input and output.

    Raises:
        LoadError: uint8 ``[n, height, width, 3]`` to float32 ``[n, tokens, width]`` is not what it
            computes.
    """
    if list(inputs) != [input_name] or output_name not in outputs:
        raise LoadError(
            f"{path} must have the input {input_name!r} and the output {output_name!r}, has "
            f"{list(inputs)} and {list(outputs)}; export it again"
        )
    kind, shape = inputs[input_name]
    sides = [side for side in shape[1:] if side is not None]
    if kind != "uint8" or len(shape) != 4 or shape[0] is not None or len(sides) != 3:
        raise LoadError(
            f"{path}: input {input_name!r} must be uint8 [n, height, width, 3] with only n free, is "
            f"{kind} {_spelled(shape)}; export it again"
        )
    kind, shape = outputs[output_name]
    if kind != "float32" or len(shape) != 3:
        raise LoadError(
            f"{path}: output {output_name!r} must be float32 [n, tokens, width], is {kind} "
            f"{_spelled(shape)}; export it again"
        )
    height, width, channels = sides
    return height, width, channels


def check_tiles(tiles: NDArray[np.uint8], shape: tuple[int, int, int]) -> None:
    """Tiles must be uint8 ``[n, *shape]`` with n >= 1.

    Raises:
        InputError: they are not.
    """
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8:
        kind = tiles.dtype if isinstance(tiles, np.ndarray) else type(tiles).__name__
        raise InputError(f"tiles must be a uint8 array, are {kind}")
    if tiles.ndim != 4 or tiles.shape[1:] != shape or not len(tiles):
        raise InputError(
            f"tiles must have shape [n, {', '.join(map(str, shape))}] with n >= 1, have "
            f"{list(tiles.shape)}"
        )


def _spelled(shape: list[int | None]) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]"
