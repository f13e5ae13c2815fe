"""A vision part that reads the question: its quantized graph, and the tokenizer of the question."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.pipeline import write_question_tokenizer
from edgevlm.export.plan import make_plan
from edgevlm.export.products import measure_activations
from edgevlm.export.vision import convert_fp16, export_fp32
from edgevlm.export.vision_quantization import convert_int8
from tests.families.case import relative_error
from tests.families.instructblip import instructblip


def test_quantized_graphs(tmp_path: Path) -> None:
    """They depend on the question as the graph in float32 does."""
    plan = make_plan(Checkpoint.open(instructblip(tmp_path / "checkpoint")))
    exact, half, rounded = (tmp_path / f"{name}.onnx" for name in ("fp32", "fp16", "int8"))
    export_fp32(plan.checkpoint, plan.family, plan.image, exact)
    tiles = np.random.default_rng(0).integers(0, 256, (4, 1, 56, 56, 3), dtype=np.uint8)
    convert_fp16(exact, half)
    convert_int8(exact, rounded, measure_activations(exact, tiles, plan.example_question()))
    entry = write_question_tokenizer(plan, tmp_path)
    assert entry is not None
    assert entry.max_tokens == 96
    tokenizer = Tokenizer.from_file(str(tmp_path / entry.tokenizer.name))

    def run(path: Path, question: str) -> NDArray[np.float32]:
        ids = np.array([tokenizer.encode(question).ids], np.int64)
        inputs = {"tiles": tiles[0], entry.input_name: ids}
        found: NDArray[np.float32] = onnxruntime.InferenceSession(path).run(None, inputs)[0]
        return found

    questions = ("", "Is it red?", "a " * 94)
    expected = [run(exact, question) for question in questions]
    assert relative_error(expected[0], expected[1]) > 0.1
    for question, rows in zip(questions, expected, strict=True):
        assert relative_error(run(half, question), rows) < 1e-2
        assert relative_error(run(rounded, question), rows) < 0.1


def test_the_tokenizer_must_be_there(tmp_path: Path) -> None:
    folder = instructblip(tmp_path / "checkpoint")
    shutil.rmtree(folder / "qformer_tokenizer")
    with pytest.raises(ExportError, match=r"qformer_tokenizer has no tokenizer\.json"):
        make_plan(Checkpoint.open(folder))
