"""The vision graph with int8 weights and activations whose scales are fixed at export.

Runtimes that compute dynamic scales slowly or not at all fuse this form (QDQ): OpenVINO, TensorRT, QNN.

One scale holds for a whole activation. Where few of its values are far larger than the rest, as in the
middle layers of trained towers, a scale that spans them rounds most others to zero. The matrix products that
read such an activation stay in float32.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import NodeProto, helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from tqdm import tqdm

from edgevlm.export.vision import INPUT_NAME, quiet

_logger = logging.getLogger(__name__)

LEVELS = 255
"""Steps between the smallest and the largest value of an 8-bit activation."""


def convert_int8_static(
    source: Path, path: Path, tiles: Sequence[NDArray[np.uint8]], *, progress: bool = False
) -> None:
    """Quantize matrix products: int8 weights, a scale for each output channel; fixed scales before them.

    Args:
        source: the float32 graph.
        path: the file to write.
        tiles: batches for calibration, uint8 ``[n, height, width, 3]``.
        progress: a bar on stderr.
    """
    model = onnx.load(source)
    products = matrix_products(model)
    with tqdm(total=2 * len(tiles), desc="calibration", leave=False, disable=not progress) as bar:
        coarse = find_coarse_activations(model, products, _counted(tiles, bar))
        kept = [node for node in products if node.input[0] in coarse]
        if kept:
            _logger.warning(
                "int8-static: %d of %d matrix products stay in float32, since a few values of their input "
                "are far larger than the rest",
                len(kept),
                len(products),
            )
        with quiet():
            quantize_static(
                model,
                path,
                _TileReader(_counted(tiles, bar)),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=[node.name for node in products if node.input[0] not in coarse],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "OpTypesToExcludeOutputQuantization": ["MatMul", "Gemm"],
                    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
                },
            )


def matrix_products(model: onnx.ModelProto) -> list[NodeProto]:
    """Return the products of an activation and a weight, in the order of the graph."""
    weights = {initializer.name for initializer in model.graph.initializer}
    return [
        node
        for node in model.graph.node
        if node.op_type == "Gemm" or (node.op_type == "MatMul" and node.input[1] in weights)
    ]


def find_coarse_activations(
    model: onnx.ModelProto, products: Sequence[NodeProto], tiles: Iterable[NDArray[np.uint8]]
) -> set[str]:
    """Return the inputs of `products` whose 8-bit step would exceed the mean magnitude of their values."""
    names = list(dict.fromkeys(node.input[0] for node in products))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    outputs = []
    for number, name in enumerate(names):
        low, high, magnitude, mean = (f"{what}.{number}" for what in ("min", "max", "abs", "mean"))
        watched.graph.node.extend(
            [
                helper.make_node("ReduceMin", [name], [low], keepdims=0),
                helper.make_node("ReduceMax", [name], [high], keepdims=0),
                helper.make_node("Abs", [name], [magnitude]),
                helper.make_node("ReduceMean", [magnitude], [mean], keepdims=0),
            ]
        )
        outputs += [low, high, mean]
    watched.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in outputs
    )
    session = onnxruntime.InferenceSession(
        watched.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found = np.array([session.run(outputs, {INPUT_NAME: batch}) for batch in tiles])
    lows, highs, means = found.reshape(len(found), len(names), 3).transpose(2, 0, 1)
    steps = (np.maximum(highs.max(axis=0), 0) - np.minimum(lows.min(axis=0), 0)) / LEVELS
    coarse = steps > means.mean(axis=0)
    return {name for name, is_coarse in zip(names, coarse, strict=True) if is_coarse}


def _counted(tiles: Iterable[NDArray[np.uint8]], bar: tqdm) -> Iterable[NDArray[np.uint8]]:
    """Yield the tiles and move the bar."""
    for batch in tiles:
        yield batch
        bar.update()


class _TileReader(CalibrationDataReader):
    """Hand tiles to ONNX Runtime's calibrator."""

    def __init__(self, tiles: Iterable[NDArray[np.uint8]]) -> None:
        self._tiles = iter(tiles)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """Return the next batch, or None after the last."""
        tiles = next(self._tiles, None)
        return None if tiles is None else {INPUT_NAME: tiles}
