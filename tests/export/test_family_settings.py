"""Settings of LLaVA's descendants that edgevlm does not reproduce, and the names of their tensors."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from transformers import LlavaConfig, PixtralVisionConfig

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.plan import make_plan
from tests.families import llava_next, llava_onevision
from tests.support.damage import change_json

GRID = [[56, 112], [112, 56]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pristine")
    return {
        "llava_next": llava_next.clip_llama(folder / "llava_next"),
        "llava_onevision": llava_onevision.build(folder / "llava_onevision"),
    }


@pytest.mark.parametrize(
    ("family", "file", "changes", "message"),
    [
        (
            "llava_next",
            "config.json",
            {"image_grid_pinpoints": GRID},
            re.escape(
                "image_grid_pinpoints is [(56, 112), (112, 56)] in config.json and [(56, 112), (112"
            ),
        ),
        (
            "llava_next",
            "preprocessor_config.json",
            {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}},
            r"vision part does not take .*\(28\*28\) doesn't match model \(56\*56\)",
        ),
        (
            "llava_next",
            "config.json",
            {"vision_feature_select_strategy": "full"},
            "a tile has 17 embeddings, which are not the 4 x 4 patches",
        ),
        (
            "llava_onevision",
            "config.json",
            {"vision_aspect_ratio": "anyres"},
            "is 'anyres'; .* anyres_max_N",
        ),
        (
            "llava_onevision",
            "config.json",
            {"vision_aspect_ratio": "anyres_max_0"},
            "'anyres_max_0'",
        ),
    ],
)
def test_refused(
    pristine: dict[str, Path],
    family: str,
    file: str,
    changes: dict[str, object],
    message: str,
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(pristine[family], tmp_path / "checkpoint"))
    change_json(folder / file, **changes)
    with pytest.raises(ExportError, match=message):
        make_plan(Checkpoint.open(folder))


def test_a_tower_of_images_at_their_own_resolution() -> None:
    config = LlavaConfig(vision_config=PixtralVisionConfig(), text_config={"model_type": "llama"})
    with pytest.raises(ExportError, match="model_type 'pixtral'"):
        find_family("llava").vision(config)


@pytest.mark.parametrize("family", ["llava", "vipllava", "llava_next", "llava_onevision"])
def test_names_of_tensors_of_all_releases(family: str) -> None:
    """transformers 4 before and after it moved the parts into ``model``, and transformers 5."""
    canonical = find_family(family).canonical_name
    for part, names in {
        "decoder.layers.0.mlp.up_proj.weight": (
            "language_model.model.layers.0.mlp.up_proj.weight",
            "model.language_model.layers.0.mlp.up_proj.weight",
        ),
        "head.weight": ("language_model.lm_head.weight", "lm_head.weight"),
        "tower.embeddings.class_embedding": (
            "vision_tower.vision_model.embeddings.class_embedding",
            "model.vision_tower.vision_model.embeddings.class_embedding",
            "vision_tower.embeddings.class_embedding",
        ),
        "connector.linear_1.bias": (
            "multi_modal_projector.linear_1.bias",
            "model.multi_modal_projector.linear_1.bias",
        ),
        "learned.image_newline": ("image_newline", "model.image_newline"),
    }.items():
        assert {canonical(name) for name in names} == {part}
