"""Requests that are cancelled at any moment stop, and later answers are those of a fresh model."""

from __future__ import annotations

import _thread
import functools
import gc
import multiprocessing
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgevlm import VLM, Answer, CancelledError, ChunkStream, ClosedError, DeadlineError, InputError
from edgevlm.cancellation import CancelSignal
from edgevlm.options import Generation
from edgevlm.results import collect
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from tests.conftest import picture
from tests.support.oracle import BUNDLES
from tests.support.runtime_calls import RuntimeCalls
from tests.support.serving import until

SECONDS = 60
"""Longest time that a test waits, in seconds."""

CANCELS = int(os.environ.get("EDGEVLM_CANCELS", "200"))
"""Cancelled requests of the slow test."""

LARGE, OTHER, SMALL = picture(1, 256, 256), picture(2, 300, 200), picture(3)
"""Images; SmolVLM splits the first two into tiles."""

MODELS: dict[str, dict[str, Any]] = {
    "smolvlm": {"model": BUNDLES / "smolvlm", "threads": 1},
    "smolvlm, encoding ahead": {"model": BUNDLES / "smolvlm", "threads": 1},
    "smolvlm in OpenVINO": {"model": BUNDLES / "smolvlm", "threads": 1, "device": "openvino"},
    "nano with 2 threads": {"model": "edgevlm-nano", "threads": 2},
}


# --- the signal ---------------------------------------------------------------------------------


def test_a_signal_interrupts_what_runs_and_refuses_what_comes() -> None:
    signal = CancelSignal()
    interrupted: list[str] = []
    with signal.interrupting(functools.partial(interrupted.append, "first")):
        pass
    with signal.interrupting(functools.partial(interrupted.append, "second")):
        signal.check()
        signal.cancel()
        assert signal.cancelled
        with pytest.raises(CancelledError):
            signal.check()
    assert interrupted == ["second"]
    with pytest.raises(CancelledError), signal.interrupting(lambda: None):
        pytest.fail("the block of a cancelled request must not run")


def test_nothing_is_interrupted_after_its_block() -> None:
    """A slow `cancel` of one request cannot stop the work of the next one."""
    signal = CancelSignal()
    interrupting, allowed = threading.Event(), threading.Event()
    order: list[str] = []

    def interrupt() -> None:
        interrupting.set()
        assert allowed.wait(SECONDS)
        order.append("interrupted")

    canceller = threading.Thread(target=signal.cancel)
    with signal.interrupting(interrupt):
        canceller.start()
        assert interrupting.wait(SECONDS)
        threading.Timer(0.05, allowed.set).start()
    order.append("next request")
    canceller.join()
    assert order == ["interrupted", "next request"]


def test_an_interrupt_may_cancel_again() -> None:
    """As a signal handler that interrupts `cancel` in its own thread."""
    signal = CancelSignal()
    with signal.interrupting(signal.cancel):
        threading.Thread(target=signal.check).run()
        signal._interrupts[0] = lambda: None
        signal.cancel()
        signal._interrupts[0] = signal.cancel


# --- random moments -----------------------------------------------------------------------------


def one_question(vlm: VLM) -> ChunkStream:
    return vlm.stream(LARGE, "What is it?", max_tokens=12)


def two_images(vlm: VLM) -> ChunkStream:
    return vlm.stream([OTHER, SMALL], "What differs?", max_tokens=12, cache_images=False)


def text_alone(vlm: VLM) -> ChunkStream:
    return vlm.stream(None, "Say something about the sea. " * 30, max_tokens=12)


def drawn(vlm: VLM) -> ChunkStream:
    return vlm.stream(SMALL, "What?", max_tokens=12, temperature=1.0, seed=7, top_logprobs=2)


REQUESTS = (one_question, two_images, text_alone, drawn)


@dataclass
class Expected:
    """What a model answers that was never cancelled."""

    answers: list[tuple[int, ...]]
    """Token ids for each of `REQUESTS`."""
    embeddings: NDArray[np.float32]
    logits: NDArray[np.float32]


def forced(vlm: VLM) -> NDArray[np.float32]:
    """Return logits to the last bit: nothing of the KV cache is used, but the embeddings that are cached."""
    content = [{"type": "image", "image": LARGE}, {"type": "text", "text": "What is it?"}]
    return vlm.logits([{"role": "user", "content": content}], [5, 6, 7])


def expected_of(vlm: VLM) -> Expected:
    return Expected(
        [collect(request(vlm)).token_ids for request in REQUESTS],
        vlm.encode_image(LARGE),
        forced(vlm),
    )


def expected_of_model(name: str) -> Expected:
    with load(name) as fresh:
        return expected_of(fresh)


def load(name: str) -> VLM:
    vlm = VLM.from_pretrained(**MODELS[name])
    vlm._engine._encoder.ahead = "ahead" in name
    return vlm


def cancel_at(
    calls: RuntimeCalls, request: Callable[[VLM], ChunkStream], at: int, wait: float
) -> bool:
    """Cancel a request from another thread, `wait` seconds after its call number `at` began.

    Returns:
        False if it had ended before.
    """
    begun = threading.Event()
    calls.expect(at, begun.set)
    stream = request(calls.vlm)

    def cancel() -> None:
        assert begun.wait(SECONDS)
        time.sleep(wait)
        stream.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        collect(stream)
    except CancelledError:
        return True
    finally:
        begun.set()
        canceller.join()
    return False


def check_caches(vlm: VLM) -> None:
    """What the engine believes to be in the KV cache is there, and nothing else."""
    decoder = vlm._engine._decoder
    assert isinstance(decoder, LlamaCppDecoder)
    positions = vlm.cache_info().positions
    assert decoder._held.place.entries == positions
    assert decoder._llama.llama_memory_seq_pos_max(decoder._memory, 0) == positions - 1


def cancel_often(
    name: str, expected: Expected, count: int, after_each: Callable[[int], object]
) -> Counter[str]:
    """Cancel requests at random moments, and compare an answer after each of them.

    Returns:
        How often which call of a runtime was cancelled.
    """
    random = np.random.default_rng(count)
    hits: Counter[str] = Counter()
    with load(name) as vlm:
        calls = RuntimeCalls(vlm)
        durations: list[float] = []
        phases: list[dict[str, list[int]]] = []
        """For each request, the numbers of the calls by their name."""
        for request in REQUESTS:
            calls.expect(-1, lambda: None)
            start = time.perf_counter()
            collect(request(vlm))
            phases.append({name: [] for name in calls.names})
            for number, called in enumerate(calls.names):
                phases[-1][called].append(number)
            durations.append((time.perf_counter() - start) / len(calls.names))
        for trial in range(count):
            vlm._engine._encoder.cache.clear()
            if trial % 2:
                vlm._engine._kv_cache.reset()
            which = int(random.integers(len(REQUESTS)))
            at = int(random.choice(phases[which][random.choice(list(phases[which]))]))
            wait = random.uniform(0, 1.2 * durations[which])
            if cancel_at(calls, REQUESTS[which], at, wait):
                hits[calls.names[-1]] += 1
            check_caches(vlm)
            calls.expect(-1, lambda: None)
            following = int(random.integers(len(REQUESTS)))
            found = collect(REQUESTS[following](vlm)).token_ids
            assert found == expected.answers[following], (trial, which, at, following)
            if trial % 5 == 0:
                np.testing.assert_array_equal(vlm.encode_image(LARGE), expected.embeddings)
                np.testing.assert_array_equal(forced(vlm), expected.logits)
            after_each(trial)
    assert not any(thread.name.startswith("edgevlm-vision") for thread in threading.enumerate())
    return hits


@pytest.mark.parametrize("name", MODELS)
def test_answers_after_cancelled_requests_are_those_of_a_fresh_model(name: str) -> None:
    """200 requests of all models together."""
    count = 20 if "nano" in name else 60
    hits = cancel_often(name, expected_of_model(name), count, lambda _: None)
    assert hits.total() > 5, "hardly any request was cancelled in time"


def fresh_process(name: str) -> Expected:
    """Return what a model answers in a process that does nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(expected_of_model, name).result(SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_answers_after_cancelled_requests_are_those_of_a_fresh_process(name: str) -> None:
    """`CANCELS` requests of all models together; they leave no memory and no stream behind."""
    share = 0.1 if "nano" in name else 0.3
    count = round(CANCELS * share)
    memory: list[int | None] = []
    gc.collect()
    others = open_streams()

    def measure(trial: int) -> None:
        if trial in (count // 3, count - 1):
            gc.collect()
            memory.append(system.resident_memory())

    hits = cancel_often(name, fresh_process(name), count, measure)
    assert hits.total() > 5, "hardly any request was cancelled in time"
    if CANCELS >= 1000:  # fewer may miss a phase; others cancel each call of each phase
        assert hits["encode"] and hits["decode_tokens"] and hits["decode_embeddings"]
    before, after = memory
    if before is not None and after is not None:
        assert after - before < 16 * 2**20
    gc.collect()
    assert open_streams() <= others


def open_streams() -> int:
    """Count the streams of this process; tests before may have left some to threads that have ended."""
    return sum(issubclass(type(value), ChunkStream) for value in gc.get_objects())


# --- streams, chats and the model ---------------------------------------------------------------


@pytest.fixture
def calls(fresh: Callable[..., VLM]) -> Iterator[RuntimeCalls]:
    yield RuntimeCalls(fresh())


def test_a_cancelled_call_of_a_runtime_does_not_run(calls: RuntimeCalls) -> None:
    """Each call of a request in turn is cancelled before it computes; no other call follows."""
    calls.expect(-1, lambda: None)
    whole = collect(one_question(calls.vlm))
    count = len(calls.names)
    for at in range(count):
        calls.vlm._engine._encoder.cache.clear()
        calls.vlm._engine._kv_cache.reset()
        stream = one_question(calls.vlm)
        calls.expect(at, stream.cancel)
        with pytest.raises(CancelledError):
            collect(stream)
        assert len(calls.names) == at + 1
        check_caches(calls.vlm)
    calls.expect(-1, lambda: None)
    assert collect(one_question(calls.vlm)).token_ids == whole.token_ids


def test_closing_stops_the_call_that_another_thread_computes(calls: RuntimeCalls) -> None:
    """`close` waits for it; its reader gets no more chunks, and no error."""
    stream = one_question(calls.vlm)
    closer = threading.Thread(target=stream.close)

    def close() -> None:
        closer.start()
        while not stream._signal.cancelled:
            time.sleep(0.001)

    calls.expect(3, close)
    assert all(chunk.finish_reason is None for chunk in stream)
    assert len(calls.names) == 4
    closer.join(SECONDS)
    assert not calls.vlm._engine._lock._lock.locked()


def test_closing_the_model_stops_requests_without_a_stream(calls: RuntimeCalls) -> None:
    closer = threading.Thread(target=calls.vlm.close)

    def close() -> None:
        closer.start()
        while not calls.vlm._engine._lock.closed:
            time.sleep(0.001)

    calls.expect(2, close)
    with pytest.raises(ClosedError, match="the model is closed"):
        calls.vlm.score(LARGE, "Which?", ["one", "two"])
    closer.join(SECONDS)
    assert not closer.is_alive()


def test_a_cancelled_turn_keeps_what_was_said(calls: RuntimeCalls) -> None:
    """Whether the cancel comes in a step or between two of them."""
    chat = calls.vlm.chat()
    chat.send("What?", LARGE, max_tokens=4)
    for inside in (True, False):
        stream = chat.stream("And?", max_tokens=40)
        said = ""
        while not said:
            said += next(stream).text
        if inside:
            calls.expect(0, stream.cancel)
        else:
            stream.cancel()
        with pytest.raises(CancelledError):
            list(stream)
        assert chat.messages[-1]["content"][0]["text"] == said
    turns = len(chat.messages)
    stream = chat.stream("And then?", max_tokens=4)
    calls.expect(0, stream.cancel)
    with pytest.raises(CancelledError):
        list(stream)
    assert len(chat.messages) == turns
    assert chat.send("Why?", max_tokens=3).stats.cached_tokens > 0


def test_the_end_of_an_answer_cannot_be_cancelled(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    stream = vlm.stream(None, "What?", max_tokens=3)
    last = next(chunk for chunk in stream if chunk.finish_reason is not None)
    assert last.stats is not None
    answer: Answer = vlm.ask(None, "What?", max_tokens=3)  # the last chunk has freed the model
    stream.cancel()
    assert list(stream) == []
    assert len(answer.token_ids) == 3


# --- deadlines ----------------------------------------------------------------------------------


def expire(stream: ChunkStream) -> Callable[[], None]:
    """Return a function that lets the deadline of a stream expire now."""
    return stream._signal._expire


def test_an_answer_ends_at_its_deadline(calls: RuntimeCalls) -> None:
    """The deadline expires before each call of a runtime in turn."""
    vlm, threads = calls.vlm, _thread._count()
    whole = collect(one_question(vlm))
    count, cut = len(calls.names), 0
    for at in range(count):
        vlm._engine._encoder.cache.clear()
        vlm._engine._kv_cache.reset()
        stream = vlm.stream(LARGE, "What is it?", max_tokens=12, within=1000)
        calls.expect(at, expire(stream))
        try:
            answer = collect(stream)
        except DeadlineError as error:
            assert isinstance(error, TimeoutError) and "1000 s" in str(error)
            assert not cut, "an answer that had begun was lost"
        else:
            cut += 1
            assert answer.finish_reason == "deadline"
            assert answer.token_ids == whole.token_ids[: len(answer.token_ids)]
            assert 0 < len(answer.token_ids) < len(whole.token_ids)
        assert len(calls.names) == at + 1
        check_caches(vlm)
    assert 0 < cut < count
    calls.expect(-1, lambda: None)
    again = vlm.ask(LARGE, "What is it?", max_tokens=12, within=1000)
    assert (again.token_ids, again.finish_reason) == (whole.token_ids, whole.finish_reason)
    until(lambda: _thread._count() <= threads)


def test_a_deadline_expires_while_the_request_waits(calls: RuntimeCalls) -> None:
    with calls.vlm.stream(None, "What?", max_tokens=50) as holding:
        next(holding)
        with ThreadPoolExecutor(1) as pool, pytest.raises(DeadlineError, match=r"0\.1 s"):
            pool.submit(calls.vlm.ask, None, "What?", within=0.1).result(SECONDS)
        next(holding)


def test_a_timer_interrupts_what_computes() -> None:
    signal, interrupted = CancelSignal(within=0.5), threading.Event()
    with signal.timer(), signal.interrupting(interrupted.set):
        assert interrupted.wait(SECONDS)
        with pytest.raises(DeadlineError, match=r"the 0\.5 s"):
            signal.check()
    assert signal.expired and not signal.cancelled
    signal.cancel()
    with pytest.raises(CancelledError, match="cancelled"):
        signal.check()


@pytest.mark.parametrize("within", [0, -1, "1", True, float("nan"), float("inf")])
def test_a_deadline_is_checked(within: Any) -> None:
    with pytest.raises(InputError, match="within"):
        Generation(within=within)
