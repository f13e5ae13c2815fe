"""Settings of families that edgevlm does not reproduce, and the names of their tensors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import (
    InternVLConfig,
    InternVLModel,
    LlavaConfig,
    Ovis2Config,
    PixtralVisionConfig,
)

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.plan import load_tokenizer, make_plan
from edgevlm.export.pre_tokenizers import (
    BYTES_ONLY,
    LLAMA3_PATTERN,
    TEKKEN,
    read_text_rules,
    split,
)
from edgevlm.manifest import AspectGridTiling, StretchTiling
from tests.families import (
    aya_vision,
    cohere2_vision,
    got_ocr2,
    internvl,
    janus,
    llava_next,
    llava_onevision,
    ovis2,
    pixtral,
)
from tests.support.checkpoints import scatter
from tests.support.damage import change_json

GRID = [[56, 112], [112, 56]]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pristine")
    return {
        "llava_next": llava_next.clip_llama(folder / "llava_next"),
        "llava_onevision": llava_onevision.build(folder / "llava_onevision"),
        "internvl": internvl.qwen2(folder / "internvl"),
        "ovis2": ovis2.large(folder / "ovis2"),
        "aya_vision": aya_vision.aya_vision(folder / "aya_vision"),
        "cohere2_vision": cohere2_vision.cohere2_vision(folder / "cohere2_vision"),
        "got_ocr2": got_ocr2.got_ocr2(folder / "got_ocr2"),
        "janus": janus.janus(folder / "janus"),
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
        (
            "internvl",
            "config.json",
            {"downsample_ratio": 0.3},
            "downsample_ratio 0.3 does not divide 4",
        ),
        (
            "cohere2_vision",
            "preprocessor_config.json",
            {"patch_size": 3},
            "patch_size in the settings of the image processor is 3, .* the model has 4 embeddings",
        ),
        (
            "cohere2_vision",
            "tokenizer_config.json",
            {"boi_token": "<BOI>"},
            "boi_token in tokenizer_config.json is '<BOI>'; .* '<|START_OF_IMG|>'",
        ),
        (
            "ovis2",
            "config.json",
            {"visual_indicator_token_ids": [1, 2, 3, 4, 5]},
            r"visual_indicator_token_ids in config.json is \[1, 2, 3, 4, 5\], in tokenizer.json <IMG_ST",
        ),
        (
            "internvl",
            "preprocessor_config.json",
            {"min_patches": 13},
            "min_patches is 13, it must not exceed max_patches 12",
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenize_function": "gumbel_argmax"},
            "tokenize_function .* is 'gumbel_argmax'; .*softmax",
        ),
        ({"num_visual_indicator_tokens": 4}, "num_visual_indicator_tokens .* is 4; .* with 5"),
    ],
)
def test_another_visual_vocabulary(changes: dict[str, object], message: str) -> None:
    config = Ovis2Config(vision_config=changes, text_config={"model_type": "qwen2"})
    with pytest.raises(ExportError, match=message):
        find_family("ovis2").vision(config)


def test_tokens_of_turns_are_special(pristine: dict[str, Path]) -> None:
    """They are plain in the checkpoint, so that a text of a user would become them."""
    special = make_plan(Checkpoint.open(pristine["aya_vision"])).prompt.special_tokens
    assert {
        "<|START_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|IMG_PATCH|>",
    } <= {token.text for token in special}


def test_a_tower_without_a_class_token() -> None:
    config = LlavaConfig(vision_config=PixtralVisionConfig(), text_config={"model_type": "mistral"})
    with pytest.raises(ExportError, match="is 'default', which drops the first patch"):
        find_family("llava", "pixtral").vision(config)


@pytest.mark.parametrize(
    ("version", "pre_tokenizer", "splitting"),
    [("4.50.0", TEKKEN, "tekken"), ("5.0.0", "dbrx", None)],
)
def test_the_wrong_pattern_of_older_mistral_checkpoints(
    tmp_path: Path, version: str, pre_tokenizer: str, splitting: str | None
) -> None:
    """transformers knows that they name Llama 3's in place of Tekken's, and can take the right one.

    It looks at tokenizers of more than 100,000 tokens only.
    """
    folder = pixtral.mistral3(tmp_path / "checkpoint")
    change_json(folder / "config.json", transformers_version=version)
    described = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    steps = [split(LLAMA3_PATTERN), {**BYTES_ONLY, "trim_offsets": True}]
    described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    vocabulary = described["model"]["vocab"]
    vocabulary |= {f"<{number}>": len(vocabulary) + number for number in range(100_000)}
    described["model"]["ignore_merges"] = False
    (folder / "tokenizer.json").write_text(json.dumps(described), encoding="utf-8")
    tokenizer = load_tokenizer(Checkpoint.open(folder))
    rules = read_text_rules(json.loads(tokenizer.backend_tokenizer.to_str()))
    assert (rules.pre_tokenizer, rules.splitting) == (pre_tokenizer, splitting)


@pytest.mark.parametrize(
    "family",
    [
        "llava",
        "vipllava",
        "llava_next",
        "llava_onevision",
        "internvl",
        "gemma3",
        "got_ocr2",
        "paligemma",
    ],
)
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


@pytest.mark.parametrize("family", ["deepseek_vl", "janus"])
def test_names_of_tensors_of_deepseek(family: str) -> None:
    canonical = find_family(family).canonical_name
    assert canonical("model.aligner.linear1.weight") == "connector.linear1.weight"
    assert canonical("model.language_model.norm.weight") == "decoder.norm.weight"
    assert canonical("lm_head.weight") == "head.weight"
    assert (
        canonical("model.vision_model.vision_model.post_layernorm.bias")
        == canonical("model.vision_model.post_layernorm.bias")
        == "tower.post_layernorm.bias"
    )


@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_a_layer_of_internvl(layer: int) -> None:
    """The last layer is taken after the norm of the tower, an inner one before it."""
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": [56, 56],
            "patch_size": [14, 14],
            "use_mean_pooling": False,  # the tower has a last norm
        },
        text_config={
            "model_type": "qwen2",
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "vocab_size": 8,
        },
        vision_feature_layer=layer,
    )
    reference = InternVLModel(config).eval()
    scatter(reference, 0)
    vision = find_family("internvl").vision(config).eval()
    canonical = find_family("internvl").canonical_name
    named = {canonical(name): tensor for name, tensor in reference.state_dict().items()}
    vision.load_state_dict({name: named[name] for name in vision.state_dict()})
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = reference.get_image_features(pixels, return_dict=True).pooler_output
        torch.testing.assert_close(vision(pixels), expected, rtol=1e-5, atol=1e-5)


def test_what_transformers_processors_say_overrules_the_image_processor(
    pristine: dict[str, Path], tmp_path: Path
) -> None:
    """InternVL's cuts images into tiles, GOT-OCR's does not, whatever ``crop_to_patches`` is."""
    folder = Path(shutil.copytree(pristine["internvl"], tmp_path / "internvl"))
    change_json(folder / "preprocessor_config.json", crop_to_patches=False, max_patches=6)
    tiling = make_plan(Checkpoint.open(folder)).image.tiling
    assert isinstance(tiling, AspectGridTiling) and tiling.max_tiles == 6
    folder = Path(shutil.copytree(pristine["got_ocr2"], tmp_path / "got_ocr2"))
    change_json(folder / "preprocessor_config.json", crop_to_patches=True)
    assert isinstance(make_plan(Checkpoint.open(folder)).image.tiling, StretchTiling)


def test_got_ocr2_stops_where_transformers_examples_stop(pristine: dict[str, Path]) -> None:
    plan = make_plan(Checkpoint.open(pristine["got_ocr2"]))
    special = {token.text: token.id for token in plan.vocabulary.special_tokens}
    assert plan.prompt.end_token_ids == (special["<|endoftext|>"], special["<|im_end|>"])


@pytest.mark.parametrize("written", [True, False])
def test_the_system_prompt_of_janus_is_a_setting(
    pristine: dict[str, Path], tmp_path: Path, written: bool
) -> None:
    folder = Path(shutil.copytree(pristine["janus"], tmp_path / "checkpoint"))
    change_json(folder / "processor_config.json", use_default_system_prompt=written)
    prompt = make_plan(Checkpoint.open(folder)).prompt
    assert prompt.chat_template.startswith('{{ "You are a helpful') == written
    assert prompt.chat_template.endswith(janus.TEMPLATE)
