"""Importance matrices are the mean squares that transformers computes from the same dialogues."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ExportError, InferenceError
from edgevlm.export import importance, quantize
from edgevlm.export.architectures import find_architecture
from edgevlm.export.calibration import CalibrationImages
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_tensors import gguf_names
from edgevlm.export.pipeline import build_manifest, write_unquantized, write_vision
from edgevlm.export.plan import Plan, make_plan
from edgevlm.export.reference import Reference
from edgevlm.export.stored_vision import StoredVision
from edgevlm.inputs.image_processor import ImageProcessor
from edgevlm.inputs.tiling import ImageBudget
from edgevlm.manifest import Manifest, Tasks, Usage
from edgevlm.runtimes.llama_cpp.activations import RecordingDecoder
from tests.support import checkpoints

CALIBRATION = CalibrationImages.open()
IMAGES = CALIBRATION.load()[:3]


def write_files(folder: Path) -> tuple[Plan, Manifest, Path, Path]:
    """The exact pair of a checkpoint."""
    plan = make_plan(Checkpoint.open(folder))
    decoders = write_unquantized(plan, folder, ["f16"], progress=False)
    graphs = write_vision(plan, folder, ["fp32"], CALIBRATION, progress=False)
    manifest = build_manifest(plan, "tiny", graphs, decoders)
    return plan, manifest, graphs["fp32"], decoders["f16"]


def transformers_mean_squares(
    plan: Plan, images: list[NDArray[np.uint8]], dialogues: list[importance.Dialogue]
) -> dict[str, NDArray[np.float32]]:
    """Mean squares of the inputs of all linear layers of the decoder, by GGUF names.

    In llama.cpp the feed-forward network of the last layer sees only positions with logits.
    """
    checkpoint = plan.checkpoint
    reference = Reference(checkpoint, plan.family, plan.processor, plan.prompt)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint.folder, dtype=torch.float32)
    names = gguf_names(checkpoint, plan.family, find_architecture(checkpoint.config))
    last = checkpoint.config.get_text_config().num_hidden_layers - 1
    inputs: dict[str, list[NDArray[np.float32]]] = defaultdict(list)
    first_output = 0

    def record(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        partial = name.startswith((f"blk.{last}.ffn_", "output."))

        def hook(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            rows = arguments[0][0].numpy()
            inputs[name].append(rows[first_output:] if partial else rows)

        return hook

    for name, module in model.named_modules():
        target = names.get(f"{name}.weight")
        if isinstance(module, torch.nn.Linear) and target is not None:
            module.register_forward_pre_hook(record(target))
    for image, dialogue in zip(images, dialogues, strict=True):
        prompt = reference.inputs(dialogue.question, [Image.fromarray(image)])
        first_output = prompt["input_ids"].shape[1] - 1
        ids = torch.cat(
            [prompt["input_ids"], torch.tensor([dialogue.answer[:-1]], dtype=torch.long)], dim=1
        )
        with torch.no_grad():
            model(**{**prompt, "input_ids": ids, "attention_mask": torch.ones_like(ids)})
    found: dict[str, NDArray[np.float32]] = {
        name: np.square(np.concatenate(rows)).mean(axis=0) for name, rows in inputs.items()
    }
    return found


def test_mean_squares_equal_those_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", splitting=False, num_hidden_layers=3)
    plan, manifest, vision, decoder = write_files(folder)
    processor = ImageProcessor(manifest.image, manifest.vision, manifest.decoder.positions)
    processed = [processor.process(image, ImageBudget("low")) for image in IMAGES]
    stored = StoredVision(manifest, vision, processed)
    dialogues = importance.answer_questions(manifest, stored, decoder, processed, progress=False)
    found = importance.measure_importance(manifest, vision, decoder, IMAGES, progress=False)
    expected = transformers_mean_squares(plan, IMAGES, dialogues)
    assert set(found) == set(expected)
    assert len(found) == 3 * 7 + 1
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=0.02, err_msg=name)


def test_errors_of_the_callback_are_raised_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception cannot pass through C: llama.cpp goes on, and the recorder raises it afterwards."""
    _, _, _, decoder = write_files(checkpoints.smolvlm(tmp_path / "checkpoint"))
    recorder = RecordingDecoder(decoder, context_length=16)

    def fail(*_: object) -> None:
        raise ValueError("broken on purpose")

    monkeypatch.setattr(recorder, "_record", fail)
    recorder.decode_tokens([5, 6], np.arange(2, dtype=np.int32), logits=True)
    assert np.isfinite(recorder.logits()).all()
    with pytest.raises(InferenceError, match="broken on purpose"):
        recorder.mean_squares()
    recorder.close()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An f16 decoder with rows of 256, which every type fits."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return write_files(checkpoints.smolvlm(folder, width=256, num_hidden_layers=1))[3]


def weights(path: Path, name: str) -> NDArray[np.float32]:
    tensor = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == name)
    return gguf.dequantize(tensor.data, tensor.tensor_type)


def test_heavy_channels_are_rounded_better(wide: Path, tmp_path: Path) -> None:
    name = "blk.0.ffn_up.weight"
    heavy = np.ones(256, np.float32)
    heavy[::8] = 1000.0
    errors = []
    for matrix in ({}, {name: heavy}):
        path = tmp_path / "q4_0.gguf"
        quantize.quantize(wide, path, "q4_0", importance=matrix)
        errors.append(((weights(path, name) - weights(wide, name)) ** 2)[:, ::8].mean())
    assert errors[1] < 0.6 * errors[0]


def test_types_of_single_matrices(wide: Path, tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    asked = {
        "blk.0.ffn_up.weight": gguf.GGMLQuantizationType.IQ4_XS,
        "output.weight": gguf.GGMLQuantizationType.F16,
    }
    quantize.quantize(wide, path, "q8_0", tensor_types=asked)
    found = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert {name: found[name] for name in asked} == asked
    assert found["blk.0.ffn_down.weight"] == gguf.GGMLQuantizationType.Q8_0


def test_types_that_need_a_matrix(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="importance matrix"):
        quantize.quantize(wide, tmp_path / "small.gguf", "iq2_xs")


def test_questions_are_those_of_the_model(tmp_path: Path) -> None:
    _, manifest, _, _ = write_files(checkpoints.smolvlm(tmp_path / "checkpoint"))
    unknown = dataclasses.replace(manifest, usage=Usage())
    assert importance.find_questions(unknown) == importance.QUESTIONS
    tasks = {
        "en": Tasks(describe="Describe it.", detect="Where is the {thing}?", count="How many?")
    }
    known = dataclasses.replace(manifest, usage=Usage(tasks=tasks))
    assert importance.find_questions(known) == ["Describe it.", "How many?"]
