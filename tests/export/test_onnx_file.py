"""Graphs written weight by weight are the graphs that onnx writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgevlm.export import onnx_file
from edgevlm.export.half_weights import halve_weights
from edgevlm.export.onnx_file import open_model, weights_path, write_model

FLOAT = np.dtype(np.float32)


def model(columns: int, rounded: np.dtype[Any] = FLOAT) -> onnx.ModelProto:
    """``x @ weight + offset``, with weights of two types, and a scalar.

    Args:
        rounded: the weight has values of this type, stored in float32.
    """
    values = np.random.default_rng(0).normal(size=(3, columns)).astype(rounded)
    weights = {
        "weight": values.astype(np.float32),
        "offset": np.float32(2.5),
        "shape": np.array([-1, columns], np.int64),
    }
    return helper.make_model(
        helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "weight"], ["product"]),
                helper.make_node("Add", ["product", "offset"], ["sum"]),
                helper.make_node("Reshape", ["sum", "shape"], ["y"]),
            ],
            "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", columns])],
            [numpy_helper.from_array(np.asarray(values), name) for name, values in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        producer_name="test",
    )


@pytest.mark.parametrize("columns", [1, 9, 10, 11, 1365, 1366, 200_000])  # lengths of 1 to 4 bytes
def test_the_file_is_the_model(tmp_path: Path, columns: int) -> None:
    written = model(columns)
    write_model(onnx_ir.from_proto(written), tmp_path / "graph.onnx")
    found = onnx.load(tmp_path / "graph.onnx")
    onnx.checker.check_model(found, full_check=True)
    assert found == written
    assert (tmp_path / "graph.onnx").stat().st_size == found.ByteSize()


@pytest.mark.parametrize("large", [100, 2**20])
def test_a_model_that_is_opened_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: int
) -> None:
    monkeypatch.setattr(onnx_file, "LARGE_WEIGHT", large)
    path, copy, beside = (tmp_path / f"{name}.onnx" for name in ("graph", "copy", "beside"))
    write_model(onnx_ir.from_proto(model(200)), path)
    opened = open_model(path)
    weight = opened.graph.initializers["weight"].const_value
    assert isinstance(weight, onnx_ir.ExternalTensor) == (large < 2**20)
    onnx_ir.save(opened, beside)
    write_model(opened, copy)
    assert copy.read_bytes() == path.read_bytes()
    # A model without weights takes them from the first file.
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    found, expected = (
        onnxruntime.InferenceSession(file).run(None, {"x": x})[0] for file in (beside, path)
    )
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("half", [False, True])
def test_weights_beyond_the_limit_are_in_a_second_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, half: bool
) -> None:
    def made() -> onnx_ir.Model:
        graph = onnx_ir.from_proto(model(3000, onnx_ir.DataType.BFLOAT16.numpy()))
        if half:
            halve_weights(graph)
            assert graph.graph.initializers["weight.stored"].dtype == onnx_ir.DataType.BFLOAT16
        return graph

    whole, path, copy = (tmp_path / f"{name}.onnx" for name in ("whole", "graph", "copy"))
    write_model(made(), whole)
    monkeypatch.setattr(onnx_file, "PROTOBUF_LIMIT", 1000)
    monkeypatch.setattr(onnx_file, "LARGE_WEIGHT", 100)
    write_model(made(), path)
    assert path.stat().st_size < 2000 < weights_path(path).stat().st_size
    opened = open_model(path)
    monkeypatch.undo()
    write_model(opened, copy)
    assert not weights_path(copy).exists()
    x = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    found = [
        onnxruntime.InferenceSession(file).run(None, {"x": x})[0] for file in (path, copy, whole)
    ]
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[1], found[2])
