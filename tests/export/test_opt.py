"""OPT, which llama.cpp does not have: what is refused by its name, and the variants of its layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Blip2Config, OPTConfig, OPTForCausalLM

from edgevlm import VLM
from edgevlm.cli import main
from edgevlm.errors import BundleError, ExportError
from edgevlm.export import onnx_file
from edgevlm.export.architectures import find_architecture
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_module import DecoderModule
from edgevlm.export.families import find_family
from edgevlm.export.pipeline import export
from edgevlm.export.plan import make_plan
from edgevlm.export.vision import convert_fp16
from edgevlm.manifest import Manifest
from tests.families.blip_2 import QUERIES, blip_2
from tests.support.checkpoints import scatter


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return blip_2(tmp_path_factory.mktemp("opt") / "checkpoint")


@pytest.mark.parametrize(
    "settings", [{"decoder": ["int8", "q8_0"]}, {"goal": "fast"}, {"decoder_gguf": "decoder.gguf"}]
)
def test_llama_cpp_does_not_have_it(
    checkpoint: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with pytest.raises(ExportError, match=r"no language model of type 'opt'.*--decoder int8"):
        export(checkpoint, tmp_path / "out", progress=False, **settings)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path) -> Manifest:
    """The default, with a vision graph whose weights do not fit into one file."""
    out = checkpoint.with_name("bundle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "PROTOBUF_LIMIT", 200_000)
        patch.setattr(onnx_file, "LARGE_WEIGHT", 1000)
        assert main(["export", str(checkpoint), str(out), "--quick", "--quiet"]) == 0
    return Manifest.load(out)


def test_a_large_vision_graph_has_its_weights_beside_it(checkpoint: Path, bundle: Manifest) -> None:
    """The export has compared it with transformers."""
    folder, vision = checkpoint.with_name("bundle"), bundle.vision
    assert [*vision.files] == ["fp32", "int8"]
    assert [*vision.weights] == ["fp32"]
    assert bundle.parity and bundle.parity.vision["fp32"].relative_error < 1e-4
    assert {entry.name for entry in bundle.files()} < {path.name for path in folder.iterdir()}
    assert vision.files["fp32"].size < 200_000 < vision.weights["fp32"].size
    image = Image.new("RGB", (30, 20))
    with VLM.from_pretrained(folder, vision="fp32", device="cpu") as vlm:
        assert vlm.encode_image(image).shape == (QUERIES, 64)
    data = folder / vision.weights["fp32"].name
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"vision\.fp32\.onnx\.data was altered"):
        VLM.from_pretrained(folder, vision="fp32", device="cpu")
    with VLM.from_pretrained(folder, vision="int8", device="cpu") as vlm:
        assert vlm.encode_image(image).shape == (QUERIES, 64)


def test_fp16_of_a_large_vision_graph_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vision.fp32.onnx.data").touch()
    with pytest.raises(ExportError, match="leave fp16 out of --vision"):
        convert_fp16(tmp_path / "vision.fp32.onnx", tmp_path / "vision.fp16.onnx")


def test_the_default_is_an_onnx_graph(checkpoint: Path, bundle: Manifest) -> None:
    """All linear layers are rounded, also those that PyTorch computes over two axes."""
    decoder = bundle.decoder
    assert decoder.architecture == "opt"
    assert [*decoder.choices] == ["int8"]
    bits = decoder.weight_files["int8"].bits_per_weight
    # 9 with the scales of blocks; the table of positions stays in float32
    text = Checkpoint.open(checkpoint).config.get_text_config()
    positions = (text.max_position_embeddings + 2) * text.hidden_size
    linear = 2 * (4 * 64 * 64 + 2 * 64 * 128) + 64 * text.vocab_size
    expected = (9 * linear + 32 * positions) / (linear + positions)
    assert bits == pytest.approx(expected, rel=0.05)


def test_an_encoder_decoder_is_refused() -> None:
    config = Blip2Config(text_config={"model_type": "t5"})
    with pytest.raises(ExportError, match=r"type 't5', an encoder .* with one of .*, opt, "):
        find_architecture(config)


def test_embeddings_of_another_width_are_refused() -> None:
    config = Blip2Config(
        text_config={"model_type": "opt", "hidden_size": 64, "word_embed_proj_dim": 32}
    )
    with pytest.raises(ExportError, match=r"of width 32 \(word_embed_proj_dim\) .* of width 64"):
        find_architecture(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"lacks 1 tensors of its language model, such as decoder\.layers\.1\.fc1\.bias",
        ),
        ("unknown", r"has a tensor .*layers\.2\.fc1\.bias that transformers' model .* lacks"),
        ("shape", r"layers\.1\.fc1\.bias has shape \[3\], config\.json asks for \[128\]"),
    ],
)
def test_tensors_are_those_of_the_configuration(
    checkpoint: Path, tmp_path: Path, change: str, message: str
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(checkpoint / "model.safetensors")
    name = "language_model.model.decoder.layers.1.fc1.bias"
    tensor = weights.pop(name)
    if change == "unknown":
        weights |= {name: tensor, name.replace("layers.1", "layers.2"): tensor.clone()}
    if change == "shape":
        weights[name] = tensor[:3].clone()
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ExportError, match=message):
        make_plan(Checkpoint.open(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {"do_layer_norm_before": False},
        {"enable_bias": False, "layer_norm_elementwise_affine": False},
        {"activation_function": "gelu"},
    ],
)
def test_variants(settings: dict[str, Any]) -> None:
    """The module against transformers' model, entries in two parts."""
    text = OPTConfig(
        vocab_size=50,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        **settings,
    )
    model = OPTForCausalLM(text).eval()
    scatter(model, 0)
    module = DecoderModule(Blip2Config(text_config=text.to_dict()), find_family("blip-2")).eval()
    module.decoder.load_state_dict(model.model.decoder.state_dict())
    module.head.load_state_dict(model.lm_head.state_dict())
    ids = torch.tensor([3, 7, 2, 2, 41, 9, 5])
    with torch.no_grad():
        expected = model(ids[None]).logits[0].numpy()
        rows = model.get_input_embeddings()(ids)
        past = [torch.zeros(4, len(ids), 8) for _ in range(4)]
        found = []
        for start, end in ((0, 4), (4, 7)):
            entries = torch.arange(start, end)
            hidden = torch.arange(len(ids)) > entries[:, None]
            mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
            wanted = torch.arange(end - start)
            logits, *past = module(rows[start:end], entries, [mask], entries, [], wanted, [], past)
            found.append(logits.numpy())
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-5)
