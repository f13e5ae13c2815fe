"""Weights in 8 or 4 bits for ONNX Runtime's ``MatMulNBits``: blocks of a row share a scale.

The layout and the rounding are those of `onnxruntime.quantization.matmul_nbits_quantizer`, symmetric. The
rounding is also that of llama.cpp's q4_0; its q8_0 has 255 steps where this has 256.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_LENGTH = 32
"""Values that share a scale."""


def quantize_rows(
    rows: NDArray[np.float32], bits: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantize rows ``[n, length]``, each in blocks; the last one is filled up with zeros.

    The value of largest magnitude in a block becomes 0, since there is one step more below zero than above.

    Args:
        rows: the weight of a linear layer: one row for each output.
        bits: 8 or 4.

    Returns:
        Packed values ``[n, blocks, 4 * bits]``, where the first of two values of 4 bits has the lower bits,
        and scales ``[n, blocks]``.
    """
    count, length = rows.shape
    blocks = -(-length // BLOCK_LENGTH)
    if length % BLOCK_LENGTH:
        rows = np.pad(rows, ((0, 0), (0, blocks * BLOCK_LENGTH - length)))
    split = rows.reshape(count, blocks, BLOCK_LENGTH)
    zero = 1 << (bits - 1)
    low, high = split.min(axis=-1), split.max(axis=-1)
    scales = np.where(np.abs(high) > np.abs(low), high, low) / np.float32(-zero)
    inverse = np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)
    values = np.floor(split * inverse[..., None] + np.float32(zero + 0.5))
    levels = np.clip(values, 0, 2 * zero - 1, out=values).astype(np.uint8)
    if bits == 4:
        levels = levels[..., 0::2] | levels[..., 1::2] << 4
    return levels, scales
