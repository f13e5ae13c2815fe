"""The question that a vision graph reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from edgevlm.errors import InputError, LoadError
from edgevlm.runtimes.devices import VisionBackend
from edgevlm.runtimes.onnx.vision import OnnxVision
from edgevlm.runtimes.questions import QuestionInput
from tests.families.tokenizers import bert_tokenizer


@pytest.fixture
def question(tmp_path: Path) -> QuestionInput:
    path = tmp_path / "tokenizer.json"
    bert_tokenizer().save(str(path))
    return QuestionInput("question", path, 12)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Returns for each tile the sum of the tokens and their number."""
    inputs = [
        helper.make_tensor_value_info("tiles", TensorProto.UINT8, ["n", 2, 2, 3]),
        helper.make_tensor_value_info("question", TensorProto.INT64, [1, "tokens"]),
    ]
    output = helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["n", 1, 2])
    nodes = [
        helper.make_node("ReduceSum", ["question", "axis"], ["sum"], keepdims=1),
        helper.make_node("Size", ["question"], ["size"]),
        helper.make_node("Reshape", ["size", "square"], ["count"]),
        helper.make_node("Concat", ["sum", "count"], ["both"], axis=1),
        helper.make_node("Cast", ["both"], ["row"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["tiles"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "sides"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["means"]),
        helper.make_node("Add", ["means", "row"], ["embeddings"]),
    ]
    constants = {"axis": [1], "square": [1, 1], "sides": [1, 2, 3], "column": [-1, 1, 1]}
    weights = [
        helper.make_tensor(name, TensorProto.INT64, [len(values)], values)
        for name, values in constants.items()
    ]
    made = helper.make_graph(nodes, "graph", inputs, [output], weights)
    opset = [helper.make_opsetid("", 20)]
    path = tmp_path / "graph.onnx"
    save(helper.make_model(made, opset_imports=opset, ir_version=10), path)
    return path


def load(graph: Path, question: QuestionInput | None) -> OnnxVision:
    return OnnxVision(
        graph,
        input_name="tiles",
        output_name="embeddings",
        device="cpu",
        threads=1,
        question=question,
    )


def test_the_graph_gets_the_tokens(graph: Path, question: QuestionInput) -> None:
    """Those around each text are added; what the user writes is text, whatever it spells."""
    vision = load(graph, question)
    tiles = np.zeros((2, 2, 2, 3), np.uint8)
    tiles[1] = 7
    tokenizer = bert_tokenizer()
    plain = tokenizer.encode("Is it red?").ids
    found = vision.encode(tiles, question="Is it red?")
    assert found[:, 0].tolist() == [[sum(plain) + mean, len(plain) + mean] for mean in (0, 7)]
    around = tokenizer.encode("").ids
    assert vision.encode(tiles[:1])[0, 0].tolist() == [sum(around), 2]
    # "[SEP]" as text is more than one token
    assert vision.encode(tiles[:1], question="[SEP]")[0, 0, 1] > 3
    with pytest.raises(InputError, match=r"has 27 tokens for the vision graph, which takes 12"):
        vision.encode(tiles, question=". " * 25)


def test_graphs_of_another_kind(graph: Path, question: QuestionInput) -> None:
    with pytest.raises(LoadError, match=r"must have the input 'tiles' and the output"):
        load(graph, None)
    question.tokenizer.write_text("{")
    with pytest.raises(LoadError, match="no tokenizer file that can be read"):
        load(graph, question)


def test_openvino_takes_none(graph: Path, question: QuestionInput) -> None:
    """Where it is chosen by itself, ONNX Runtime takes its place."""
    names = {"input_name": "tiles", "output_name": "embeddings"}
    backend = VisionBackend("openvino", None, ("fp32",))
    with pytest.raises(LoadError, match=r"reads the question, .* choose device='cpu'"):
        backend.load(graph, **names, threads=1, question=question)
    automatic = VisionBackend("openvino", None, ("fp32",), allow_fallback=True)
    found = automatic.load(graph, **names, threads=1, question=question)
    assert found.device == "CPUExecutionProvider"
