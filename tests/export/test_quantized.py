"""Checkpoints that are quantized already are refused by name, before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevlm.errors import ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import write_decoder
from edgevlm.export.plan import make_plan
from tests.support import checkpoints
from tests.support.damage import change_json, change_weights

MATRIX = "model.text_model.layers.1.mlp.up_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.smolvlm(tmp_path_factory.mktemp("pristine") / "checkpoint")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "checkpoint"))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "GPTQ": ({"quant_method": "gptq", "bits": 4}, r"quantization_config says gptq, 4 bits\)"),
    "AWQ": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, r"says awq, 4 bits\)"),
    "HQQ": ({"quant_method": "hqq", "quant_config": {"weight": {}}}, r"says hqq\)"),
    "bitsandbytes in 4 bits": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
        r"says bitsandbytes, 4 bits\)",
    ),
    "bitsandbytes in 8 bits": (
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        r"says bitsandbytes, 8 bits\)",
    ),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {}},
        r"says compressed-tensors, float-quantized\)",
    ),
    "MXFP4": ({"quant_method": "mxfp4"}, r"says mxfp4\)"),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": {}}}, r"says torchao\)"),
    "a method of tomorrow": ({"quant_method": "q9"}, r"says q9\)"),
    "no method": ({}, r"says a method that it does not name\)"),
    "no object": (["fp8"], r"says \['fp8'\]\)"),  # type: ignore[dict-item]  # on purpose
}


@pytest.mark.parametrize(("entry", "message"), CONFIGS.values(), ids=CONFIGS.keys())
def test_a_configuration_that_says_so(folder: Path, entry: dict[str, Any], message: str) -> None:
    (folder / "README.md").write_text("---\nbase_model:\n- somebody/tiny\n---\n")
    change_json(folder / "config.json", quantization_config=entry)
    (folder / "model.safetensors").unlink()  # that is not what has to be mended first
    with pytest.raises(ExportError, match=message) as error:
        Checkpoint.open(folder)
    assert str(error.value).endswith(
        "export the checkpoint that this one was made from, somebody/tiny"
    )


@pytest.mark.parametrize("key", ["quantization_config", "compression_config", "quantization"])
@pytest.mark.parametrize("part", ["text_config", "vision_config", None])
def test_other_places(folder: Path, key: str, part: str | None) -> None:
    entry: dict[str, Any] = {key: {"group_size": 64, "bits": 4}}
    if part is not None:
        entry = {part: {**Checkpoint.open(folder).json("config.json")[part], **entry}}
    change_json(folder / "config.json", **entry)
    with pytest.raises(ExportError, match=f"{key} says a method that it does not name, 4 bits"):
        Checkpoint.open(folder)


def test_nothing_said_is_nothing(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().rstrip().rstrip("}") + ', "quantization_config": null}')
    make_plan(Checkpoint.open(folder))


def scaled(*names: str, dtype: torch.dtype = torch.int8) -> Callable[[Tensors], None]:
    """One matrix replaced by a quantizer's tensors."""

    def change(weights: Tensors) -> None:
        matrix = weights.pop(f"{MATRIX}.weight")
        for name in names:
            weights[f"{MATRIX}.{name}"] = matrix.to(dtype)

    return change


WEIGHTS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "GPTQ": (scaled("qweight", "qzeros", "scales", dtype=torch.int32), "GPTQ or AWQ"),
    "packed": (scaled("weight_packed", "weight_scale", "weight_shape"), "compressed-tensors"),
    "FP8 with scales": (scaled("weight_scale_inv"), "FP8"),
    "bitsandbytes in 8 bits": (scaled("weight", "SCB", "weight_format"), "bitsandbytes"),
    "bitsandbytes in 4 bits": (
        scaled("weight", "weight.absmax", "weight.quant_state.bitsandbytes__nf4"),
        "bitsandbytes",
    ),
    "HQQ": (scaled("W_q"), "HQQ"),
    "quanto": (scaled("weight._data", "weight._scale"), "quanto"),
    "torchao": (scaled("_weight_qdata", "_weight_scale"), "torchao"),
    "MXFP4": (scaled("weight_blocks", "weight_scales", dtype=torch.uint8), "MXFP4"),
    "MLX": (scaled("weight", "scales", "biases", dtype=torch.uint32), "MLX"),
    "float8": (scaled("weight", dtype=torch.float8_e4m3fn), "is stored as F8_E4M3"),
    "the other float8": (scaled("weight", dtype=torch.float8_e5m2), "is stored as F8_E5M2"),
    "bytes": (scaled("weight", dtype=torch.uint8), "is stored as U8"),
    "integers": (scaled("weight", dtype=torch.int64), "is stored as I64"),
    "truth values": (scaled("weight", dtype=torch.bool), "is stored as BOOL"),
}


@pytest.mark.parametrize(("change", "message"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_show_it(
    folder: Path, change: Callable[[Tensors], None], message: str
) -> None:
    change_weights(folder, change)
    with pytest.raises(ExportError, match=message) as error:
        Checkpoint.open(folder)
    assert (
        f"{folder / 'model.safetensors'} belongs to a checkpoint that is quantized already"
        in str(error.value)
    )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floats_are_weights(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    change_weights(
        folder, lambda weights: {name: value.to(dtype) for name, value in weights.items()}
    )
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    path = tmp_path / "decoder.gguf"
    write_decoder(checkpoint, plan.family, plan.vocabulary, path, progress=False)


def test_buffers_of_older_releases_are_left_out(folder: Path) -> None:
    """Positions and frequencies, which transformers computes now and does not read."""

    def add(weights: Tensors) -> None:
        positions = torch.arange(16)[None]
        weights["model.vision_model.embeddings.position_ids"] = positions
        weights["model.text_model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    change_weights(folder, add)
    make_plan(Checkpoint.open(folder))
