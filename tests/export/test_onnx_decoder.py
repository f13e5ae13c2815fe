"""Decoders as ONNX graphs: the rounding of weights, what is refused, and how weights are written."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from numpy.typing import NDArray
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from edgevlm.errors import ExportError
from edgevlm.export.block_quantization import quantize_rows
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.onnx_decoder import (
    find_sources,
    parts,
    split_rows,
    write_layer_embeddings,
)
from edgevlm.export.pipeline import export
from edgevlm.export.plan import make_plan
from tests.families import gemma4, qwen3_5
from tests.support import checkpoints


def weights(rows: int, length: int) -> NDArray[np.float32]:
    """Normal values with large ones, ties and a block of zeros."""
    values = np.random.default_rng(0).standard_normal((rows, length)).astype(np.float32)
    values[0] *= 50
    values[1] = np.rint(values[1] * 4) / 4
    values[2, :32] = 0
    values[3, 5] = -values[3].max() * 2
    return values


def levels(values: NDArray[np.uint8], bits: int, length: int) -> NDArray[np.uint8]:
    """The values of packed rows, ``[n, length]``."""
    if bits == 4:
        values = np.stack([values & 15, values >> 4], axis=-1)
    return values.reshape(len(values), -1)[:, :length]


@pytest.mark.parametrize("length", [64, 96, 40])
@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_those_of_onnx_runtime(bits: int, length: int) -> None:
    rows = weights(6, length)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, bits=bits)
    expected, scales, _ = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
        np.ascontiguousarray(rows.T)
    )
    found, found_scales = quantize_rows(rows, bits)
    assert found.shape == expected.shape
    # ONNX Runtime leaves what fills up the last block as it was.
    np.testing.assert_array_equal(levels(found, bits, length), levels(expected, bits, length))
    np.testing.assert_array_equal(found_scales, scales)


@pytest.mark.parametrize(("bits", "name"), [(4, "Q4_0"), (8, "Q8_0")])
def test_rounding_is_no_worse_than_that_of_llama_cpp(bits: int, name: str) -> None:
    rows = np.random.default_rng(1).standard_normal((512, 256)).astype(np.float32)
    values, scales = quantize_rows(rows, bits)
    steps = levels(values, bits, 256).astype(np.float32) - (1 << (bits - 1))
    ours = steps * scales.repeat(32, axis=1)
    kind = gguf.GGMLQuantizationType[name]
    theirs = gguf.dequantize(gguf.quantize(rows, kind), kind)
    assert np.linalg.norm(ours - rows) <= 1.001 * np.linalg.norm(theirs - rows)


def test_damaged_weights() -> None:
    tensor = torch.zeros(3, 4)
    tensor[2, 1] = torch.nan
    with pytest.raises(ExportError, match=r"head.weight has values that are not finite"):
        list(split_rows(tensor, "head.weight"))


def test_weights_beyond_float16() -> None:
    weight = onnx_ir.Value(
        name="w", shape=onnx_ir.Shape([1, 2]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT16)
    )
    with pytest.raises(ExportError, match="beyond float16's range"):
        list(parts(torch.tensor([[1.0, 1e5]]), weight, "w"))


def test_a_decoder_with_another_state(tmp_path: Path) -> None:
    checkpoint = qwen3_5.qwen3_5(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match=r"'qwen3_5_text' cannot be exported .*delta nets.*q8_0"):
        export(checkpoint, tmp_path / "bundle", decoder=["q8_0", "int8"], progress=False)
    assert not (tmp_path / "bundle").exists()


def test_keys_of_layers_that_share_others_are_left_out(tmp_path: Path) -> None:
    """Published files of Gemma 4 have them, and nothing reads them."""
    checkpoint = gemma4.gemma4(tmp_path / "checkpoint")
    plain = make_plan(Checkpoint.open(checkpoint))
    expected = find_sources(plain.checkpoint, plain.family)
    unread = {
        f"model.language_model.layers.{layer}.self_attn.{part}_proj.weight": torch.zeros(size, 64)
        for layer, size in ((4, 16), (5, 32))
        for part in "kv"
    }
    path = checkpoint / "model.safetensors"
    save_file(load_file(path) | unread, path, metadata={"format": "pt"})
    published = make_plan(Checkpoint.open(checkpoint))
    assert unread.keys() < published.checkpoint.tensors.keys()
    assert find_sources(published.checkpoint, published.family).keys() == expected.keys()


def test_a_table_of_the_layers(tmp_path: Path) -> None:
    """The rows as transformers scales them, and the row of padding once more at the end."""
    checkpoint = gemma4.gemma4(tmp_path / "checkpoint")
    plan = make_plan(Checkpoint.open(checkpoint))
    path = tmp_path / "table.npy"
    assert write_layer_embeddings(plan.checkpoint, plan.family, path, np.float16)
    text = AutoModelForImageTextToText.from_pretrained(checkpoint).model.language_model
    rows = [*range(text.config.vocab_size), text.config.pad_token_id]
    expected = text.get_per_layer_inputs(torch.tensor(rows)).flatten(1)
    np.testing.assert_array_equal(np.load(path), expected.detach().numpy().astype(np.float16))
    assert not torch.equal(expected[-1], expected[-2])
    other = make_plan(Checkpoint.open(checkpoints.smolvlm(tmp_path / "other")))
    assert not write_layer_embeddings(other.checkpoint, other.family, tmp_path / "no", np.float16)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("setting", [{"goal": "best"}, {"decoder_gguf": "decoder.gguf"}])
def test_settings_about_gguf_files(setting: dict[str, str], tmp_path: Path) -> None:
    checkpoint = checkpoints.smolvlm(tmp_path / "checkpoint")
    with pytest.raises(ExportError, match="leave out --decoder-runtime onnx"):
        export(
            checkpoint,
            tmp_path / "bundle",
            decoder_runtime="onnx",
            **setting,  # type: ignore[arg-type]
        )


def test_unknown_runtime(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="unknown decoder runtime 'auto'"):
        export(tmp_path, tmp_path / "bundle", decoder_runtime="auto")


def test_both_runtimes_in_one_bundle(tmp_path: Path) -> None:
    """All are compared with the checkpoint; all files are in the card and the manifest."""
    manifest = export(
        checkpoints.smolvlm(tmp_path / "checkpoint"),
        tmp_path / "bundle",
        vision=["fp32"],
        decoder=["q8_0", "int8", "int4"],
        quick=True,
        progress=False,
    )
    decoder = manifest.decoder
    assert list(decoder.choices) == ["q8_0", "int8", "int4"]
    assert decoder.onnx is not None
    assert manifest.parity is not None
    errors = [manifest.parity.decoder[name].relative_error for name in decoder.choices]
    assert errors[0] / 2 < errors[1] < 2 * errors[0] < errors[2]
    bits = [entry.bits_per_weight for entry in decoder.onnx.weights.values()]
    assert bits == pytest.approx([9, 5], rel=0.02)
    card = (tmp_path / "bundle" / "README.md").read_text()
    for entry in manifest.files():
        assert f"`{entry.name}`" in card
        assert (tmp_path / "bundle" / entry.name).stat().st_size == entry.size
    graph = onnx.load(
        tmp_path / "bundle" / decoder.onnx.files["int8"].name, load_external_data=False
    )
    assert not any(
        node.op_type == "Transpose" and "weight" in node.input[0] for node in graph.graph.node
    )
    assert not any(node.metadata_props or node.doc_string for node in graph.graph.node)
    table = np.load(tmp_path / "bundle" / decoder.onnx.embeddings.name, mmap_mode="r")
    assert table.dtype == np.float16


def test_onnx_alone(tmp_path: Path) -> None:
    """int8 is the default; the fp32 graph, with which it is compared, is not part of the bundle."""
    manifest = export(
        checkpoints.smolvlm(tmp_path / "checkpoint"),
        tmp_path / "bundle",
        vision=["fp32"],
        decoder_runtime="onnx",
        progress=False,
    )
    assert manifest.decoder.files == {}
    assert list(manifest.decoder.graphs) == ["int8"]
    assert manifest.parity is not None
    assert manifest.parity.answers is not None
    assert manifest.parity.answers.exact_decoder == "fp32"
    assert manifest.parity.decoder["fp32"].relative_error < 1e-2
    assert not list((tmp_path / "bundle").glob("*fp32.onnx.data"))
