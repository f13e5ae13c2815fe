"""What the decoder in llama.cpp does beside what every decoder does (`test_decoders.py`)."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import (
    CancelledError,
    ClosedError,
    InferenceError,
    InputError,
    LoadError,
)
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampling
from tests.support.tiny_decoder import (
    CONTEXT_LENGTH,
    EXACT,
    TOKENS,
    ExactDecoder,
    TinyLlama,
    bound,
    decoded,
    place,
    positions,
    reference_logits,
    reference_model,
    relative_error,
    some_tokens,
    write_decoder,
)


@pytest.fixture(scope="module")
def model() -> TinyLlama:
    return reference_model()


# --- logits -------------------------------------------------------------------------------------


def test_f16_weights_and_cache(model: TinyLlama, tmp_path: Path) -> None:
    f16 = LlamaCppDecoder(
        write_decoder(tmp_path / "f16.gguf", model, np.float16), context_length=64, threads=1
    )
    tokens = some_tokens(50)
    assert relative_error(decoded(f16, tokens), reference_logits(model, tokens)[-1]) < 5e-3


def test_long_prompts_are_cut_into_batches(tiny_file: Path, model: TinyLlama) -> None:
    causal = ExactDecoder(tiny_file, context_length=CONTEXT_LENGTH, threads=1)
    tokens = some_tokens(CONTEXT_LENGTH)
    assert len(tokens) > 2 * LlamaCppDecoder.BATCH_SIZE
    theirs = reference_logits(model, tokens)[-1]
    assert relative_error(decoded(causal, tokens), theirs) < EXACT
    causal.truncate(Place())
    causal.decode_embeddings(causal.embed(tokens), positions(0, len(tokens)), logits=True)
    assert relative_error(causal.logits(), theirs) < EXACT
    causal.truncate(Place())
    for start in range(0, CONTEXT_LENGTH, 100):
        piecemeal = decoded(causal, tokens[start : start + 100], start)
    assert relative_error(piecemeal, theirs) < EXACT


# --- attention in both directions ---------------------------------------------------------------


def prefix_logits(
    model: TinyLlama, tokens: list[int], prefix: int, start: int = 0
) -> NDArray[np.float32]:
    """Return the last logits; positions from `start` to ``start + prefix`` attend to each other."""
    visible = np.tri(len(tokens), dtype=bool)
    visible[start : start + prefix, : start + prefix] = True
    last: NDArray[np.float32] = model.logits(model.embed(tokens), visible)[-1]
    return last


class PlainDecoder(LlamaCppDecoder):
    def _use_flash_attention(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("intel", "amx", "context_length", "flash"),
    [
        (True, False, 64, True),
        (True, True, 64, False),
        (True, False, CONTEXT_LENGTH, False),
        (False, False, CONTEXT_LENGTH, True),
    ],
)
def test_where_flash_attention_is_used(
    tiny_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    intel: bool,
    amx: bool,
    context_length: int,
    flash: bool,
) -> None:
    """The saved cache shows it: with flash attention llama.cpp stores values in rows, else in columns."""
    monkeypatch.setattr(system, "is_intel", lambda: intel)
    monkeypatch.setattr(system, "has_amx", lambda: amx)
    monkeypatch.setattr(LlamaCppDecoder, "MAX_FLASH_CONTEXT", 1000)
    decoder = LlamaCppDecoder(tiny_file, context_length=context_length, threads=1)
    decoded(decoder, some_tokens(10))
    plain = PlainDecoder(tiny_file, context_length=64, threads=1)
    if flash:
        with pytest.raises(InferenceError, match="could not restore"):
            plain.restore(decoder.save(), place(10))
    else:
        plain.restore(decoder.save(), place(10))


@pytest.mark.parametrize("kind", [ExactDecoder, LlamaCppDecoder])
@pytest.mark.parametrize("entries", [20, 200, 700])
def test_as_many_entries_attend_to_each_other_as_were_asked_for(
    tiny_file: Path,
    model: TinyLlama,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[LlamaCppDecoder],
    entries: int,
) -> None:
    """Fewer than a batch without flash attention, more, and more than a batch with it."""
    monkeypatch.setattr(system, "is_intel", lambda: False)
    decoder = kind(tiny_file, context_length=CONTEXT_LENGTH, bidirectional=entries, threads=1)
    tokens = some_tokens(entries + 15)
    decoded(decoder, tokens[:10])
    rows = decoder.embed(tokens[10:])
    with pytest.raises(
        InputError, match=rf"{entries + 1} embeddings cannot attend .*bidirectional={entries}; "
    ):
        decoder.decode_embeddings(
            rows[: entries + 1], positions(10, 11 + entries), logits=True, bidirectional=True
        )
    decoder.decode_embeddings(
        rows[:entries], positions(10, 10 + entries), logits=False, bidirectional=True
    )
    ours = decoded(decoder, tokens[10 + entries :], 10 + entries)
    assert relative_error(ours, prefix_logits(model, tokens, entries, start=10)) < bound(decoder)
    decoder.truncate(place(10))  # causal calls have no limit
    decoder.decode_embeddings(rows, positions(10, 15 + entries), logits=True)
    theirs = reference_logits(model, tokens)[-1]
    assert relative_error(decoder.logits(), theirs) < bound(decoder)


def test_bidirectional_must_be_asked_for(tiny_file: Path) -> None:
    causal = LlamaCppDecoder(tiny_file, context_length=64, threads=1)
    with pytest.raises(
        InputError, match=r"2 embeddings cannot attend to each other.*bidirectional=0"
    ):
        causal.decode_embeddings(
            causal.embed([1, 2]), positions(0, 2), logits=True, bidirectional=True
        )


# --- wrong use ----------------------------------------------------------------------------------


def test_a_failed_decoding_leaves_nothing(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt between two batches, the cache is as before the call."""
    decoder = LlamaCppDecoder(tiny_file, context_length=CONTEXT_LENGTH, threads=1)
    tokens = some_tokens(1100)
    expected = decoded(decoder, tokens)
    decoder.truncate(place(5))
    decode, calls = decoder._llama.llama_decode, []

    def interrupted(*arguments: Any) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        status: int = decode(*arguments)
        return status

    monkeypatch.setattr(decoder._llama, "llama_decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoder.decode_tokens(tokens[5:], positions(5, 1100), logits=True)
    monkeypatch.undo()
    assert relative_error(decoded(decoder, tokens[5:], 5), expected) < 1e-5


@pytest.mark.parametrize("threads", [1, 2])
def test_a_decoding_that_is_cancelled_at_any_node_leaves_nothing(
    tiny_file: Path, threads: int
) -> None:
    """llama.cpp stops after each of its nodes in turn, also in the second batch of a call."""
    decoder = LlamaCppDecoder(tiny_file, context_length=CONTEXT_LENGTH, threads=threads)
    tokens = some_tokens(600)
    decoded(decoder, tokens[:5])
    expected = decoded(decoder, tokens[5:], 5)
    cancel, nodes, last = CancelSignal(), 0, -1

    @decoder._llama.ggml_abort_callback  # type: ignore[untyped-decorator]  # ctypes makes it
    def count(_: object) -> bool:
        nonlocal nodes
        nodes += 1
        if nodes == last:
            cancel.cancel()
        return cancel.cancelled

    decoder._llama.llama_set_abort_callback(decoder._context, count, None)
    decoder.truncate(place(5))
    decoded(decoder, tokens[5:], 5)
    total = nodes
    for last in range(1, total + 1, 3):
        decoder.truncate(place(5))
        cancel, nodes = CancelSignal(), 0
        with pytest.raises(CancelledError):
            decoder.decode_tokens(tokens[5:], positions(5, 600), logits=True, cancel=cancel)
        assert nodes == last
        assert decoder._llama.llama_memory_seq_pos_max(decoder._memory, 0) == 4
        with pytest.raises(InputError, match="there are no logits"):
            decoder.logits()
        cancel = CancelSignal()
        np.testing.assert_array_equal(decoded(decoder, tokens[5:], 5), expected)
    decoder.close()


@pytest.mark.parametrize("calls", [1, 2])
def test_a_signal_from_another_thread_stops_llama_cpp(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """The signal comes after the last check in Python, so llama.cpp alone can see it."""
    decoder = ExactDecoder(
        tiny_file, context_length=CONTEXT_LENGTH, bidirectional=CONTEXT_LENGTH, threads=1
    )
    monkeypatch.setattr(decoder, "batch_length", 512)
    tokens = some_tokens(1100)
    expected = decoded(decoder, tokens)
    decoder.truncate(place(0))
    cancel, decode = CancelSignal(), decoder._llama.llama_decode
    statuses: list[int] = []

    def cancelled(*arguments: Any) -> int:
        if len(statuses) == calls - 1:
            thread = threading.Thread(target=cancel.cancel)
            thread.start()
            thread.join()
        statuses.append(decode(*arguments))
        return statuses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(decoder._llama, "llama_decode", cancelled)
        with pytest.raises(CancelledError, match="cancelled before its end"):
            decoder.decode_tokens(tokens, positions(0, 1100), logits=True, cancel=cancel)
    assert statuses == [0] * (calls - 1) + [2]
    with pytest.raises(CancelledError):
        decoder.decode_tokens(tokens, positions(0, 1100), logits=True, cancel=cancel)
    np.testing.assert_array_equal(decoded(decoder, tokens), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"context_length": 0}, "context_length must be"),
        ({"context_length": -1}, "context_length must be"),
        ({"context_length": 2**40}, "context_length must be"),
        ({"context_length": "64"}, "context_length must be an integer"),
        ({"context_length": 64.0}, "context_length must be an integer"),
        ({"context_length": 2049}, "2049 is more than the 2048 positions"),
        ({"context_length": 64, "threads": 0}, "threads must be"),
        ({"context_length": 64, "threads": 10**6}, "threads must be"),
        ({"context_length": 64, "bidirectional": -1}, "bidirectional must be"),
        ({"context_length": 64, "bidirectional": 65}, "bidirectional must be"),
        ({"context_length": 64, "bidirectional": True}, "bidirectional must be"),
        ({"context_length": 64, "bidirectional": 1.5}, "bidirectional must be"),
        ({"context_length": 64, "gpu_layers": -2}, "gpu_layers must be"),
        ({"context_length": 64, "gpu_layers": None}, "gpu_layers must be"),
    ],
    ids=str,
)
def test_refuses_wrong_arguments(tiny_file: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LlamaCppDecoder(tiny_file, **arguments)


def test_refuses_a_context_larger_than_memory(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    LlamaCppDecoder(tiny_file, context_length=2048, threads=1).close()
    monkeypatch.setattr(system, "available_memory", lambda: 2**18)
    with pytest.raises(LoadError, match="shorter context"):
        LlamaCppDecoder(tiny_file, context_length=2048, threads=1)


@pytest.mark.parametrize(
    ("bidirectional", "flash", "fits"),
    [(0, False, True), (256, False, True), (2048, False, False), (2048, True, True)],
)
def test_attention_in_both_directions_needs_memory_for_its_scores(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, bidirectional: int, flash: bool, fits: bool
) -> None:
    """Without flash attention, 4 heads of 2048 x 2048 scores are 64 MiB, of 2048 x 256 8 MiB."""
    monkeypatch.setattr(system, "available_memory", lambda: 2**25)
    monkeypatch.setattr(LlamaCppDecoder, "_use_flash_attention", lambda self: flash)
    arguments: dict[str, Any] = {
        "context_length": 2048,
        "bidirectional": bidirectional,
        "threads": 1,
    }
    if fits:
        LlamaCppDecoder(tiny_file, **arguments).close()
    else:
        with pytest.raises(LoadError, match=r"attention 0\.1\).*shorter context"):
            LlamaCppDecoder(tiny_file, **arguments)


@pytest.mark.skipif(
    load_llama_cpp().llama_supports_gpu_offload(), reason="this llama.cpp has a GPU back end"
)
@pytest.mark.parametrize("layers", [1, -1])
def test_refuses_a_gpu_that_is_not_there(tiny_file: Path, layers: int) -> None:
    with pytest.raises(LoadError, match="GGML_CUDA"):
        LlamaCppDecoder(tiny_file, context_length=64, gpu_layers=layers)


def test_closed(tiny_file: Path) -> None:
    decoder = LlamaCppDecoder(tiny_file, context_length=64, threads=1)
    decoder.decode_tokens([1], positions(0, 1), logits=True)
    sampler = decoder.sampler(Sampling())
    decoder.close()
    decoder.close()
    calls: list[Callable[[], object]] = [
        sampler.sample,
        decoder.logits,
        lambda: decoder.tokenize("a"),
        lambda: decoder.piece(1),
        lambda: decoder.embed([1]),
        lambda: decoder.decode_tokens([1], positions(1, 2), logits=True),
        lambda: decoder.decode_embeddings(
            np.zeros((1, 64), np.float32), positions(1, 2), logits=True
        ),
        lambda: decoder.truncate(Place()),
        decoder.save,
        lambda: decoder.restore(np.zeros(9, np.uint8), place(1)),
        lambda: decoder.sampler(Sampling()),
    ]
    for call in calls:
        with pytest.raises(ClosedError, match="closed"):
            call()
    sampler.close()
    sampler.close()
    with pytest.raises(ClosedError, match="closed"):
        sampler.sample()


def test_collected_in_any_order(tiny_file: Path) -> None:
    decoder = LlamaCppDecoder(tiny_file, context_length=64, threads=1)
    sampler = decoder.sampler(Sampling())
    del decoder
    gc.collect()
    del sampler
    gc.collect()
    broken = LlamaCppDecoder.__new__(LlamaCppDecoder)
    del broken
    gc.collect()


def test_two_decoders_in_two_threads(tiny_file: Path, model: TinyLlama) -> None:
    prompts = [some_tokens(40, seed) for seed in range(2)]
    results: dict[int, NDArray[np.float32]] = {}

    def work(index: int) -> None:
        decoder = ExactDecoder(tiny_file, context_length=64, threads=1)
        for _ in range(5):
            decoder.truncate(Place())
            results[index] = decoded(decoder, prompts[index])
        decoder.close()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, prompt in enumerate(prompts):
        assert relative_error(results[index], reference_logits(model, prompt)[-1]) < EXACT


def test_llama_cpp_is_silent_unless_debugging(
    tiny_file: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "edgevlm"):
        LlamaCppDecoder(tiny_file, context_length=64, threads=1).close()
    assert not caplog.records
    with caplog.at_level(logging.DEBUG, "edgevlm"):
        LlamaCppDecoder(tiny_file, context_length=64, threads=1).close()
    assert any("n_ctx" in record.message for record in caplog.records)
    assert capfd.readouterr() == ("", "")


def test_is_a_decoder_runtime(tiny_file: Path) -> None:
    decoder: DecoderRuntime = LlamaCppDecoder(tiny_file, context_length=64)
    assert decoder.device == "cpu"
    assert (decoder.width, decoder.vocabulary_size) == (64, len(TOKENS))
