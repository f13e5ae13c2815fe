"""The lock of a model: requests and streams in many threads, closed, abandoned and timed out."""

from __future__ import annotations

import array
import fcntl
import functools
import gc
import os
import signal
import subprocess
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from edgevlm import VLM, BusyError, CancelledError, Chunk, ChunkStream, ClosedError, InputError
from edgevlm.cancellation import CancelSignal
from edgevlm.engine import model_lock
from edgevlm.engine.model_lock import ModelLock
from edgevlm.engine.stopwatch import Stopwatch
from edgevlm.options import GenerationOptions
from tests.conftest import picture
from tests.support.oracle import BUNDLES
from tests.support.serving import free_port, until

LONG: GenerationOptions = {"max_tokens": 500}
"""Random weights give no end of text, so this many tokens come."""


def test_an_exception_beside_an_open_stream_is_the_callers_own(fresh: Callable[..., VLM]) -> None:
    with pytest.raises(ZeroDivisionError), fresh() as vlm:
        stream = vlm.stream(None, "What?", **LONG)
        next(stream)
        _ = 1 / 0
    with pytest.raises(ClosedError, match="closed before this answer's end"):
        next(stream)
    with pytest.raises(ClosedError, match="the model is closed"):
        vlm.ask(None, "What?")


def test_a_request_that_nobody_could_ever_serve_is_refused_at_once(smolvlm: VLM) -> None:
    code = (
        "import sys; from edgevlm import VLM, BusyError\n"
        "vlm = VLM.from_pretrained('edgevlm-nano')\n"
        "stream = vlm.stream(None, 'Hello'); next(stream)\n"
        "try: vlm.ask(None, 'Hello')\n"
        "except BusyError as error: print(error)\n"
        "stream.close(); print(vlm.ask(None, 'Hello', max_tokens=1).finish_reason)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    refused, answered = done.stdout.splitlines()
    assert "unfinished stream" in refused and "close()" in refused
    assert answered == "length"


def test_requests_wait_for_a_stream_that_is_read(fresh: Callable[..., VLM]) -> None:
    """Only a stream that nobody reads times out, not one that is read slowly."""
    vlm = fresh(wait_timeout=0.5)
    stream = vlm.stream(None, "What?", max_tokens=12)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(vlm.ask, None, "What?", max_tokens=2)
        for _ in stream:
            time.sleep(0.15)
        assert waiting.result(60).token_ids


def test_a_waiting_request_times_out_with_a_clear_error(fresh: Callable[..., VLM]) -> None:
    vlm = fresh(wait_timeout=0.2)
    stream = vlm.stream(None, "What?", **LONG)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        for request in (
            lambda: vlm.ask(None, "What?", max_tokens=2),
            lambda: vlm.encode_image(picture(0)),
            lambda: vlm.score(None, "What?", ["a", "b"]),
            vlm.cache_info,
        ):
            with pytest.raises(BusyError, match=r"0\.2 s \(wait_timeout\).*close\(\)"):
                pool.submit(request).result(60)
        stream.close()
        pool.submit(vlm.ask, None, "What?", max_tokens=2).result(60)


@pytest.mark.parametrize("timeout", [-1, float("nan"), "long", True, 1e9])
def test_a_wait_timeout_is_checked(timeout: Any) -> None:
    with pytest.raises(InputError, match="wait_timeout"):
        VLM.from_pretrained(wait_timeout=timeout)


def test_a_stream_in_a_reference_cycle_frees_the_model(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    gc.disable()
    try:
        cycle: list[Any] = [vlm.stream(None, "What?", **LONG)]
        next(cycle[0])
        cycle.append(cycle)
        del cycle
        with ThreadPoolExecutor(1) as pool:  # nobody but the waiting request looks for it
            assert pool.submit(vlm.ask, None, "What?", max_tokens=2).result(60).token_ids
    finally:
        gc.enable()


def test_a_model_that_nobody_refers_to_is_freed_at_once() -> None:
    gc.disable()
    try:
        vlm = VLM.from_pretrained(BUNDLES / "smolvlm", threads=1)
        vlm.chat().send("What?", max_tokens=2)
        next(vlm.stream(None, "What?", **LONG))
        engine = weakref.ref(vlm._engine)
        del vlm
        assert engine() is None
    finally:
        gc.enable()


def test_each_chunk_may_be_read_by_another_thread(fresh: Callable[..., VLM]) -> None:
    """The threads that read a stream also make the next requests, as in a thread pool."""
    vlm = fresh()
    expected = {n: vlm.ask(None, f"Say {n}?", max_tokens=12).text for n in range(6)}
    with ThreadPoolExecutor(3) as pool:

        def read(number: int) -> str:
            stream = vlm.stream(None, f"Say {number}?", max_tokens=12)
            text = ""
            while (chunk := pool.submit(next, stream, None).result(60)) is not None:
                text += chunk.text
            return text

        with ThreadPoolExecutor(2) as readers:  # two, as three could take every thread of the pool
            assert dict(zip(expected, readers.map(read, expected), strict=True)) == expected


def test_a_web_framework_streams_from_its_thread_pool() -> None:
    """FastAPI reads each chunk in any free thread."""
    app = FastAPI()
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        expected = vlm.ask("examples/scene.png", "What is in the picture?").text

        @app.get("/")
        def answer() -> StreamingResponse:
            stream = vlm.stream("examples/scene.png", "What is in the picture?")
            return StreamingResponse(chunk.text for chunk in stream)

        port = free_port()
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            until(lambda: server.started)
            with ThreadPoolExecutor(6) as pool:
                asked = pool.map(
                    lambda _: httpx.get(f"http://127.0.0.1:{port}/", timeout=60).text, range(30)
                )
                assert set(asked) == {expected}
        finally:
            server.should_exit = True
            thread.join()


def test_closing_ends_a_stream_that_another_thread_reads(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    chunks: list[Chunk] = []
    errors: list[Exception] = []

    def read() -> None:
        try:
            for chunk in vlm.stream(None, "What?", max_tokens=1500):
                chunks.append(chunk)
        except ClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    until(lambda: len(chunks) > 3)
    vlm.close()
    vlm.close()
    thread.join(60)
    assert "closed before this answer's end" in str(errors[0])
    assert chunks[-1].finish_reason is None


def test_closing_a_stream_twice_and_from_elsewhere(smolvlm: VLM) -> None:
    stream = smolvlm.stream(None, "What?", **LONG)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(stream.close).result(60)
    stream.close()
    assert list(stream) == []
    with smolvlm.stream(None, "What?", **LONG) as stream:
        next(stream)
    smolvlm.ask(None, "What?", max_tokens=2)
    unread = smolvlm.stream(None, "What?", **LONG)
    unread.close()
    assert list(unread) == []


def test_a_turn_of_a_chat_is_kept_as_far_as_it_was_said(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    chat = vlm.chat()
    stream = chat.stream("What?", **LONG)
    said = ""
    while not said:
        said += next(stream).text
    del stream  # nobody reads on
    assert chat.messages[-1]["content"][0]["text"] == said
    assert chat.send("And?", max_tokens=3).stats.cached_tokens > 0


class Steps:
    """Chunks that run `action` at each step."""

    def __init__(self) -> None:
        self.action: Callable[[], object] = lambda: None
        self.freed = 0
        self.lock = ModelLock(self._free)

    def _free(self) -> None:
        self.freed += 1

    def stream(self) -> ChunkStream:
        def steps() -> Iterator[Chunk]:
            while True:
                self.action()
                yield Chunk("", ())

        return ChunkStream((chunk for chunk in steps()), self.lock, Stopwatch(), CancelSignal())


def test_closing_from_a_signal_handler_waits_for_the_step_that_it_interrupts() -> None:
    steps = Steps()
    stream = steps.stream()
    next(stream)
    previous = signal.signal(signal.SIGUSR1, lambda *_: steps.lock.close())
    try:
        steps.action = functools.partial(signal.raise_signal, signal.SIGUSR1)
        next(stream)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    assert steps.freed == 1
    with pytest.raises(ClosedError, match="closed"):
        next(stream)


def test_a_request_from_within_a_step_is_refused() -> None:
    steps = Steps()
    stream = steps.stream()
    steps.action = lambda: steps.lock.acquire(CancelSignal())
    with pytest.raises(BusyError, match="signal handler or a callback"):
        next(stream)
    steps.action = lambda: None
    with steps.lock.hold():
        pass


def test_reading_a_stream_within_itself_is_refused() -> None:
    steps = Steps()
    stream = steps.stream()
    steps.action = lambda: next(stream)
    with pytest.raises(BusyError, match="being read"):
        next(stream)


def test_cancelling_a_stream_that_nobody_reads_frees_the_model() -> None:
    steps = Steps()
    stream = steps.stream()
    next(stream)
    stream.cancel()
    with steps.lock.hold():
        pass
    for _ in range(2):
        with pytest.raises(CancelledError, match="cancelled before its end"):
            next(stream)
    unread = steps.stream()
    unread.cancel()
    with pytest.raises(CancelledError):
        next(unread)


def test_cancelling_does_not_wait_for_the_step_that_computes() -> None:
    steps = Steps()
    stream = steps.stream()
    computing, allowed = threading.Event(), threading.Event()

    def compute() -> None:
        computing.set()
        assert allowed.wait(60)

    steps.action = compute
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(next, stream)
        assert computing.wait(60)
        stream.cancel()
        assert not reading.done()
        allowed.set()
        reading.result(60)  # this step does not look at the signal
    with steps.lock.hold():
        pass
    with pytest.raises(CancelledError):
        next(stream)


def test_cancelling_ends_a_wait_for_the_model() -> None:
    steps = Steps()
    with steps.stream() as holding, ThreadPoolExecutor(1) as pool:
        next(holding)
        stream = steps.stream()
        waiting = pool.submit(next, stream)
        until(lambda: waiting.running())
        time.sleep(0.1)
        stream.cancel()
        with pytest.raises(CancelledError):
            waiting.result(60)
        next(holding)
    with steps.lock.hold():
        pass


def test_cancelling_in_a_signal_handler_of_the_reader() -> None:
    steps = Steps()
    stream = steps.stream()
    previous = signal.signal(signal.SIGUSR1, lambda *_: stream.cancel())
    try:
        steps.action = functools.partial(signal.raise_signal, signal.SIGUSR1)
        next(stream)
    finally:
        signal.signal(signal.SIGUSR1, previous)
    with pytest.raises(CancelledError):
        next(stream)
    with steps.lock.hold():
        pass


def queue_up(lock: ModelLock, action: Callable[[int], object], signals: list[CancelSignal]) -> Any:
    """Let a thread for each signal wait for the model, one after another."""
    pool = ThreadPoolExecutor(len(signals))

    def wait(number: int) -> None:
        with lock.hold(signals[number]):
            action(number)

    futures = []
    for number in range(len(signals)):
        futures.append(pool.submit(wait, number))
        until(lambda: len(lock._waiting) == len(futures))
    pool.shutdown(wait=False)
    return futures


def test_requests_are_served_in_the_order_in_which_they_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that go away do not change the order of the others, nor do those that wake between."""
    monkeypatch.setattr(model_lock, "_CHECK_SECONDS", 0.001)
    steps, served = Steps(), list[int]()
    signals = [CancelSignal() for _ in range(16)]

    def serve(number: int) -> None:
        served.append(number)
        time.sleep(0.005)

    with steps.stream() as holding:
        next(holding)
        futures = queue_up(steps.lock, serve, signals)
        for number in (0, 7):
            signals[number].cancel()
            with pytest.raises(CancelledError):
                futures[number].result(60)
        assert served == []
    for number in sorted({*range(16)} - {0, 7}):
        futures[number].result(60)
    assert served == sorted({*range(16)} - {0, 7})
    assert steps.lock._waiting == []


def test_the_second_turn_of_a_request_comes_before_later_requests() -> None:
    """A stream waits for the model when it is made, and again when it is read."""
    steps, served = Steps(), list[int]()
    first, later = CancelSignal(), [CancelSignal() for _ in range(3)]
    with steps.stream() as holding:
        next(holding)
        futures = queue_up(steps.lock, served.append, [*later, first])
    for future in futures:
        future.result(60)
    assert served == [3, 0, 1, 2]


def test_closing_the_model_ends_all_waits() -> None:
    steps = Steps()
    stream = steps.stream()
    next(stream)
    futures = queue_up(steps.lock, lambda _: None, [CancelSignal() for _ in range(8)])
    steps.lock.close()
    for future in futures:
        with pytest.raises(ClosedError, match="the model is closed"):
            future.result(60)
    assert steps.freed == 1 and steps.lock._waiting == []


def test_a_request_from_a_handler_that_interrupts_a_wait_is_refused() -> None:
    """It would wait for the request that it interrupts, and that one for its return."""
    steps = Steps()
    refused: list[Exception] = []

    def handle(*_: object) -> None:
        try:
            with steps.lock.hold():
                pass
        except BusyError as error:
            refused.append(error)
        holding.close()

    def interrupt() -> None:
        until(lambda: bool(steps.lock._waiting))
        os.kill(os.getpid(), signal.SIGUSR1)

    with steps.stream() as holding:
        next(holding)
        previous = signal.signal(signal.SIGUSR1, handle)
        waker = threading.Thread(target=interrupt)
        waker.start()
        try:
            with steps.lock.hold():
                pass
        finally:
            waker.join()
            signal.signal(signal.SIGUSR1, previous)
    assert "signal handler" in str(refused[0])


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the parent of the tests ignores it
from edgevlm.cli import main
sys.exit(main())
"""

FULL = 3500
"""Bytes that fill the pipe, so that the answer does not fit."""


def interrupted(bundle: Path, interrupt: Callable[[subprocess.Popen[bytes], int], None]) -> int:
    """Interrupt `edgevlm ask` after the first characters; return its exit code.

    The command cannot end earlier, even on a busy machine: nobody reads, and the pipe is nearly full.
    """
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, b" " * FULL)
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, "ask", "What?", "--max-tokens", "1500", "--model", str(bundle)],
        stdout=writer,
        stderr=subprocess.PIPE,
    )
    os.close(writer)
    held = array.array("i", [0])
    while held[0] <= FULL:
        assert process.poll() is None
        fcntl.ioctl(reader, termios.FIONREAD, held)
        time.sleep(0.01)
    interrupt(process, reader)
    _, errors = process.communicate(timeout=60)
    assert errors == b""
    return process.returncode


@pytest.mark.skipif(sys.platform != "linux", reason="the size of a pipe is set by Linux alone")
def test_ctrl_c_and_a_closed_pipe_end_the_command_as_shells_expect() -> None:
    bundle = BUNDLES / "smolvlm"
    assert interrupted(bundle, lambda process, _: process.send_signal(signal.SIGINT)) == 130
    assert interrupted(bundle, lambda _, reader: os.close(reader)) == 141


FORK = """
import os, sys, time
from edgevlm import VLM, ClosedError, LoadError
device, which = sys.argv[1:]
vlm = VLM.from_pretrained("edgevlm-nano", device=device)
vlm.ask(None, "Hello", max_tokens=2)
stream = vlm.stream(None, "Hello")
next(stream)
child = os.fork()
if not child:
    try:
        if which == "own":
            vlm = VLM.from_pretrained("edgevlm-nano", device=device)
        vlm.encode_image("examples/square.png")
    except ClosedError as error:
        print(error, flush=True)
    with vlm:
        pass
    sys.exit(0)
deadline = time.monotonic() + 30
while not (ended := os.waitpid(child, os.WNOHANG))[0]:
    if time.monotonic() > deadline:
        os.kill(child, 9)
    time.sleep(0.02)
assert ended[1] == 0, ended
print("".join(chunk.text for chunk in stream) != "")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.parametrize("which", ["parent's", "own"])
@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_a_forked_process_is_told_to_spawn(device: str, which: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, device, which], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    refused, parent_goes_on = done.stdout.splitlines()
    assert "'spawn'" in refused
    assert parent_goes_on == "True"


FORK_WHILE_READING = """
import asyncio, os, sys, threading
from edgevlm import VLM, ClosedError
vlm = VLM.from_pretrained("edgevlm-nano", threads=1)
stream = vlm.stream("examples/scene.png", "What is in the picture?")
step = stream._chunks
reading, go_on = threading.Event(), threading.Event()
def steps():
    reading.set()
    go_on.wait(60)
    yield from step
stream._chunks = steps()
reader = threading.Thread(target=list, args=(stream,))
reader.start()
reading.wait(60)
async def read():
    return [chunk async for chunk in vlm.astream(None, "Hello")]
child = os.fork()
if not child:
    for use in (lambda: next(stream), lambda: vlm.ask(None, "Hello"), lambda: asyncio.run(read())):
        try:
            use()
        except ClosedError as error:
            print("'spawn'" in str(error), flush=True)
    stream.cancel()
    stream.close()
    vlm.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
go_on.set()
reader.join()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_fork_does_not_wait_for_threads_of_its_parent() -> None:
    """One of them reads a stream when the process forks."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK_WHILE_READING],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True"] * 3


def test_a_model_that_is_first_loaded_after_a_fork_answers() -> None:
    code = (
        "import os; from edgevlm import VLM\n"
        "if not os.fork():\n"
        "    print(VLM.from_pretrained().ask('examples/square.png', 'What color is it?').text)\n"
        "else: os.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "green\n", done.stderr


def test_time_spent_waiting_is_told(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    stream = vlm.stream(None, "What?", **LONG)
    next(stream)
    with ThreadPoolExecutor(1) as pool, closing(stream):
        waiting = pool.submit(vlm.ask, None, "What?", max_tokens=2)
        time.sleep(0.3)
        stream.close()
        stats = waiting.result(60).stats
    assert stats.wait_ms > 200
