"""Short convolutions of the ONNX decoder against transformers' LFM2."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import Lfm2Config, Lfm2VlForConditionalGeneration
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import CancelledError, LoadError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder_cache import Cells, inputs_name
from edgevlm.export.onnx_decoder_files import write_graphs
from edgevlm.export.pipeline import export
from edgevlm.export.plan import make_plan
from edgevlm.export.short_convolution import ShortConvolution
from edgevlm.runtimes.onnx.cell_table import BLANK
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from edgevlm.runtimes.protocols import Place
from tests.families.lfm2_vl import lfm2_vl
from tests.support.tiny_decoder import relative_error

EXACT = 1e-5
"""Rows of logits differ by up to 2e-6. A wrong entry in a convolution makes it about 1."""
CONV, FULL = "conv", "full_attention"
TOKENS = st.integers(5, 250)
SETTINGS: dict[str, dict[str, Any]] = {
    "3 entries": {},
    "2 entries": {"conv_L_cache": 2, "layer_types": [CONV, CONV, CONV, FULL]},
    "5 entries, untied, other widths": {
        "conv_L_cache": 5,
        "layer_types": [FULL, CONV, FULL, CONV],
        "tie_word_embeddings": False,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.3,
        "block_multiple_of": 32,
    },
}


class Model:
    """transformers' model and our decoder of the same weights."""

    def __init__(self, folder: Path, text: dict[str, Any]) -> None:
        checkpoint = lfm2_vl(folder / "checkpoint", **text)
        plan = make_plan(Checkpoint(checkpoint, "lfm2_vl", None))
        files = write_graphs(plan, folder, ["fp32"], ["fp32"], progress=False)
        self.reference: Any = Lfm2VlForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.file = files["fp32"]
        self.decoder = self.load(self.file)

    def load(self, graph: Path) -> OnnxDecoder:
        """Open a graph."""
        return OnnxDecoder(
            graph,
            tokenizer=self.file.parent / "decoder.tokenizer.json",
            embeddings=self.file.parent / "decoder.embeddings.npy",
            context_length=256,
            device="cpu",
            threads=1,
        )

    @torch.no_grad()
    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Return transformers' logits ``[entries, vocabulary]``."""
        hidden = self.reference.model.language_model(
            input_ids=torch.tensor([list(ids)]), use_cache=False
        )
        found: NDArray[np.float32] = self.reference.lm_head(hidden.last_hidden_state)[0].numpy()
        return found

    def check(self, found: NDArray[np.float32], ids: Sequence[int]) -> None:
        """Compare logits with transformers' after these tokens."""
        assert relative_error(found, self.logits(ids)[-1]) < EXACT

    def decode(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Decode tokens from an entry on, and return the logits after the last."""
        positions = np.arange(first, first + len(ids), dtype=np.int32)
        self.decoder.decode_tokens(list(ids), positions, logits=True)
        return self.decoder.logits()

    def inputs(self) -> list[NDArray[np.float32]]:
        """Return the memory of the convolutions."""
        return [
            array
            for array in self.decoder._open_graph().entries._arrays
            if array.shape[::2] == (1, 64)
        ]


@pytest.fixture(scope="module", params=SETTINGS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("lfm2"), SETTINGS[request.param])
    yield model
    model.decoder.close()


def some_tokens(count: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(5, 250, count).tolist()
    return found


@settings(max_examples=50)
@given(data=st.data())
def test_prompts_in_any_parts(model: Model, data: st.DataObject) -> None:
    """Also prompts and parts that are shorter than the convolution."""
    ids = data.draw(st.lists(TOKENS, min_size=1, max_size=24))
    expected = model.logits(ids)
    model.decoder.truncate(Place())
    done = 0
    while done < len(ids):
        size = data.draw(st.integers(1, len(ids) - done))
        found = model.decode(ids[done : done + size], done)
        done += size
        assert relative_error(found, expected[done - 1]) < EXACT


def test_a_prompt_of_several_runs(model: Model) -> None:
    ids = some_tokens(256)
    model.decoder.truncate(Place())
    model.decode(ids[:7])
    model.check(model.decode(ids[7:], 7), ids)
    assert model.decoder._open_graph().entries.cells == 512
    model.decoder.truncate(Place(2, 2))
    model.check(model.decode([9], 2), [*ids[:2], 9])
    assert model.decoder._open_graph().entries.cells == 256


@settings(max_examples=50)
@given(first=st.lists(TOKENS, min_size=1, max_size=12), data=st.data())
def test_a_cut_at_any_entry(model: Model, first: list[int], data: st.DataObject) -> None:
    second = data.draw(st.lists(TOKENS, min_size=1, max_size=6))
    end = data.draw(st.integers(0, len(first)))
    model.decoder.truncate(Place())
    model.decode(first)
    assert model.decoder.truncate(Place(end, end))
    model.check(model.decode(second, end), [*first[:end], *second])


@settings(max_examples=50)
@given(data=st.data())
def test_branches_and_copies_in_any_order(model: Model, data: st.DataObject) -> None:
    """Tokens of branches are interleaved; cuts free cells that other sequences get."""
    decoder = model.decoder
    decoder.truncate(Place())
    held: list[int] = []
    branches: dict[int, list[int]] = {}
    shared: dict[int, int] = {}
    copies: list[tuple[NDArray[np.uint8], list[int]]] = []
    new_tokens = st.lists(TOKENS, min_size=1, max_size=5)
    try:
        for _ in range(data.draw(st.integers(3, 12), label="steps")):
            steps = ["decode", "draft", "cut", "save"]
            steps += ["branch"] * (len(branches) < 6)
            steps += ["restore"] * bool(copies) + ["branch of copy"] * (
                bool(copies) and len(branches) < 6
            )
            steps += ["decode branches", "cut branch", "drop"] * bool(branches)
            step = data.draw(st.sampled_from(steps), label="step")
            if step == "decode":
                new = data.draw(new_tokens)
                found = model.decode(new, len(held))
                held = [*held, *new]
                model.check(found, held)
            elif step == "draft":
                new = data.draw(new_tokens)
                positions = np.arange(len(held), len(held) + len(new), dtype=np.int32)
                model.check(decoder.decode_draft(new, positions)[-1], [*held, *new])
                held = [*held, *new[: data.draw(st.integers(0, len(new)))]]
                assert decoder.truncate(Place(len(held), len(held)))
            elif step == "cut":
                held = held[: data.draw(st.integers(0, len(held)))]
                assert decoder.truncate(Place(len(held), len(held)))
            elif step == "save":
                copies.append((decoder.save(), held))
            elif step == "restore":
                copy, held = data.draw(st.sampled_from(copies))
                decoder.restore(copy, Place(len(held), len(held)))
            elif step == "branch":
                source = data.draw(
                    st.sampled_from(
                        [None, *(one for one in branches if shared[one] == len(branches[one]))]
                    )
                )
                branch = decoder.branch(source)
                branches[branch] = held if source is None else branches[source]
                shared[branch] = len(branches[branch])
            elif step == "branch of copy":
                copy, ids = data.draw(st.sampled_from(copies))
                branch = decoder.branch_of_copy(copy, Place(len(ids), len(ids)))
                branches[branch], shared[branch] = ids, len(ids)
            elif step == "decode branches":
                pairs = data.draw(
                    st.lists(
                        st.tuples(st.sampled_from(sorted(branches)), TOKENS),
                        min_size=1,
                        max_size=8,
                    )
                )
                found = decoder.decode_branches(
                    [branch for branch, _ in pairs], [token for _, token in pairs]
                )
                for row, (branch, token) in zip(found, pairs, strict=True):
                    branches[branch] = [*branches[branch], token]
                    model.check(row, branches[branch])
            elif step == "cut branch":
                branch = data.draw(st.sampled_from(sorted(branches)))
                end = data.draw(st.integers(shared[branch], len(branches[branch])))
                decoder.cut_branch(branch, len(branches[branch]) - end)
                branches[branch] = branches[branch][:end]
            elif step == "drop":
                branch = data.draw(st.sampled_from(sorted(branches)))
                decoder.drop(branch)
                del branches[branch]
        if branches:
            found = decoder.decode_branches(list(branches), [77] * len(branches))
            for row, ids in zip(found, branches.values(), strict=True):
                model.check(row, [*ids, 77])
        model.check(model.decode([78], len(held)), [*held, 78])
    finally:
        for branch in branches:
            decoder.drop(branch)


def test_a_cancelled_call_leaves_nothing(model: Model) -> None:
    ids = some_tokens(9)
    model.decoder.truncate(Place())
    model.decode(ids[:4])
    signal = CancelSignal()
    signal.cancel()
    with pytest.raises(CancelledError):
        model.decoder.decode_tokens(
            ids[:5], np.arange(4, 9, dtype=np.int32), logits=True, cancel=signal
        )
    model.check(model.decode(ids[4:], 4), ids)


def test_inputs_are_written_in_place(model: Model) -> None:
    """The blank cell stays zero, and the memory of the others is not copied."""
    model.decoder.truncate(Place())
    model.decode([3])
    memory = [array.ctypes.data for array in model.inputs()]
    assert len(memory) == model.reference.config.text_config.layer_types.count(CONV)
    model.decode(some_tokens(9), 1)
    assert [array.ctypes.data for array in model.inputs()] == memory
    for array in model.inputs():
        assert not array[:, BLANK].any()
        assert (array[:, BLANK + 1 : BLANK + 11] != 0).any(axis=(0, 2)).all()


def test_a_graph_that_reads_an_unknown_number_of_entries(model: Model, tmp_path: Path) -> None:
    graph = onnx.load(model.file, load_external_data=False)
    (before,) = (one for one in graph.graph.input if one.name == "before")
    before.type.tensor_type.shape.dim[1].dim_param = "count"
    data = model.file.with_name(f"{model.file.name}.data")
    shutil.copy(data, tmp_path)
    onnx.save(graph, tmp_path / "decoder.onnx")
    with pytest.raises(LoadError, match=r"no decoder graph of edgevlm: its inputs are .*before"):
        model.load(tmp_path / "decoder.onnx")


@pytest.mark.parametrize("length", [2, 3, 7])
def test_biases(length: int) -> None:
    """llama.cpp's LFM2 has none, so no export reads them; the module does."""
    config = Lfm2Config(
        hidden_size=8,
        num_hidden_layers=2,
        conv_bias=True,
        conv_L_cache=length,
        layer_types=[FULL, CONV],
    )
    original = Lfm2ShortConv(config, 1)
    entries = torch.randn(1, 5, 8)
    cells = torch.tensor([4, 2, 7, 1, 3])
    padded = torch.cat([torch.zeros(length - 1, dtype=torch.int64), cells])
    before = torch.stack([padded[entry : entry + length - 1] for entry in range(5)])
    cache = Cells({inputs_name(1): torch.zeros(1, 8, 8)}, cells, before, {})
    with torch.no_grad():
        found = ShortConvolution(original)(entries, cache)
        torch.testing.assert_close(found, original(entries))


def test_every_precision(tmp_path: Path) -> None:
    """Linear layers are rounded, convolutions are not; the export compares each with the checkpoint."""
    precisions = ["fp32", "fp16", "int8", "int4"]
    manifest = export(
        lfm2_vl(tmp_path / "checkpoint"),
        tmp_path / "bundle",
        vision=["fp32"],
        decoder=precisions,
        quick=True,
        progress=False,
    )
    assert manifest.parity is not None
    errors = [manifest.parity.decoder[name].relative_error for name in precisions]
    assert errors == sorted(errors)
    assert errors[0] < 1e-5 < errors[1] < 5e-3
    graph = onnx.load(tmp_path / "bundle" / "decoder.int4.onnx", load_external_data=False).graph
    weights = {
        name
        for node in graph.node
        if node.op_type == "MatMulNBits"
        for name in node.input
        if name.endswith(".weight")
    }
    kinds = {name.partition(".layers.0.")[2] for name in weights} - {""}
    parts = ("conv.in_proj", "conv.out_proj", *(f"feed_forward.w{n}" for n in (1, 2, 3)))
    assert kinds == {f"{part}.weight" for part in parts}
