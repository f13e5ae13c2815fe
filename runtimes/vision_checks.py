"""Checks of a vision graph and of its tiles, the same for every runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import InputError, LoadError

TileShape = tuple[int | None, int | None, int | None]
"""Height, width and channels of a tile; None stands for any, for channels 3 or 6."""

TensorSpec = tuple[str, list[int | None]]
"""NumPy's name of the element type, and the shape; None stands for a dynamic dimension."""


def check_file(path: Path) -> None:
    """Check that a file exists.

    Raises:
        LoadError: the file does not exist.
    """
    if not path.is_file():
        raise LoadError(f"{path}: no such file; the bundle is incomplete, get it again")


def check_graph(
    path: Path,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    input_name: str,
    output_name: str,
    question_name: str | None = None,
) -> TileShape:
    """Check a graph's input and output, and return height, width and channels of a tile.

    Args:
        path: the graph's file, for messages.
        inputs: all inputs of the graph, by name; n may be dynamic or 1.
        outputs: all outputs of the graph, by name.
        input_name: name of the input for tiles, which must be uint8 ``[n, height, width, 3]``.
        output_name: name of the output that must be float32 ``[n, tokens, width]``.
        question_name: name of the input for the question; None: there is none.

    Raises:
        LoadError: the graph has another input or output.
    """
    wanted = [input_name] if question_name is None else [input_name, question_name]
    if list(inputs) != wanted or output_name not in outputs:
        raise LoadError(
            f"{path} must have the input {' and '.join(map(repr, wanted))} and the output {output_name!r}, "
            f"has {list(inputs)} and {list(outputs)}; export it again"
        )
    kind, shape = inputs[input_name]
    dynamic = [side is None for side in shape]
    if (
        kind != "uint8"
        or dynamic[1:-1] not in ([False, False], [True, True])
        or shape[0] not in (None, 1)
    ):
        raise LoadError(
            f"{path}: input {input_name!r} must be uint8 [n, height, width, channels], n dynamic or 1, "
            f"height and width both dynamic or both fixed, is {kind} {_format_shape(shape)}; export it again"
        )
    height, width, channels = shape[1:]
    kind, shape = outputs[output_name]
    if kind != "float32" or len(shape) != 3:
        raise LoadError(
            f"{path}: output {output_name!r} must be float32 [n, tokens, width], is {kind} "
            f"{_format_shape(shape)}; export it again"
        )
    return height, width, channels


def check_fixed_shapes(path: Path, shape: TileShape, device: str) -> None:
    """Check that all tiles of a graph have one size, for devices that need known shapes.

    Args:
        path: the graph's file, for the message.
        shape: what `check_graph` returned.
        device: the device that was asked for, for the message.

    Raises:
        LoadError: the graph is for tiles of any size.
    """
    if None in shape:
        raise LoadError(
            f"device {device} needs a vision graph of fixed shapes, and {path} is for images of any size; "
            f"export the checkpoint again with --image-size, or choose another device"
        )


def check_tiles(tiles: NDArray[np.uint8], shape: TileShape) -> None:
    """Check that tiles are uint8 ``[n, *shape]`` with n >= 1, and no side is 0.

    Raises:
        InputError: the tiles have another dtype or shape.
    """
    if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8:
        kind = tiles.dtype if isinstance(tiles, np.ndarray) else type(tiles).__name__
        raise InputError(f"tiles must be a uint8 array, are {kind}")
    sides = zip(tiles.shape[1:], shape, strict=False)
    fits = all(wanted in (None, side) for side, wanted in sides)
    fits = fits and (shape[2] is not None or tiles.shape[-1] in (3, 6))
    if tiles.ndim != 4 or not tiles.size or not fits:
        raise InputError(
            f"tiles must have shape {_format_shape([None, *shape])} with n >= 1, have {list(tiles.shape)}"
        )


def _format_shape(shape: list[int | None]) -> str:
    return f"[{', '.join('?' if side is None else str(side) for side in shape)}]"
