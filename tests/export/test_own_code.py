"""No code that a checkpoint brings is ever run, whatever the user types, and no pickle is opened."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.errors import ExportError
from edgevlm.evaluation.references import open_reference
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.plan import make_plan
from edgevlm.export.reference import Reference
from tests.support import checkpoints
from tests.support.damage import change_json

CODE = """\
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import PretrainedConfig as Own
"""
CLASSES = {
    "config.json": ("AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoTokenizer"),
    "tokenizer_config.json": ("AutoTokenizer",),
    "processor_config.json": ("AutoProcessor", "AutoImageProcessor"),
    "preprocessor_config.json": ("AutoImageProcessor", "AutoProcessor"),
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.smolvlm(tmp_path_factory.mktemp("pristine") / "checkpoint")


def with_code(pristine: Path, folder: Path, *files: str) -> tuple[Path, Path]:
    """A checkpoint whose settings name a module of its own; and the file that the module writes."""
    shutil.copytree(pristine, folder)
    mark = folder.parent / "ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    for name in files:
        names: dict[str, object] = dict.fromkeys(CLASSES[name], "own.Own")
        if "AutoTokenizer" in names:
            names["AutoTokenizer"] = ["own.Own", None]
        change_json(folder / name, auto_map=names)
    return folder, mark


def everything(folder: Path) -> None:
    """All that an export does with transformers."""
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    Reference(checkpoint, plan.family, plan.processor, plan.prompt)


@pytest.mark.parametrize("file", CLASSES)
def test_a_known_model_is_exported_with_transformers_classes(
    pristine: Path,
    tmp_path: Path,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder, mark = with_code(pristine, tmp_path / "checkpoint", file)
    everything(folder)
    assert not mark.exists()
    assert f"code of its own (auto_map in {file}), which edgevlm never runs" in caplog.text


@pytest.mark.parametrize("model_type", ["own_model", None])
def test_a_model_that_needs_its_own_code_is_refused(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_type: str | None
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder, mark = with_code(pristine, tmp_path / "checkpoint", *CLASSES)
    change_json(folder / "config.json", model_type=model_type)
    with pytest.raises(ExportError, match=r"needs code of its own \(auto_map in config\.json"):
        everything(folder)
    assert not mark.exists()


@pytest.mark.parametrize("program", ["edgevlm", "optimum-cli"])
def test_yes_is_not_asked_for(pristine: Path, tmp_path: Path, program: str) -> None:
    folder, mark = with_code(pristine, tmp_path / "checkpoint", *CLASSES)
    change_json(folder / "config.json", model_type="own_model")
    scripts = Path(sysconfig.get_path("scripts"))
    start: dict[str, list[str | Path]] = {
        "edgevlm": [sys.executable, "-m", "edgevlm", "export"],
        "optimum-cli": [scripts / "optimum-cli", "export", "edgevlm"],
    }
    done = subprocess.run(
        [*start[program], folder, tmp_path / "out"],
        input="y\n" * 20,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "never runs a checkpoint's code" in done.stderr
    assert "[y/N]" not in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint"} and not mark.exists()


def test_measuring_a_checkpoint_runs_none_either(
    pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``edgevlm eval --reference``"""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))
    folder, mark = with_code(pristine, tmp_path / "checkpoint", *CLASSES)
    change_json(folder / "config.json", model_type="own_model")
    with pytest.raises(ExportError, match="never runs a checkpoint's code"):
        open_reference(str(folder), vision=None, decoder=None)
    assert not mark.exists()


def test_no_compiled_kernel_is_fetched(pristine: Path, tmp_path: Path) -> None:
    """transformers takes the name of a hub repository with compiled code for an implementation of attention,
    and reads it from config.json."""
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    plain = Checkpoint.open(folder).config
    for part in ("vision_config", "text_config"):
        settings = Checkpoint.open(folder).json("config.json")[part]
        change_json(folder / "config.json", **{part: {**settings, "attn_implementation": "a/b"}})
    change_json(folder / "config.json", attn_implementation="somebody/kernel")
    config = Checkpoint.open(folder).config
    for found in (config, config.vision_config, config.text_config):
        assert found._attn_implementation is None
    assert config.to_dict() == plain.to_dict()
    everything(folder)
    open_reference(str(folder), vision=None, decoder=None).close()


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (os.mkdir, (str(self.mark),))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.pth", "weights.pkl", "x.ckpt"]
)
def test_pickles_are_not_opened(pristine: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "checkpoint"))
    mark = tmp_path / "ran"
    (folder / name).write_bytes(pickle.dumps(Bomb(mark)))
    everything(folder)  # beside safetensors
    (folder / "model.safetensors").unlink()
    with pytest.raises(ExportError, match=f"only pickled ones \\({name}\\), which can run code"):
        everything(folder)
    index = folder / "model.safetensors.index.json"
    change_json(index, weight_map={"lm_head.weight": name})
    with pytest.raises(ExportError, match=f"names '{name}', which is not a safetensors file"):
        everything(folder)
    index.unlink()
    change_json(folder / "config.json", transformers_weights=name)
    with pytest.raises(ExportError):
        everything(folder)
    assert not mark.exists()
