"""Models with attention layers and recurrent ones: LFM2 whole, in pieces and restored, beside transformers.

`test_mrope.py` has Qwen3.5 with images.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.engine.kv_cache import KVCache
from edgevlm.errors import (
    CancelledError,
    ContextError,
    ExportError,
    InferenceError,
    InputError,
)
from edgevlm.export import quantize
from edgevlm.export.architectures import find_architecture
from edgevlm.export.bounds import decoder_bound
from edgevlm.export.decoder import hyperparameters
from edgevlm.export.parity import relative_error
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.library import load_strlen
from edgevlm.runtimes.protocols import Place
from tests.export.test_architectures import QWEN35
from tests.support import text_models
from tests.support.damage import rewrite_gguf
from tests.support.tiny_decoder import ExactDecoder

ROTATED = {
    "rope_parameters": {**QWEN35["rope_parameters"], "mrope_section": [6, 5, 5]},
}
IMAGE, TEXT = slice(10, 22), 52
"""Entries that are an image, and all entries."""
CONTEXT = 200
LAYERS = ["conv", "full_attention", "conv", "conv", "full_attention", "conv"]


class Opened(NamedTuple):
    decoder: LlamaCppDecoder
    rows: NDArray[np.float32]
    """Embeddings of the whole prompt."""
    ids: list[int]
    """Its tokens; an image's place is -1."""
    expected: NDArray[np.float32]
    """Logits ``[n, vocabulary]`` of transformers."""
    bound: float


def tiny_lfm2() -> Any:
    return text_models.text_model("lfm2", num_hidden_layers=len(LAYERS), layer_types=LAYERS)


@pytest.fixture(scope="module", params=["f32", "f16"])
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Opened]:
    """In f32 without flash attention, and in f16 with it."""
    model = tiny_lfm2()
    folder = tmp_path_factory.mktemp("lfm2")
    path = text_models.write_text_model(model, folder, file_type=request.param)
    random = np.random.default_rng(0)
    ids = random.integers(3, 500, TEXT).tolist()
    with torch.no_grad():
        rows = model.get_input_embeddings()(torch.tensor(ids))
        rows[IMAGE] = torch.tensor(0.5 * random.standard_normal((12, rows.shape[1])))
        expected = model(inputs_embeds=rows[None]).logits[0].numpy()
    ids[IMAGE] = [-1] * 12
    exact = request.param == "f32"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "is_intel", lambda: False)
        open_as = ExactDecoder if exact else LlamaCppDecoder
        decoder = open_as(path, context_length=CONTEXT, threads=1)
    yield Opened(decoder, rows.numpy(), ids, expected, 1e-5 if exact else 5e-3)
    decoder.close()


@pytest.fixture
def opened(shared: Opened) -> Opened:
    assert shared.decoder.truncate(Place())
    return shared


def decode(opened: Opened, first: int, last: int) -> NDArray[np.float32]:
    """Decode these entries, as tokens where they are all tokens, and return the logits after the last."""
    positions, ids = np.arange(first, last, dtype=np.int32), opened.ids[first:last]
    if -1 in ids:
        opened.decoder.decode_embeddings(opened.rows[first:last], positions, logits=True)
    else:
        opened.decoder.decode_tokens(ids, positions, logits=True)
    return opened.decoder.logits()


def check(opened: Opened, logits: NDArray[np.float32], entries: int) -> None:
    assert relative_error(logits, opened.expected[entries - 1]) < opened.bound


def place(entries: int) -> Place:
    return Place(entries, entries)


@pytest.mark.parametrize("size", [1, 2, 5, 13, TEXT])
def test_pieces_of_any_size(opened: Opened, size: int) -> None:
    for first in range(0, TEXT, size):
        last = min(first + size, TEXT)
        check(opened, decode(opened, first, last), last)


def test_batches(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call in several batches: the state goes from one to the next."""
    monkeypatch.setattr(opened.decoder, "batch_length", 7)
    check(opened, decode(opened, 0, TEXT), TEXT)


def test_a_draft(opened: Opened) -> None:
    """Logits of several entries of a batch; nothing of it can be taken back."""
    decode(opened, 0, 40)
    logits = opened.decoder.decode_draft(opened.ids[40:46], np.arange(40, 46, dtype=np.int32))
    assert relative_error(logits, opened.expected[40:46]) < opened.bound
    assert opened.decoder.max_removable == 0
    assert not opened.decoder.truncate(place(43))
    check(opened, decode(opened, 46, TEXT), TEXT)


def test_branches(opened: Opened) -> None:
    """Each branch has a state of its own; the held sequence goes on as if nothing had been."""
    decoder = opened.decoder
    decode(opened, 0, 40)
    branches = [decoder.branch() for _ in range(3)]
    one, two, three = branches
    other = decoder.decode_branches([two] * 3 + [one] * 2, [5, 6, 7, *opened.ids[40:42]])
    assert relative_error(other[3:], opened.expected[40:42]) < opened.bound
    logits = decoder.decode_branches(
        [one, three, one], [opened.ids[42], opened.ids[40], opened.ids[43]]
    )
    assert relative_error(logits, opened.expected[[42, 40, 43]]) < opened.bound
    with pytest.raises(InputError, match="cannot cut a branch"):
        decoder.cut_branch(one, 1)
    for branch in branches:
        decoder.drop(branch)
    check(opened, decode(opened, 40, TEXT), TEXT)


def test_the_size_of_a_state(opened: Opened) -> None:
    """A copy of an empty sequence has none, one of an entry has the state and this entry."""
    decoder = opened.decoder
    decode(opened, 0, 1)
    model = decoder._model
    entry = model.kv_values * (4 if opened.bound < 1e-4 else 2)
    assert 0 < model.state_bytes <= decoder.save().nbytes - entry < model.state_bytes + 1000
    assert decoder.max_branches == LlamaCppDecoder.MAX_BRANCHES
    assert not decoder.independent_branches


def test_large_states_leave_one_branch(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        LlamaCppDecoder, "MAX_STATE_BYTES", 2 * opened.decoder._model.state_bytes - 1
    )
    decoder = LlamaCppDecoder(opened.decoder._path, context_length=64, threads=1)
    assert decoder.max_branches == 1
    decoder.decode_tokens(opened.ids[:10], np.arange(10, dtype=np.int32), logits=True)
    decoder.decode_tokens([7], np.array([10], np.int32), logits=True)
    expected = decoder.logits()
    decoder.truncate(Place())
    decoder.decode_tokens(opened.ids[:10], np.arange(10, dtype=np.int32), logits=True)
    (logits,) = decoder.decode_branches([decoder.branch()], [7])
    assert relative_error(logits, expected) < opened.bound
    decoder.close()


@pytest.mark.parametrize("cut", [1, 21, 22, 47, TEXT - 1])
def test_a_cut_that_fails_changes_nothing(opened: Opened, cut: int) -> None:
    decode(opened, 0, 48)
    if cut < 48:
        assert not opened.decoder.truncate(place(cut))
        assert not opened.decoder.truncate(place(cut))
    assert not opened.decoder.truncate(place(TEXT))  # it has not come so far
    assert opened.decoder.truncate(place(48))
    check(opened, decode(opened, 48, TEXT), TEXT)


def test_a_cut_to_nothing(opened: Opened) -> None:
    decode(opened, 0, 30)
    assert opened.decoder.truncate(Place())
    check(opened, decode(opened, 0, TEXT), TEXT)


@pytest.mark.parametrize("kept", [1, 2, 22, 40])
def test_a_restored_cache_goes_on_alike(opened: Opened, kept: int) -> None:
    decode(opened, 0, kept)
    copy = opened.decoder.save()
    for _ in range(2):
        check(opened, decode(opened, kept, TEXT), TEXT)
        opened.decoder.restore(copy, place(kept))
        assert opened.decoder.truncate(place(kept))
        assert not opened.decoder.truncate(place(kept - 1)) or kept == 1
        if kept == 1:
            opened.decoder.restore(copy, place(kept))


@pytest.mark.parametrize("damage", ["cut", "end", "noise"])
def test_a_damaged_copy_is_refused_and_nothing_held(opened: Opened, damage: str) -> None:
    decode(opened, 0, 40)
    copy = opened.decoder.save()
    if damage == "cut":
        copy = copy[: len(copy) // 2]
    elif damage == "end":  # the state of the recurrent layers stands at the end
        copy = np.concatenate([copy[:-400], copy[-200:]])
    else:
        copy = np.random.default_rng(3).integers(0, 256, copy.nbytes, dtype=np.uint8)
    with pytest.raises(InferenceError, match="could not restore"):
        opened.decoder.restore(copy, place(40))
    check(opened, decode(opened, 0, TEXT), TEXT)


@pytest.mark.parametrize("batches", [0, 1])
def test_a_failed_decoding_leaves_nothing_of_it(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    """If some batches were decoded before the failure, the state cannot go back: all is lost."""
    decoder = opened.decoder
    decode(opened, 0, 10)
    run, calls = decoder._llama.llama_decode, []

    def interrupted(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) > batches:
            raise KeyboardInterrupt
        status: int = run(*arguments)
        return status

    monkeypatch.setattr(decoder, "batch_length", 7)
    monkeypatch.setattr(decoder._llama, "llama_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decode(opened, 10, TEXT)
    monkeypatch.undo()
    assert decoder.truncate(place(10)) == (batches == 0)
    check(opened, decode(opened, 0 if batches else 10, TEXT), TEXT)


@pytest.mark.parametrize("node", [1, 30, 90])
def test_a_cancelled_decoding_leaves_nothing_of_it(opened: Opened, node: int) -> None:
    """The recurrent state has changed by then, so all is lost; the record of the engine follows."""
    decoder = opened.decoder
    cache, cancel, nodes = KVCache(decoder), CancelSignal(), 0
    decode(opened, 0, 10)
    cache.extend(opened.ids[:10])

    @decoder._llama.ggml_abort_callback  # type: ignore[untyped-decorator]  # ctypes makes it
    def stop(_: object) -> bool:
        nonlocal nodes
        nodes += 1
        if nodes == node:
            cancel.cancel()
        return nodes >= node

    positions = np.arange(10, TEXT, dtype=np.int32)
    llama, before = decoder._llama, load_strlen()
    llama.llama_set_abort_callback(decoder._context, stop, None)
    try:
        with pytest.raises(CancelledError):
            decoder.decode_embeddings(opened.rows[10:], positions, logits=True, cancel=cancel)
    finally:
        address = ctypes.addressof(decoder._abort_reason)
        llama.llama_set_abort_callback(decoder._context, before, address)
    assert nodes == node
    cache.settle()
    assert cache.held_positions == decoder._held.place.entries
    check(opened, decode(opened, cache.held_positions, TEXT), TEXT)


def test_the_context_ends(opened: Opened) -> None:
    tokens = [7] * CONTEXT
    positions = np.arange(CONTEXT, dtype=np.int32)
    opened.decoder.decode_tokens(tokens, positions, logits=True)
    with pytest.raises(ContextError, match=f"1 entries after {CONTEXT} "):
        opened.decoder.decode_tokens([1], np.array([CONTEXT], np.int32), logits=True)


def test_the_size_of_a_cache_counts_layers_with_attention(opened: Opened) -> None:
    """The first layer has none."""
    sizes = []
    for count in (30, 50):
        opened.decoder.truncate(Place())
        decode(opened, 0, count)
        sizes.append(opened.decoder.save().nbytes)
    width = 4 if opened.bound < 1e-4 else 2
    computed = 20 * width * opened.decoder._model.kv_values
    assert 0 < computed <= sizes[1] - sizes[0] < computed + 20 * 64


# --- files and configurations -------------------------------------------------------------------


def test_quantized_files(tmp_path: Path) -> None:
    """The convolutions stay in f32."""
    model = text_models.text_model(
        "lfm2", width=256, num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"]
    )
    source = text_models.write_text_model(model, tmp_path)
    ids = np.random.default_rng(0).integers(3, 500, 20).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    for file_type in ("q8_0", "q4_k_m"):
        path = tmp_path / f"decoder.{file_type}.gguf"
        quantize.quantize(source, path, file_type)
        assert not quantize.inspect(path, file_type).fallback
        kinds = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
        assert kinds["blk.0.shortconv.conv.weight"] == gguf.GGMLQuantizationType.F32
        assert kinds["blk.0.shortconv.in_proj.weight"] != gguf.GGMLQuantizationType.F16
        decoder = LlamaCppDecoder(path, context_length=64, threads=1)
        decoder.decode_tokens(ids, np.arange(20, dtype=np.int32), logits=True)
        assert 0 < relative_error(decoder.logits(), expected) < decoder_bound(file_type)
        decoder.close()


def test_qwen35_quantized(tmp_path: Path) -> None:
    """The KV cache counts the attention layers alone."""
    sizes = {"linear_key_head_dim": 64, "linear_value_head_dim": 64, "head_dim": 64}
    model = text_models.text_model("qwen3_5_text", width=256, **{**QWEN35, **sizes, **ROTATED})
    source = text_models.write_text_model(model, tmp_path)
    ids = np.random.default_rng(0).integers(3, 500, 20).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].numpy()
    path = tmp_path / "decoder.q8_0.gguf"
    quantize.quantize(source, path, "q8_0")
    decoder = LlamaCppDecoder(path, context_length=64, threads=1)
    decoder.decode_tokens(ids, np.arange(20, dtype=np.int32), logits=True)
    assert 0 < relative_error(decoder.logits(), expected) < decoder_bound("q8_0")
    assert decoder._model.kv_values == 2 * 2 * 64  # one of three layers; key and value of two heads
    decoder.close()


def test_the_keys_of_llama_cpps_converter() -> None:
    given = text_models.text_config("qwen3_5_text", **QWEN35)
    keys = hyperparameters(find_architecture(given), given)
    assert keys["qwen35.attention.recurrent_layers"] == [True, False, True]
    assert keys["qwen35.rope.dimension_count"] == 16
    assert keys["qwen35.ssm.inner_size"] == 4 * 32
    config = tiny_lfm2().config
    written = hyperparameters(find_architecture(config), config)
    assert written["lfm2.attention.head_count_kv"] == [0, 2, 0, 0, 2, 0]
    assert written["lfm2.feed_forward_length"] == 256  # 2/3 of 128, rounded up to 256
    assert written["lfm2.shortconv.l_cache"] == 3


def test_a_file_without_heads_counts_those_of_the_first_layer(tmp_path: Path) -> None:
    """llama.cpp's default is as many as there are heads of queries."""
    model = text_models.text_model("llama", num_key_value_heads=4)
    path = text_models.write_text_model(model, tmp_path)
    without = rewrite_gguf(path, tmp_path / "other.gguf", {"llama.attention.head_count_kv": None})
    for one in (path, without):
        decoder = LlamaCppDecoder(one, context_length=64, threads=1)
        assert decoder._model.kv_values == 2 * 4 * 32
        decoder.close()


BOTH = {"layer_types": ["conv", "full_attention"]}
DELTA_NETS = {
    **QWEN35,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "biases": ("lfm2", {"conv_bias": True}, "conv_bias is true"),
    "another layer": (
        "lfm2",
        {"layer_types": ["conv", "sliding_attention"]},
        "layers of type 'sliding_attention'",
    ),
    "no convolution": ("lfm2", {"layer_types": ["full_attention"] * 2}, "no layer of type 'conv'"),
    "no attention": ("lfm2", {"layer_types": ["conv"] * 2}, "no layer of type 'full_attention'"),
    "no memory": ("lfm2", {**BOTH, "conv_L_cache": 1}, "conv_L_cache is 1"),
    "other heads": ("lfm2", {**BOTH, "head_dim": 32}, "4 heads of 32"),
    "other values": (
        "qwen3_5_text",
        {**DELTA_NETS, "linear_value_head_dim": 16},
        "linear_key_head_dim is 32 and linear_value_head_dim 16",
    ),
    "values without keys": (
        "qwen3_5_text",
        {**DELTA_NETS, "linear_num_value_heads": 3},
        "linear_num_value_heads is 3, no multiple of linear_num_key_heads 2",
    ),
    "epsilon": ("qwen3_5_text", {**DELTA_NETS, "rms_norm_eps": 1e-5}, "rms_norm_eps is 1e-05"),
    "delta nets alone": (
        "qwen3_5_text",
        {**DELTA_NETS, "layer_types": ["linear_attention"] * 2},
        "no layer of type 'full_attention'",
    ),
    "attention biases": ("qwen3_5_text", {**DELTA_NETS, "attention_bias": True}, "attention_bias"),
}


@pytest.mark.parametrize(("model_type", "settings", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_llama_cpp_computes_otherwise_is_refused(
    model_type: str, settings: dict[str, Any], named: str
) -> None:
    config = text_models.text_config(model_type, **settings)
    with pytest.raises(ExportError, match=named):
        find_architecture(config)
