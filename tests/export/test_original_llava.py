"""Checkpoints in the layout of LLaVA's and Yi-VL's authors: what is read, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.plan import make_plan
from tests.families import original
from tests.support.damage import change_json

TOWER = "clip-vit-large-patch14-336"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return original.llava(tmp_path_factory.mktemp("original") / "checkpoint")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A checkpoint, and its tower beside it."""
    shutil.copytree(pristine.parent, tmp_path / "models")
    return tmp_path / "models" / "checkpoint"


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make_plan(Checkpoint.open(folder))


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("mm_projector_type", "linear", "mm_projector_type 'linear'.*'mlp2x_gelu'"),
        ("mm_projector_type", None, "mm_projector_type None"),
        ("mm_vision_select_feature", "slice", "mm_vision_select_feature 'slice'"),
        ("mm_vision_select_layer", "-2", "mm_vision_select_layer '-2'; it must be a number"),
        ("mm_patch_merge_type", "spatial_unpad", "mm_patch_merge_type 'spatial_unpad'"),
        ("image_aspect_ratio", "anyres", "image_aspect_ratio 'anyres'.*'pad', 'square'"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end True"),
        ("mm_vision_tower", "nobody/none", r"names the vision tower nobody/none .*/none nor"),
        ("mm_vision_tower", f"../{TOWER}/../x", "which is neither in"),
    ],
)
def test_a_setting_of_another_model(
    folder: Path, setting: str, value: object, message: str
) -> None:
    change_json(folder / "config.json", **{setting: value})
    refused(folder, message)


def move_inside(folder: Path) -> None:
    shutil.move(folder.parent / TOWER, folder / TOWER)


def move_to_its_path(folder: Path) -> None:
    shutil.move(folder.parent / TOWER, folder / "openai" / TOWER)


def name_a_path_of_another_machine(folder: Path) -> None:
    change_json(folder / "config.json", mm_vision_tower=f"/data/models/{TOWER}")


@pytest.mark.parametrize("change", [move_inside, move_to_its_path, name_a_path_of_another_machine])
def test_places_of_the_tower(folder: Path, change: Callable[[Path], None]) -> None:
    change(folder)
    names = Checkpoint.open(folder).tensors
    assert "vision_model.post_layernorm.weight" in names
    assert not any(name.startswith("text_model") for name in names)


def test_a_tower_of_another_kind(folder: Path) -> None:
    change_json(folder.parent / TOWER / "config.json", model_type="siglip_vision_model")
    refused(folder, "model_type 'siglip_vision_model'; .* clip and clip_vision_model")


@pytest.mark.parametrize("part", ["checkpoint", TOWER])
def test_pickled_weights_are_not_opened(folder: Path, part: str) -> None:
    place = folder.parent / part
    (place / "model.safetensors").rename(place / "pytorch_model.bin")
    refused(folder, rf"{part} has no safetensors.*never opened; convert them \(https://")


def test_without_a_tokenizer_of_its_own(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    refused(folder, "has no tokenizer.json")


def test_a_tokenizer_without_the_token_in_place_of_images(folder: Path) -> None:
    described = json.loads((folder / "tokenizer.json").read_text())
    change_json(folder / "tokenizer.json", added_tokens=described["added_tokens"][1:])
    refused(folder, "no special token <unk>")


def test_its_own_chat_template_counts(folder: Path) -> None:
    template = "{% for part in messages[0].content %}{{ part.text or '<image>' }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    assert make_plan(Checkpoint.open(folder)).prompt.chat_template == template


def test_yi_ends_at_the_mark_of_the_next_turn(tmp_path: Path) -> None:
    folder = original.yi(tmp_path / "checkpoint")
    described = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = described["model"]["vocab"]
    renamed = {
        ("###" if token_id == 600 else text): i
        for text, i in vocabulary.items()
        for token_id in [i]
    }
    merges = [merge for merge in described["model"]["merges"] if "".join(merge) in renamed]
    change_json(
        folder / "tokenizer.json", model={**described["model"], "vocab": renamed, "merges": merges}
    )
    assert Checkpoint.open(folder).end_token_ids() == (2, 600)
