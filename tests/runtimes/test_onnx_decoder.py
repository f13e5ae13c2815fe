"""What the decoder in ONNX Runtime does beside what every decoder does (`test_decoders.py`)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import CancelledError, ClosedError, InferenceError, InputError, LoadError
from edgevlm.runtimes import system
from edgevlm.runtimes.onnx.cell_memory import CellMemory
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from edgevlm.runtimes.protocols import Place, Sampling
from tests.support.decoders import fail_after_decoding
from tests.support.tiny_decoder import (
    EXACT,
    TOKENS,
    TinyLlama,
    decoded,
    place,
    positions,
    reference_logits,
    reference_model,
    relative_error,
    some_tokens,
)
from tests.support.tiny_onnx_decoder import load_onnx_decoder


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decoder")


def test_memory_grows_and_shrinks_with_what_it_holds(folder: Path, model: TinyLlama) -> None:
    decoder = load_onnx_decoder(folder, model, context_length=1200)
    graph = decoder._open_graph()
    tokens = some_tokens(1200)
    assert relative_error(decoded(decoder, tokens), reference_logits(model, tokens)[-1]) < EXACT
    assert graph.entries.cells == 1280
    decoder.truncate(place(100))
    theirs = reference_logits(model, tokens[:101])[-1]
    assert relative_error(decoded(decoder, [tokens[100]], 100), theirs) < EXACT
    assert graph.entries.cells == 256


def test_keys_and_values_are_written_in_place(folder: Path) -> None:
    """Input and output of a layer are one memory, so that a token copies nothing."""
    decoder = load_onnx_decoder(folder)
    graph = decoder._open_graph()
    memory = [array.ctypes.data for array in graph.entries._arrays]
    decoded(decoder, some_tokens(9))
    assert [array.ctypes.data for array in graph.entries._arrays] == memory
    for array in graph.entries._arrays:
        assert (array[:, :9] != 0).any(axis=(0, 2)).all()
        assert not array[:, 9:].any()


def test_layers_with_a_sliding_window(tmp_path: Path, model: TinyLlama) -> None:
    """The last layer sees 7 entries, the others all; as one batch, one by one, and as a branch."""
    decoder = load_onnx_decoder(tmp_path, model, window=7)

    class Sliding(TinyLlama):
        def _attention(self, x: Any, layer: int, mask: Any) -> Any:
            near = np.tri(len(x), dtype=bool) & ~np.tri(len(x), k=-7, dtype=bool)
            return super()._attention(x, layer, mask & near if layer == self.LAYERS - 1 else mask)

    tokens = some_tokens(30)
    theirs = reference_logits(Sliding(model.weights), tokens)
    assert relative_error(reference_logits(model, tokens)[-1], theirs[-1]) > 0.01
    assert relative_error(decoded(decoder, tokens), theirs[-1]) < EXACT
    decoder.truncate(place(5))
    for index in range(5, 20):
        ours = decoded(decoder, [tokens[index]], index)
        assert relative_error(ours, theirs[index]) < EXACT
    branch = decoder.branch()
    ours = decoder.decode_branches([branch] * 10, tokens[20:])
    assert relative_error(ours, theirs[20:]) < EXACT


def test_a_batch_that_fails_leaves_nothing(
    folder: Path, model: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_onnx_decoder(folder, model, context_length=600)
    tokens = some_tokens(500)
    expected = decoded(decoder, tokens)
    decoder.truncate(place(5))
    with monkeypatch.context() as patch:
        fail_after_decoding(decoder, patch)
        with pytest.raises(KeyboardInterrupt):
            decoder.decode_tokens(tokens[5:], positions(5, 500), logits=True)
    assert decoder.room(500) == 600 - 5
    with pytest.raises(InputError, match="no logits"):
        decoder.logits()
    assert relative_error(decoded(decoder, tokens[5:], 5), expected) < 1e-5


@pytest.mark.parametrize("runs", [1, 2])
def test_a_signal_from_another_thread_stops_the_graph(
    folder: Path, monkeypatch: pytest.MonkeyPatch, runs: int
) -> None:
    """The signal comes after the last check in Python, so ONNX Runtime alone can see it."""
    decoder = load_onnx_decoder(folder, context_length=600)
    graph = decoder._open_graph()
    tokens = some_tokens(600)
    expected = decoded(decoder, tokens)
    decoder.truncate(Place())
    session, cancel, calls = graph._session, CancelSignal(), 0

    class Session:
        def run_with_iobinding(self, *arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls == runs:
                thread = threading.Thread(target=cancel.cancel)
                thread.start()
                thread.join()
            session.run_with_iobinding(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(graph, "_session", Session())
        with pytest.raises(CancelledError, match="cancelled before its end"):
            decoder.decode_tokens(tokens, positions(0, 600), logits=True, cancel=cancel)
    assert calls == runs
    assert decoder.room(600) == 600
    np.testing.assert_array_equal(decoded(decoder, tokens), expected)


def test_a_failure_of_onnx_runtime_is_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = load_onnx_decoder(folder)
    graph = decoder._open_graph()
    monkeypatch.setattr(graph, "_binding", None)
    monkeypatch.setattr(CellMemory, "resize", lambda self, cells: None)

    class Binding:
        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    monkeypatch.setattr(graph, "_binding", Binding())
    with pytest.raises(InferenceError, match="ONNX Runtime failed"):
        decoder.decode_tokens([1], positions(0, 1), logits=True)


def test_entries_cannot_be_removed_from_the_middle(folder: Path) -> None:
    decoder = load_onnx_decoder(folder)
    decoded(decoder, some_tokens(9))
    assert not decoder.can_shift
    with pytest.raises(InputError, match="cannot be removed from the middle"):
        decoder.remove(place(2), place(4))


@pytest.mark.parametrize("name", ["decoder.onnx", "tokenizer.json", "embeddings.npy"])
@pytest.mark.parametrize("damage", ["missing", "empty", "noise"])
def test_damaged_files(tmp_path: Path, name: str, damage: str) -> None:
    load_onnx_decoder(tmp_path).close()
    path = tmp_path / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else bytes(range(256)) * 9)
    with pytest.raises(LoadError, match=name):
        OnnxDecoder(
            tmp_path / "decoder.onnx",
            tokenizer=tmp_path / "tokenizer.json",
            embeddings=tmp_path / "embeddings.npy",
            context_length=64,
            threads=1,
        )


def test_files_of_different_bundles(tmp_path: Path) -> None:
    load_onnx_decoder(tmp_path).close()
    arguments: dict[str, Any] = {
        "tokenizer": tmp_path / "tokenizer.json",
        "embeddings": tmp_path / "embeddings.npy",
        "context_length": 64,
        "threads": 1,
    }
    np.save(tmp_path / "narrow.npy", np.zeros((len(TOKENS), 63), np.float16))
    with pytest.raises(LoadError, match="not of one bundle"):
        OnnxDecoder(
            tmp_path / "decoder.onnx", **{**arguments, "embeddings": tmp_path / "narrow.npy"}
        )
    np.save(tmp_path / "integers.npy", np.zeros((len(TOKENS), 64), np.int8))
    with pytest.raises(LoadError, match="no embedding table"):
        OnnxDecoder(
            tmp_path / "decoder.onnx", **{**arguments, "embeddings": tmp_path / "integers.npy"}
        )
    with pytest.raises(LoadError, match="sliding window is 8"):
        OnnxDecoder(tmp_path / "decoder.onnx", **arguments, window=8)
    graph = onnx.load(tmp_path / "decoder.onnx")
    graph.graph.output[0].name = "answer"
    graph.graph.node[-1].output[0] = "answer"
    onnx.save(graph, tmp_path / "other.onnx")
    with pytest.raises(LoadError, match=r"no decoder graph of edgevlm.*its outputs answer"):
        OnnxDecoder(tmp_path / "other.onnx", **arguments)


def test_refuses_a_context_larger_than_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system, "available_memory", lambda: 2**18)
    with pytest.raises(LoadError, match="shorter context"):
        load_onnx_decoder(tmp_path, context_length=2048)


def test_closed(folder: Path) -> None:
    decoder = load_onnx_decoder(folder)
    decoder.decode_tokens([1], positions(0, 1), logits=True)
    sampler = decoder.sampler(Sampling())
    decoder.close()
    decoder.close()
    for call in (
        sampler.sample,
        decoder.logits,
        lambda: decoder.decode_tokens([1], positions(1, 2), logits=True),
        lambda: decoder.truncate(Place()),
        decoder.save,
        decoder.branch,
        lambda: decoder.restore(np.zeros(9, np.uint8), place(1)),
        lambda: decoder.sampler(Sampling()),
    ):
        with pytest.raises(ClosedError, match="closed"):
            call()
