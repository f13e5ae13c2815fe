"""The decoder against a Llama in numpy with the same random weights."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import (
    CancelledError,
    ClosedError,
    ContextError,
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


@pytest.fixture(scope="module", params=[ExactDecoder, LlamaCppDecoder])
def shared(tiny_file: Path, request: pytest.FixtureRequest) -> Iterator[LlamaCppDecoder]:
    """A decoder without flash attention, and one with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system, "is_intel", lambda: False)
        decoder = request.param(
            tiny_file,
            context_length=CONTEXT_LENGTH,
            bidirectional=CONTEXT_LENGTH,
            threads=1,
        )
    yield decoder
    decoder.close()


@pytest.fixture
def decoder(shared: LlamaCppDecoder) -> DecoderRuntime:
    """An empty decoder that supports bidirectional attention."""
    shared.truncate(Place())
    return shared


# --- logits -------------------------------------------------------------------------------------


def test_logits_are_those_of_the_reference(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(40)
    theirs = reference_logits(model, tokens)
    for index, token in enumerate(tokens):
        ours = decoded(decoder, [token], index)
        assert ours.shape == (len(TOKENS),) and ours.dtype == np.float32
        assert relative_error(ours, theirs[index]) < bound(decoder)
    decoder.truncate(Place())
    assert relative_error(decoded(decoder, tokens), theirs[-1]) < bound(decoder)


def test_f16_weights_and_cache(model: TinyLlama, tmp_path: Path) -> None:
    f16 = LlamaCppDecoder(
        write_decoder(tmp_path / "f16.gguf", model, np.float16), context_length=64, threads=1
    )
    tokens = some_tokens(50)
    assert relative_error(decoded(f16, tokens), reference_logits(model, tokens)[-1]) < 5e-3


def test_embeddings_equal_tokens(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(60)
    by_token = decoded(decoder, tokens)
    decoder.truncate(Place())
    rows = decoder.embed(tokens)
    assert np.array_equal(rows, model.embed(tokens))
    decoder.decode_embeddings(rows, positions(0, 60), logits=True)
    assert np.array_equal(decoder.logits(), by_token)


def test_embeddings_between_tokens(decoder: DecoderRuntime, model: TinyLlama) -> None:
    """As in a prompt with an image: rows that are no token's, with text before and after."""
    tokens = some_tokens(30)
    rows = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    decoder.decode_tokens(tokens[:10], positions(0, 10), logits=False)
    decoder.decode_embeddings(rows, positions(10, 30), logits=False)
    ours = decoded(decoder, tokens[10:], 30)
    table = model.embed(tokens)
    theirs = model.logits(np.concatenate([table[:10], rows, table[10:]]))[-1]
    assert relative_error(ours, theirs) < bound(decoder)


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


def test_truncating_and_decoding_again_equals_a_fresh_start(decoder: DecoderRuntime) -> None:
    tokens, others = some_tokens(50), some_tokens(30, seed=1)
    fresh = decoded(decoder, [*tokens[:20], *others])
    decoder.truncate(Place())
    decoded(decoder, tokens)
    assert decoder.truncate(place(20))
    assert not decoder.truncate(place(30))
    assert relative_error(decoded(decoder, others, 20), fresh) < 1e-5


# --- attention in both directions ---------------------------------------------------------------


def prefix_logits(
    model: TinyLlama, tokens: list[int], prefix: int, start: int = 0
) -> NDArray[np.float32]:
    """Return the last logits; positions from `start` to ``start + prefix`` attend to each other."""
    visible = np.tri(len(tokens), dtype=bool)
    visible[start : start + prefix, : start + prefix] = True
    last: NDArray[np.float32] = model.logits(model.embed(tokens), visible)[-1]
    return last


def test_a_prefix_sees_itself(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens, prefix = some_tokens(70), 60
    decoder.decode_embeddings(
        decoder.embed(tokens[:prefix]), positions(0, prefix), logits=True, bidirectional=True
    )
    last = decoder.logits()
    assert relative_error(last, prefix_logits(model, tokens[:prefix], prefix)) < bound(decoder)
    answer = decoded(decoder, tokens[prefix:], prefix)
    theirs = prefix_logits(model, tokens, prefix)
    assert relative_error(answer, theirs) < bound(decoder)
    assert relative_error(reference_logits(model, tokens)[-1], theirs) > 0.05


def test_bidirectional_after_causal(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(45)
    decoded(decoder, tokens[:10])
    decoder.decode_embeddings(
        decoder.embed(tokens[10:40]), positions(10, 40), logits=False, bidirectional=True
    )
    ours = decoded(decoder, tokens[40:], 40)
    assert relative_error(ours, prefix_logits(model, tokens, 30, start=10)) < bound(decoder)


def test_a_prefix_as_long_as_the_context(decoder: DecoderRuntime, model: TinyLlama) -> None:
    tokens = some_tokens(CONTEXT_LENGTH)
    decoder.decode_embeddings(
        decoder.embed(tokens), positions(0, CONTEXT_LENGTH), logits=True, bidirectional=True
    )
    theirs = prefix_logits(model, tokens, CONTEXT_LENGTH)
    assert relative_error(decoder.logits(), theirs) < bound(decoder)


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


def test_a_restored_cache_goes_on_alike(decoder: DecoderRuntime) -> None:
    tokens = some_tokens(60)
    decoded(decoder, tokens[:40])
    copy = decoder.save()
    expected = decoded(decoder, tokens[40:], 40)
    decoder.truncate(Place())
    decoded(decoder, some_tokens(90)[30:])
    decoder.restore(copy, place(40))
    with pytest.raises(InputError, match="no logits"):
        decoder.logits()
    np.testing.assert_array_equal(decoded(decoder, tokens[40:], 40), expected)


def test_a_copy_is_as_large_as_what_it_holds(decoder: DecoderRuntime) -> None:
    decoded(decoder, some_tokens(10))
    small = decoder.save().nbytes
    decoder.truncate(Place())
    decoded(decoder, some_tokens(100))
    assert 8 * small < decoder.save().nbytes < 11 * small


@pytest.mark.parametrize("damage", ["cut", "empty", "length", "noise"])
def test_a_damaged_copy_is_refused_and_nothing_held(decoder: DecoderRuntime, damage: str) -> None:
    decoded(decoder, some_tokens(40))
    copy, length = decoder.save(), 40
    if damage == "cut":
        copy = copy[: len(copy) // 2]
    elif damage == "empty":
        copy = copy[:0]
    elif damage == "length":
        length = 39
    else:
        copy = np.random.default_rng(3).integers(0, 256, copy.nbytes, dtype=np.uint8)
    with pytest.raises(InferenceError, match="could not restore"):
        decoder.restore(copy, place(length))
    decoder.decode_tokens([1], positions(0, 1), logits=True)


def test_logits_must_have_been_asked_for(decoder: DecoderRuntime) -> None:
    decoder.decode_tokens([1], positions(0, 1), logits=True)
    decoder.decode_tokens([1], positions(1, 2), logits=False)
    with pytest.raises(InputError, match="logits=True"):
        decoder.logits()
    with pytest.raises(InputError, match="logits=True"):
        decoder.sampler(Sampling()).sample()


def test_logits_are_a_copy(decoder: DecoderRuntime) -> None:
    first = decoded(decoder, [1])
    copy = first.copy()
    decoded(decoder, [2], 1)
    assert np.array_equal(first, copy)
    first[:] = 0


# --- wrong use ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tokens", [[], [-1], [0, len(TOKENS)], [1.0], [[1]], 5, ["a"], None, [2**40]]
)
def test_refuses_wrong_tokens(decoder: DecoderRuntime, tokens: Any) -> None:
    with pytest.raises(InputError, match="token id"):
        decoder.decode_tokens(tokens, positions(0, 1), logits=True)
    with pytest.raises(InputError, match="token id"):
        decoder.embed(tokens)


@pytest.mark.parametrize(
    "wrong",
    [[], [0], [0, 1, 2], [1, 2], [0, 2], [1, 0], [0, 0], [-1, 0], [0.0, 1.0], [[0, 1]], None],
    ids=str,
)
def test_refuses_wrong_positions(decoder: DecoderRuntime, wrong: Any) -> None:
    with pytest.raises(InputError, match="positions must"):
        decoder.decode_tokens([1, 2], np.array(wrong), logits=True)
    assert decoded(decoder, [1, 2]).shape == (len(TOKENS),)
    with pytest.raises(InputError, match="from 2"):
        decoder.decode_tokens([1, 2], positions(0, 2), logits=True)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 64)),
        np.zeros((2, 64), np.float16),
        np.zeros((2, 63), np.float32),
        np.zeros(64, np.float32),
        np.zeros((0, 64), np.float32),
        np.full((2, 64), np.nan, np.float32),
        np.full((2, 64), np.inf, np.float32),
        [[0.0] * 64],
        None,
    ],
    ids=["f64", "f16", "narrow", "flat", "empty", "nan", "inf", "list", "none"],
)
def test_refuses_wrong_embeddings(decoder: DecoderRuntime, wrong: Any) -> None:
    with pytest.raises(InputError, match="embeddings"):
        decoder.decode_embeddings(wrong, positions(0, 2), logits=True)


def test_embeddings_need_not_be_contiguous(decoder: DecoderRuntime) -> None:
    rows = np.random.default_rng(0).standard_normal((10, 64)).astype(np.float32)
    decoder.decode_embeddings(rows, positions(0, 10), logits=True)
    expected = decoder.logits()
    decoder.truncate(Place())
    decoder.decode_embeddings(np.asfortranarray(rows), positions(0, 10), logits=True)
    assert np.array_equal(decoder.logits(), expected)


def test_the_context_ends(decoder: DecoderRuntime) -> None:
    assert decoder.context_length == CONTEXT_LENGTH
    tokens = some_tokens(CONTEXT_LENGTH + 1)
    with pytest.raises(
        ContextError, match=f"{CONTEXT_LENGTH + 1} entries after 0 .* {CONTEXT_LENGTH}"
    ):
        decoder.decode_tokens(tokens, positions(0, len(tokens)), logits=True)
    decoder.decode_tokens(tokens[:-1], positions(0, CONTEXT_LENGTH), logits=True)
    with pytest.raises(ContextError, match=f"1 entries after {CONTEXT_LENGTH} "):
        decoder.decode_tokens([1], positions(CONTEXT_LENGTH, CONTEXT_LENGTH + 1), logits=True)


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
    decoder: LlamaCppDecoder, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """The signal comes after the last check in Python, so llama.cpp alone can see it."""
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


@pytest.mark.parametrize("position", [-1, 1.5, "0", None, True])
def test_refuses_to_truncate_elsewhere(decoder: DecoderRuntime, position: Any) -> None:
    with pytest.raises(InputError, match="position must be"):
        decoder.truncate(place(position))


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
