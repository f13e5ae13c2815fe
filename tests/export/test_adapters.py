"""Adapters that are not merged are refused, with a command that merges them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError, ExportError
from edgevlm.export import adapter
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.plan import make_plan
from tests.support import checkpoints
from tests.support.damage import change_json, change_weights

IDS = torch.tensor([[7, 300, 41, 42, 260, 9]])


def logits(model: torch.nn.Module) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found.numpy()


class Trained:
    """A base model and an adapter that changes its answers, each in a folder."""

    def __init__(self, folder: Path) -> None:
        self.base = checkpoints.smolvlm(folder / "the base")
        self.adapter = folder / "it's an adapter"
        model = AutoModelForImageTextToText.from_pretrained(self.base)
        settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        torch.manual_seed(0)
        trained = get_peft_model(model, settings)
        trained.save_pretrained(str(self.adapter))
        self.logits = logits(trained)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


def test_the_command_in_the_error_merges(trained: Trained, tmp_path: Path) -> None:
    """Typed as it stands, it makes the weights that peft computes with, and those can be exported."""
    with pytest.raises(ExportError, match="holds an adapter") as error:
        Checkpoint.open(trained.adapter)
    message = str(error.value)
    assert (
        "\n" not in message and str(trained.base) in message and "edgevlm export MERGED" in message
    )
    command = adapter.merge_command(str(trained.base), str(trained.adapter), "MERGED")
    assert command in message
    words = shlex.split(command)
    assert words[:5] == ["pip", "install", "peft", "&&", "python"]
    subprocess.run([sys.executable, *words[5:]], cwd=tmp_path, check=True, capture_output=True)
    merged = tmp_path / "MERGED"
    for name in ("*tokenizer*", "*processor*", "chat_template.*"):
        for path in trained.base.glob(name):
            shutil.copy(path, merged)
    make_plan(Checkpoint.open(merged))
    found = logits(AutoModelForImageTextToText.from_pretrained(merged))
    assert np.allclose(found, trained.logits, atol=1e-4)
    plain = logits(AutoModelForImageTextToText.from_pretrained(trained.base))
    assert not np.allclose(found, plain, atol=1e-1)


def test_an_adapter_beside_the_weights_is_refused(trained: Trained, tmp_path: Path) -> None:
    """transformers applies it if peft is there: a bundle without it would answer otherwise."""
    folder = Path(shutil.copytree(trained.base, tmp_path / "checkpoint"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained.adapter / name, folder)
    applied = logits(AutoModelForImageTextToText.from_pretrained(folder))
    assert np.allclose(applied, trained.logits, atol=1e-4)
    with pytest.raises(ExportError, match=r"beside the weights of .*the base; merge") as error:
        Checkpoint.open(folder)
    assert "merged already, remove adapter_config.json and adapter_model.safetensors" in str(
        error.value
    )
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ExportError, match=r"holds an adapter \(adapter_config\.json\)"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"base_model_name_or_path": 7}', ""])
def test_an_adapter_of_nothing_is_refused_too(tmp_path: Path, content: str) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ExportError, match="of a base model that it does not name; merge it"):
        Checkpoint.open(tmp_path)


def test_pickled_adapters_are_found_too(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained.base, tmp_path / "checkpoint"))
    (folder / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ExportError, match=r"holds an adapter \(adapter_model\.bin\)"):
        Checkpoint.open(folder)


def test_adapter_weights_among_the_others_are_refused(trained: Trained, tmp_path: Path) -> None:
    """As they are when a model is saved before merge_and_unload(), in the three forms of that mistake."""
    model: Any = PeftModel.from_pretrained(
        AutoModelForImageTextToText.from_pretrained(trained.base), str(trained.adapter)
    )
    forms = {
        "whole": model.state_dict(),
        "inner": model.base_model.model.state_dict(),
        "prefix": {
            f"base_model.model.{name}": value
            for name, value in AutoModelForImageTextToText.from_pretrained(trained.base)
            .state_dict()
            .items()
        },
    }
    for form, state in forms.items():
        folder = Path(shutil.copytree(trained.base, tmp_path / form))
        tensors = {name: value.clone().contiguous() for name, value in state.items()}
        change_weights(folder, lambda _, tensors=tensors: tensors)  # type: ignore[misc]  # a default
        with pytest.raises(ExportError, match=r"tensors of an adapter that is not merged, such as"):
            Checkpoint.open(folder)


def test_an_adapter_is_no_model(trained: Trained) -> None:
    with pytest.raises(BundleError, match="is an adapter, not a bundle; edgevlm export ") as error:
        Bundle.open(trained.adapter)
    command = re.search(r"edgevlm export (.*) says how to merge", str(error.value))
    assert command and shlex.split(command[1])[0] == str(trained.adapter)


def test_what_is_no_bundle_says_how_it_becomes_one(trained: Trained, tmp_path: Path) -> None:
    """The command is quoted as a shell reads it."""

    def offered(model: Path) -> list[str]:
        with pytest.raises(BundleError) as error:
            Bundle.open(model)
        assert "\n" not in str(error.value)
        return shlex.split(str(error.value).rpartition("edgevlm export ")[2])

    base = trained.base
    assert offered(base) == [str(base), f"{base}-bundle"]
    file = tmp_path / "my model.Q4_K_M.gguf"
    file.write_bytes(b"GGUF")
    out = str(tmp_path / "my model.Q4_K_M-bundle")
    assert offered(file) == ["CHECKPOINT", out, "--decoder-gguf", str(file)]
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"")
    assert offered(graph) == ["CHECKPOINT", str(tmp_path / "model-bundle")]
    weights = base / "model.safetensors"
    assert offered(weights) == ["CHECKPOINT", str(base / "model-bundle")]
    (tmp_path / "empty").mkdir()
    assert offered(tmp_path / "empty") == ["CHECKPOINT", "OUT"]
    with pytest.raises(ExportError, match="is a bundle already; use it with --model"):
        change_json(tmp_path / "empty" / "manifest.json", name="x")
        Checkpoint.open(tmp_path / "empty")
