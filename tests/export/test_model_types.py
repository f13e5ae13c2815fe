"""A ``model_type`` that cannot be exported: the error names what can, and the page about adding a family."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import transformers

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import MODULES, find_family
from edgevlm.export.model_types import ALTERNATIVES, PAGE

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("model_type", "found"),
    [
        ("llava_qwen", "take llava_onevision"),
        ("internvl_chat", "take internvl (the same models in transformers' format"),
        ("gemma3_text", "take gemma3"),
        ("fast_vlm", "is part of timm, which needs torchvision"),
        ("gemma3n", "take gemma4 (its tower is part of timm"),
        ("gemma4_unified", "take gemma4 (E2B and E4B"),
        ("smolvlm2", "the nearest name is 'smolvlm'"),
        ("llava_next_video", "the nearest name is 'llava_next'"),
        ("paligemma2", "the nearest name is 'paligemma'"),
        ("whisper", "the nearest name is "),
    ],
)
def test_the_error_names_what_can_be_exported(tmp_path: Path, model_type: str, found: str) -> None:
    with pytest.raises(ExportError) as error:
        find_family(model_type)
    message = str(error.value)
    assert message.startswith(f"model_type {model_type!r} cannot be exported; ")
    assert found in message and PAGE in message
    assert all(name in message for name in MODULES)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(ExportError, match=re.escape(message)):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("model_type", ALTERNATIVES)
def test_alternatives_can_be_exported(model_type: str) -> None:
    names, _ = ALTERNATIVES[model_type]
    assert set(names.split(" or ")) <= set(MODULES)
    assert model_type not in MODULES


def test_the_page_exists() -> None:
    assert (REPOSITORY / PAGE.partition("/blob/main/")[2]).is_file()


@pytest.mark.parametrize("model_type", MODULES)
def test_families_are_found(model_type: str) -> None:
    assert find_family(model_type).image_token
    if model_type not in {"llava_llama", "yi_vl"}:  # their authors' layout
        assert model_type in transformers.CONFIG_MAPPING
