"""Embeddings of the layers, and layers that share keys and values: the ONNX decoder against Gemma 4."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import Gemma4ForConditionalGeneration

from edgevlm.errors import LoadError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.onnx_decoder_files import describe_graphs, write_graphs
from edgevlm.export.plan import make_plan
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from edgevlm.runtimes.protocols import Place
from tests.families.gemma4 import gemma4
from tests.support.tiny_decoder import relative_error

WIDTH, WINDOW, LAYERS = 64, 12, 6
EXACT = 1e-5
"""transformers' own implementations of attention differ by half as much here."""
Span = list[int] | NDArray[np.float32]
"""Tokens, or the embeddings ``[n, width]`` of an image."""


class Model:
    """transformers' model and our decoder of the same weights."""

    def __init__(self, folder: Path) -> None:
        checkpoint = gemma4(folder / "checkpoint")
        plan = make_plan(Checkpoint(checkpoint, "gemma4", None))
        files = write_graphs(plan, folder, ["fp32"], ["fp32"], progress=False)
        spec = describe_graphs(plan, files)
        assert spec is not None and spec.layer_embeddings is not None
        self.reference: Any = Gemma4ForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.files: dict[str, Any] = {
            "path": files["fp32"],
            "tokenizer": folder / spec.tokenizer.name,
            "embeddings": folder / spec.embeddings.name,
            "layer_embeddings": folder / spec.layer_embeddings.name,
            "window": spec.window,
        }
        self.decoder = self.load()

    def load(self, **changes: Any) -> OnnxDecoder:
        settings = {"context_length": 512, "device": "cpu", "threads": 1, **self.files, **changes}
        return OnnxDecoder(settings.pop("path"), **settings)

    @torch.no_grad()
    def logits(self, spans: Sequence[Span]) -> NDArray[np.float32]:
        """Return transformers' logits ``[entries, vocabulary]``; padding is the token of images."""
        text = self.reference.model.language_model
        padding = text.config.pad_token_id
        ids = [span if isinstance(span, list) else [padding] * len(span) for span in spans]
        rows = [
            text.embed_tokens(torch.tensor(span)) if isinstance(span, list) else torch.tensor(span)
            for span in spans
        ]
        hidden = text(
            inputs_embeds=torch.cat(rows)[None],
            per_layer_inputs=text.get_per_layer_inputs(torch.tensor([[*chain(*ids)]])),
        )
        logits = self.reference.lm_head(hidden.last_hidden_state)[0]
        cap = text.config.final_logit_softcapping
        found: NDArray[np.float32] = (cap * torch.tanh(logits / cap)).numpy()
        return found

    def decode(self, span: Span, first: int = 0) -> NDArray[np.float32]:
        """Decode a span from an entry on, and return the logits after the last."""
        positions = np.arange(first, first + len(span), dtype=np.int32)
        if isinstance(span, list):
            self.decoder.decode_tokens(span, positions, logits=True)
        else:
            self.decoder.decode_embeddings(span, positions, logits=True)
        return self.decoder.logits()

    def start(self, spans: Sequence[Span]) -> int:
        """Empty the KV cache and decode spans; return the number of entries."""
        self.decoder.truncate(Place())
        done = 0
        for span in spans:
            self.decode(span, done)
            done += len(span)
        return done


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("gemma4"))
    yield model
    model.decoder.close()


def some_ids(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(3, 600, count).tolist()
    return ids


def some_image(count: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


SPANS: tuple[Span, ...] = (some_ids(5), some_image(17), some_ids(9, 1))
"""Texts around an image that is longer than the sliding window."""

kinds = st.lists(
    st.tuples(st.booleans(), st.integers(1, 2 * WINDOW), st.integers(0, 9)), min_size=1, max_size=5
)


def spans_of(drawn: Sequence[tuple[bool, int, int]]) -> list[Span]:
    return [
        some_image(count, seed) if image else some_ids(count, seed) for image, count, seed in drawn
    ]


@given(drawn=kinds, data=st.data())
def test_texts_and_images_in_any_parts(
    model: Model, drawn: list[tuple[bool, int, int]], data: st.DataObject
) -> None:
    spans = spans_of(drawn)
    expected = model.logits(spans)
    model.decoder.truncate(Place())
    done = 0
    for span in spans:
        start = 0
        while start < len(span):
            size = data.draw(st.integers(1, len(span) - start))
            found = model.decode(span[start : start + size], done)
            start, done = start + size, done + size
            assert relative_error(found, expected[done - 1]) < EXACT


def test_images_take_the_row_of_padding(model: Model) -> None:
    """An embedding of a token is another entry than the token."""
    ids = some_ids(4)
    rows = model.decoder.embed(ids)
    expected = model.logits([rows])[-1]
    model.decoder.truncate(Place())
    assert relative_error(model.decode(rows), expected) < EXACT
    assert relative_error(expected, model.logits([ids])[-1]) > 0.1


@given(drawn=kinds, data=st.data())
def test_a_cut(model: Model, drawn: list[tuple[bool, int, int]], data: st.DataObject) -> None:
    """What is cut leaves no trace; sliding layers see entries again that they no longer saw."""
    spans = spans_of(drawn)
    total = model.start(spans)
    kept = data.draw(st.integers(0, total))
    assert model.decoder.truncate(Place(kept, kept))
    left: list[Span] = []
    for span in spans:
        room = kept - sum(map(len, left))
        left += [span[:room]] if room else []
    more = some_ids(3, 7)
    found = model.decode(more, kept)
    assert relative_error(found, model.logits([*left, more])[-1]) < EXACT


def test_branches(model: Model) -> None:
    """They share the prompt, outlive it, and go beyond the window, token by token and in one batch."""
    model.start(SPANS)
    first, second = model.decoder.branch(), model.decoder.branch()
    model.start([some_ids(30, 5)])
    tokens = {first: some_ids(WINDOW + 3, 2), second: some_ids(WINDOW + 3, 3)}
    expected = {branch: model.logits([*SPANS, ids]) for branch, ids in tokens.items()}
    entries = sum(map(len, SPANS))
    for index in range(WINDOW):
        found = model.decoder.decode_branches(
            [first, second], [ids[index] for ids in tokens.values()]
        )
        for row, branch in enumerate((first, second)):
            assert relative_error(found[row], expected[branch][entries + index]) < EXACT
    found = model.decoder.decode_branches([first] * 3, tokens[first][WINDOW:])
    assert relative_error(found, expected[first][-3:]) < EXACT
    model.decoder.cut_branch(second, 2)
    found = model.decoder.decode_branches([second] * 3, tokens[second][WINDOW - 2 : WINDOW + 1])
    assert relative_error(found, expected[second][-5:-2]) < EXACT
    model.decoder.drop(first)
    model.decoder.drop(second)
    held = model.logits([some_ids(30, 5), [8]])[-1]
    assert relative_error(model.decode([8], 30), held) < EXACT


def test_drafts(model: Model) -> None:
    entries = model.start(SPANS)
    draft = some_ids(6, 4)
    positions = np.arange(entries, entries + len(draft), dtype=np.int32)
    found = model.decoder.decode_draft(draft, positions)
    assert relative_error(found, model.logits([*SPANS, draft])[-len(draft) :]) < EXACT


def test_copies(model: Model) -> None:
    entries = model.start(SPANS)
    copy = model.decoder.save()
    expected = model.logits([*SPANS, [21]])[-1]
    model.start([some_ids(40, 6)])
    branch = model.decoder.branch_of_copy(copy, Place(entries, entries))
    assert relative_error(model.decoder.decode_branches([branch], [21])[0], expected) < EXACT
    model.decoder.drop(branch)
    model.decoder.restore(copy, Place(entries, entries))
    assert relative_error(model.decode([21], entries), expected) < EXACT


def test_entries_without_logits(model: Model) -> None:
    """Layers that share keys and values compute nothing for them; others need what they leave."""
    model.decoder.truncate(Place())
    ids = some_ids(12, 8)
    positions = np.arange(12, dtype=np.int32)
    model.decoder.decode_tokens(ids[:5], positions[:5], logits=False)
    model.decoder.decode_embeddings(some_image(7), positions[5:], logits=False)
    branches = [model.decoder.branch() for _ in range(2)]
    found = model.decoder.decode_branches(
        [branches[number] for number in (0, 1, 0, 1)],
        [4, 5, 6, 7],
        np.array([False, True, True, False]),
    )
    spans: list[Span] = [ids[:5], some_image(7)]
    follows: list[Span] = [[5], [4, 6]]
    for row, more in zip(found, follows, strict=True):
        assert relative_error(row, model.logits([*spans, more])[-1]) < EXACT
    nothing = model.decoder.decode_branches(branches, [1, 2], np.zeros(2, np.bool_))
    assert nothing.shape == (0, model.decoder.vocabulary_size)
    found = model.decoder.decode_branches([branches[1]], [8])
    assert relative_error(found[0], model.logits([*spans, [5, 7, 2, 8]])[-1]) < EXACT
    for branch in branches:
        model.decoder.drop(branch)


def test_long_prompts(model: Model) -> None:
    """Prompts of several batches."""
    spans: list[Span] = [some_ids(300), some_image(20), some_ids(50, 1)]
    expected = model.logits(spans)
    model.start(spans[:-1])
    assert relative_error(model.decode(spans[-1], 320), expected[-1]) < EXACT


def test_layers_that_share_keys_and_values_have_no_cells(model: Model) -> None:
    """Of six layers the last two take those of the third and the fourth; full heads are twice as long."""
    graph = model.decoder._open_graph()
    assert graph.entries.cell_bytes == 4 * 2 * (3 * 16 + 32)
    table = np.load(model.files["layer_embeddings"], mmap_mode="r")
    assert table.shape == (model.decoder.vocabulary_size + 1, LAYERS * 16)


def test_tables_of_another_bundle(model: Model, tmp_path: Path) -> None:
    table = np.load(model.files["layer_embeddings"])
    for name, wrong in (("short", table[:-1]), ("narrow", table[:, :-16])):
        path = tmp_path / f"{name}.npy"
        np.save(path, wrong)
        with pytest.raises(LoadError, match=rf"of its layers of shape .*{wrong.shape[0]}, "):
            model.load(layer_embeddings=path)
    with pytest.raises(LoadError, match="the bundle's is None"):
        model.load(layer_embeddings=None)
    (tmp_path / "damaged.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(LoadError, match=r"damaged\.npy"):
        model.load(layer_embeddings=tmp_path / "damaged.npy")
