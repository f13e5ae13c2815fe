"""Checkpoints whose vision tower has massive activations, as trained ones have: few tokens, few channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from edgevlm.export.products import find_products
from edgevlm.export.vision import INPUT_NAME

SHARE = 0.05
"""Share of the tokens on which the neuron fires."""
LARGEST = 400.0
"""Largest value of the neuron."""


def plant_outliers(
    checkpoint: Path, first: str, second: str, graph: Path, tiles: Sequence[NDArray[np.uint8]]
) -> None:
    """Let one neuron of an MLP fire strongly on few tokens and write into two channels.

    The neuron reads the first principal component of the tokens.

    Args:
        checkpoint: folder with one file of weights, which is changed.
        first: end of the name of the layer before the activation function, such as ``layers.0.mlp.fc1``; its
            number says which of the tower's layers it is.
        second: the same of the layer after it.
        graph: the float32 graph of the checkpoint.
        tiles: photographs, uint8 ``[1, height, width, 3]``.
    """
    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    (before,) = (
        name for name in tensors if name.endswith(f"{first}.weight") and "text" not in name
    )
    (after,) = (
        name for name in tensors if name.endswith(f"{second}.weight") and "text" not in name
    )
    number = next(int(part) for part in first.split(".") if part.isdecimal())
    tokens = inputs_of(graph, tuple(tensors[before].shape[::-1]), number, tiles)
    mean = tokens.mean(axis=0)
    direction = np.linalg.svd(tokens - mean, full_matrices=False)[2][0]
    along = (tokens - mean) @ direction
    if along.max() < -along.min():
        direction, along = -direction, -along
    threshold = np.quantile(along, 1 - SHARE)
    gain = LARGEST / (along.max() - threshold)
    tensors[before][0] = torch.from_numpy(direction * gain)
    bias = f"{before.removesuffix('weight')}bias"
    tensors[bias][0] = float(-gain * (threshold + mean @ direction))
    tensors[after][:, 0] = 0
    tensors[after][1, 0], tensors[after][5, 0] = -1.2, 0.6
    save_file(tensors, path, metadata={"format": "pt"})


def inputs_of(
    graph: Path, shape: tuple[int, ...], number: int, tiles: Sequence[NDArray[np.uint8]]
) -> NDArray[np.float32]:
    """Return what one of the products with a weight of this shape reads, ``[rows, K]``."""
    products = find_products(onnx_ir.load(graph).graph)
    name = [product.activation.name for product in products if product.shape == shape][number]
    model = onnx.load(graph)
    model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    runs = [session.run([name], {INPUT_NAME: tile})[0] for tile in tiles]
    return np.concatenate([values.reshape(-1, shape[0]) for values in runs])
