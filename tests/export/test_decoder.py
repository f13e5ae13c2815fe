"""GGUF decoders compute transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ExportError
from edgevlm.export import decoder, quantize
from edgevlm.export.bounds import decoder_bound
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import find_family
from edgevlm.export.parity import relative_error
from edgevlm.export.plan import make_plan
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.support import checkpoints

IDS = [7, 300, 41, 42, 260, 9, 9, 77, 401, 33, 280, 281, 12, 350, 19, 64, 65, 290, 222, 111]
"""An arbitrary text."""


def write(folder: Path, file_type: str = "f16") -> Path:
    """A checkpoint's decoder, unquantized."""
    checkpoint = Checkpoint.open(folder)
    plan = make_plan(checkpoint)
    path = folder / f"decoder.{file_type}.gguf"
    decoder.write_decoder(
        checkpoint, plan.family, plan.vocabulary, path, file_type=file_type, progress=False
    )
    return path


def transformers_logits(folder: Path, **inputs: torch.Tensor) -> NDArray[np.float32]:
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits[0]
    return logits.numpy()


def step_logits(path: Path, ids: list[int]) -> NDArray[np.float32]:
    """One token at a time: float32 ``[len(ids), vocabulary]``."""
    runtime = LlamaCppDecoder(path, context_length=128, threads=1)
    rows = []
    for position, token in enumerate(ids):
        runtime.decode_tokens([token], np.array([position], np.int32), logits=True)
        rows.append(runtime.logits())
    runtime.close()
    return np.stack(rows)


LLAMAS: dict[str, dict[str, Any]] = {
    "untied": {},
    "tied": {"tied": True},
    "bf16 checkpoint": {"dtype": torch.bfloat16},
    "heads of another width": {"head_dim": 32},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "linear scaling": {
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}
    },
    "llama3 scaling": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 1000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "shards": {"max_shard_size": "100KB"},
}


@pytest.mark.parametrize("settings", LLAMAS.values(), ids=LLAMAS.keys())
def test_llama_equals_transformers(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", **settings)
    expected = transformers_logits(folder, input_ids=torch.tensor([IDS]))
    found = step_logits(write(folder), IDS)
    assert relative_error(found, expected) < 5e-3


def test_embeddings_in_place_of_tokens(tmp_path: Path) -> None:
    """As pictures are read: rows that no token has, between tokens."""
    folder = checkpoints.smolvlm(tmp_path / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    picture = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    table = model.get_input_embeddings()
    with torch.no_grad():
        words = table(torch.tensor([IDS]))
        inputs = torch.cat([words[:, :5], picture, words[:, 5:]], dim=1)
        expected = model(inputs_embeds=inputs).logits[0, -1].numpy()
    runtime = LlamaCppDecoder(write(folder), context_length=128, threads=1)
    runtime.decode_tokens(IDS[:5], np.arange(5, dtype=np.int32), logits=False)
    runtime.decode_embeddings(picture[0].numpy(), np.arange(5, 11, dtype=np.int32), logits=False)
    runtime.decode_tokens(IDS[5:], np.arange(11, 6 + len(IDS), dtype=np.int32), logits=True)
    assert relative_error(runtime.logits(), expected) < 5e-3
    runtime.close()


@pytest.mark.parametrize("family", ["paligemma", "paligemma2"])
def test_gemma_equals_transformers(tmp_path: Path, family: str) -> None:
    """A prefix that sees itself both ways, then an answer read causally."""
    folder = getattr(checkpoints, family)(tmp_path / "checkpoint")
    prefix, answer = IDS[:12], IDS[12:]
    expected = transformers_logits(
        folder,
        input_ids=torch.tensor([IDS]),
        token_type_ids=torch.tensor([[0] * len(prefix) + [1] * len(answer)]),
    )[len(prefix) - 1 :]
    runtime = LlamaCppDecoder(
        write(folder), context_length=128, threads=1, bidirectional=len(prefix)
    )
    positions = np.arange(len(IDS), dtype=np.int32)
    runtime.decode_embeddings(
        runtime.embed(prefix), positions[: len(prefix)], logits=True, bidirectional=True
    )
    rows = [runtime.logits()]
    for position, token in enumerate(answer, start=len(prefix)):
        runtime.decode_tokens([token], positions[position : position + 1], logits=True)
        rows.append(runtime.logits())
    runtime.close()
    found = np.stack(rows)
    assert relative_error(found, expected) < 5e-3
    assert np.array_equal(found.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("file_type", ["f32", "bf16"])
def test_other_unquantized_types(tmp_path: Path, file_type: str) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint")
    expected = transformers_logits(folder, input_ids=torch.tensor([IDS]))
    path = write(folder, file_type)
    kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_up.weight"] == gguf.GGMLQuantizationType[file_type.upper()]
    assert kinds["blk.0.attn_norm.weight"] == gguf.GGMLQuantizationType.F32
    assert relative_error(step_logits(path, IDS), expected) < {"f32": 5e-3, "bf16": 5e-2}[file_type]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, NDArray[np.float32]]:
    """An f16 decoder with rows of 256, so that no type falls back, and its logits."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    source = write(checkpoints.smolvlm(folder, width=256, num_hidden_layers=1))
    return source, step_logits(source, IDS)


@pytest.mark.parametrize("file_type", quantize.BLOCK_TYPES)
def test_every_quantized_type(
    wide: tuple[Path, NDArray[np.float32]], tmp_path: Path, file_type: str
) -> None:
    source, logits = wide
    path = tmp_path / f"decoder.{file_type}.gguf"
    importance = {
        tensor.name: np.ones(int(tensor.shape[0]), np.float32)
        for tensor in gguf.GGUFReader(source).tensors
        if len(tensor.shape) > 1
    }
    quantize.quantize(source, path, file_type, importance=importance)
    found = quantize.inspect(path, file_type)
    assert not found.fallback
    block_type = gguf.GGMLQuantizationType[quantize.BLOCK_TYPES[file_type]]
    assert block_type in {tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    assert found.bits_per_weight < quantize.inspect(source, "f16").bits_per_weight
    assert 0 < relative_error(step_logits(path, IDS), logits) < decoder_bound(file_type)


def test_rows_that_do_not_fit_are_reported(tmp_path: Path) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", width=64)
    path = folder / "decoder.q4_k_m.gguf"
    quantize.quantize(write(folder), path, "q4_k_m")
    found = quantize.inspect(path, "q4_k_m")
    assert len(found.fallback) == found.tensors == 16
    assert found.fallback["blk.0.attn_q.weight"] == "q5_0"
    assert found.bits_per_weight > 5


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "scaling": (
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
        "yarn",
    ),
    "activation": ({"hidden_act": "relu"}, "relu"),
}


@pytest.mark.parametrize(("settings", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint", **settings)
    with pytest.raises(ExportError, match=named):
        write(folder)


def change_weights(folder: Path, name: str, value: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    if value is None:
        del weights[name]
    else:
        weights[name] = value
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = checkpoints.smolvlm(tmp_path / "checkpoint")
    name = "model.text_model.layers.1.mlp.up_proj.weight"
    value = load_file(folder / "model.safetensors")[name]
    change_weights(folder, name, value * 1e6)
    with pytest.raises(ExportError, match=r"up_proj\.weight has values beyond f16's range"):
        write(folder)
    change_weights(folder, name, value * float("nan"))
    with pytest.raises(ExportError, match=r"up_proj\.weight has values that are not finite"):
        write(folder)
    change_weights(folder, name, None)
    with pytest.raises(ExportError, match=r"lacks 1 tensors.*layers\.1\.mlp\.up_proj"):
        write(folder)
    change_weights(folder, "model.text_model.adapter.weight", value)
    change_weights(folder, name, value)
    with pytest.raises(ExportError, match="adapter"):
        write(folder)
    change_weights(folder, "lora.weight", value)
    with pytest.raises(ExportError, match="belongs to no part"):
        find_family("smolvlm").canonical_name("lora.weight")


@pytest.mark.parametrize("shape", [(7,), (7, 64), (4, 32)])
@pytest.mark.parametrize("file_type", decoder.UNQUANTIZED)
def test_rows_that_are_converted_in_parts(
    monkeypatch: pytest.MonkeyPatch, file_type: str, shape: tuple[int, ...]
) -> None:
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    kind, _ = decoder.UNQUANTIZED[file_type]
    whole = gguf.quantize(tensor.float().numpy(), kind)
    monkeypatch.setattr(decoder, "ROWS_AT_ONCE", 4)
    found = decoder.encode(tensor, kind, "name")
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole)
    tensor[-1] = torch.inf
    with pytest.raises(ExportError, match="name has values that are not finite"):
        decoder.encode(tensor, kind, "name")
