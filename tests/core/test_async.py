"""Asyncio: the event loop goes on while a model works, and a task that ends early stops the work."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import io
import random
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
from PIL import Image

from edgevlm import (
    VLM,
    AsyncChunkStream,
    ClosedError,
    DeadlineError,
    GenerationOptions,
    ImageError,
    ImageSource,
    InputError,
)
from edgevlm.async_stream import MAX_THREADS, _Turns, _turns
from tests.conftest import picture
from tests.support.runtime_calls import RuntimeCalls
from tests.support.serving import until

SECONDS = 60
"""Longest time that a test waits, in seconds."""

IMAGE = picture(1, 256, 256)
QUESTION = "What is it?"
TOKENS = 12


@pytest.fixture
def calls(fresh: Callable[..., VLM]) -> RuntimeCalls:
    return RuntimeCalls(fresh())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    until(lambda: not async_threads())


def async_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "edgevlm-async"]


async def happens(condition: Callable[[], bool]) -> None:
    """Wait for a condition while the event loop goes on."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.001)


def ask(vlm: VLM) -> tuple[int, ...]:
    return vlm.ask(IMAGE, QUESTION, max_tokens=TOKENS).token_ids


def stream(vlm: VLM) -> AsyncChunkStream:
    return vlm.astream(IMAGE, QUESTION, max_tokens=TOKENS)


def check_as_new(calls: RuntimeCalls, expected: tuple[int, ...]) -> None:
    """The model is free, and answers as before."""
    calls.expect(-1, lambda: None)
    until(lambda: not calls.vlm._engine._lock._lock.locked())
    assert ask(calls.vlm) == expected


def pause(begun: threading.Event, go_on: threading.Event) -> None:
    begun.set()
    assert go_on.wait(SECONDS)


class Clock:
    """Lets a thread wait until the event loop has gone on. In the loop's own thread this would never end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.ticks: list[str] = []

    def tick(self, name: str) -> None:
        if not self._loop.is_closed():
            asyncio.run_coroutine_threadsafe(asyncio.sleep(0), self._loop).result(SECONDS)
            self.ticks.append(name)

    def ticking(self, owner: Any, name: str) -> None:
        """Make a method wait for the event loop before it begins."""
        method = getattr(owner, name)

        @functools.wraps(method)
        def ticked(*arguments: Any, **named: Any) -> Any:
            self.tick(name)
            return method(*arguments, **named)

        setattr(owner, name, ticked)


class TickingFile(io.BytesIO):
    """The file of an image, of which each read waits for the event loop."""

    clock: Clock

    def read(self, size: int | None = -1) -> bytes:
        self.clock.tick("read")
        return super().read(size)


def image_file(clock: Clock) -> TickingFile:
    file = TickingFile()
    IMAGE.save(file, "PNG")
    file.seek(0)
    file.clock = clock
    return file


def test_asyncio_gives_the_same_answers(smolvlm: VLM) -> None:
    async def main() -> None:
        answer = await smolvlm.aask(IMAGE, QUESTION, max_tokens=TOKENS, system=None)
        assert answer.token_ids == expected
        chunks = [chunk async for chunk in stream(smolvlm)]
        assert sum((chunk.token_ids for chunk in chunks), ()) == expected
        assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1].stats is not None
        chat = smolvlm.chat()
        first = await chat.asend(QUESTION, IMAGE, max_tokens=TOKENS)
        assert first.token_ids == expected
        text = ""
        async for chunk in chat.astream("And?", max_tokens=TOKENS):
            text += chunk.text
        assert text == again.text
        assert chat.messages == reference.messages

    expected = ask(smolvlm)
    reference = smolvlm.chat()
    reference.send(QUESTION, IMAGE, max_tokens=TOKENS)
    again = reference.send("And?", max_tokens=TOKENS)
    asyncio.run(main())


def test_the_event_loop_goes_on_in_each_step(
    fresh: Callable[..., VLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step waits for the event loop: it would never end if it were done in the loop's thread."""

    async def main() -> None:
        clock = Clock()
        engine = vlm._engine
        decoder = engine._decoder
        make_sampler = decoder.sampler

        def sampler(*arguments: Any) -> Any:
            made: Any = make_sampler(*arguments)

            def close() -> None:
                del made.close  # the garbage collector closes again, in any thread
                clock.tick("close")
                made.close()

            made.close = close
            clock.ticking(made, "sample")
            return made

        monkeypatch.setattr(decoder, "sampler", sampler)
        clock.ticking(engine._image_processor, "process")
        clock.ticking(engine._encoder._vision, "encode")
        clock.ticking(engine, "tokenize")
        for name in ("decode_tokens", "decode_embeddings"):
            clock.ticking(decoder, name)
        steps = {"read", "process", "tokenize", "encode", "decode_tokens", "decode_embeddings"}

        await vlm.aask(image_file(clock), QUESTION, max_tokens=TOKENS)
        assert steps | {"sample", "close"} <= set(clock.ticks)
        engine._kv_cache.reset()
        engine._encoder.cache.clear()
        clock.ticks.clear()
        async for _ in vlm.astream(image_file(clock), QUESTION, max_tokens=TOKENS):
            pass
        assert steps | {"sample", "close"} <= set(clock.ticks)
        for leave in ("break", "aclose", "error"):
            clock.ticks.clear()
            await leave_early(vlm, leave)
            await asyncio.to_thread(until, lambda: "close" in clock.ticks)

    vlm = fresh()
    asyncio.run(main())


async def leave_early(vlm: VLM, how: str) -> None:
    if how == "break":
        async for chunk in stream(vlm):
            if chunk.token_ids:
                break
    elif how == "aclose":
        chunks = stream(vlm)
        await anext(chunks)
        await chunks.aclose()
        await chunks.aclose()
        assert [chunk async for chunk in chunks] == []
    else:
        with pytest.raises(ZeroDivisionError):
            async with stream(vlm) as chunks:
                await anext(chunks)
                _ = 1 / 0


def test_the_event_loop_goes_on_while_a_request_waits(smolvlm: VLM) -> None:
    """It waits for a stream that is read in the event loop after the request began."""

    async def main() -> None:
        with smolvlm.stream(None, "What?", max_tokens=500) as holding:
            next(holding)
            task = asyncio.create_task(smolvlm.aask(IMAGE, QUESTION, max_tokens=TOKENS))
            await happens(lambda: bool(smolvlm._engine._lock._waiting))
            next(holding)
        assert (await task).token_ids == expected

    expected = ask(smolvlm)
    asyncio.run(main())


def test_cancelling_a_task_stops_each_call_of_a_runtime(calls: RuntimeCalls) -> None:
    """The task is cancelled before each call in turn; no other call follows."""

    async def cancel(task: asyncio.Task[Any]) -> None:
        task.cancel()
        await happens(task.done)

    async def main(at: int, read: Callable[[], Awaitable[Any]]) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(read())
        calls.expect(
            at, lambda: asyncio.run_coroutine_threadsafe(cancel(task), loop).result(SECONDS)
        )
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(until, lambda: not calls.vlm._engine._lock._lock.locked())
        assert len(calls.names) == at + 1

    async def read_stream() -> None:
        kept.append(stream(calls.vlm))
        async for _ in kept[-1]:
            pass

    kept: list[AsyncChunkStream] = []
    calls.expect(-1, lambda: None)
    expected = ask(calls.vlm)
    count = len(calls.names)
    assert count > TOKENS
    for at in range(count):
        calls.vlm._engine._encoder.cache.clear()
        calls.vlm._engine._kv_cache.reset()
        aask = functools.partial(calls.vlm.aask, IMAGE, QUESTION, max_tokens=TOKENS)
        asyncio.run(main(at, aask if at % 2 else read_stream))
        if at % 5 == 0:
            check_as_new(calls, expected)


def test_cancelling_ends_a_wait_for_the_model(calls: RuntimeCalls) -> None:
    async def main() -> None:
        with calls.vlm.stream(None, "What?", max_tokens=500) as holding:
            next(holding)
            task = asyncio.create_task(calls.vlm.aask(IMAGE, QUESTION))
            await happens(lambda: bool(calls.vlm._engine._lock._waiting))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            # although the other stream still holds the model
            await happens(lambda: not calls.vlm._engine._lock._waiting)
            next(holding)

    asyncio.run(main())


@pytest.mark.parametrize("how", ["break", "aclose", "error"])
def test_leaving_early_frees_the_model(calls: RuntimeCalls, how: str) -> None:
    expected = ask(calls.vlm)
    asyncio.run(leave_early(calls.vlm, how))
    check_as_new(calls, expected)


def test_a_stream_that_is_dropped_frees_the_model(calls: RuntimeCalls) -> None:
    """Also in a reference cycle, and after the event loop has ended."""

    async def begin() -> AsyncChunkStream:
        chunks = stream(calls.vlm)
        await anext(chunks)
        return chunks

    expected = ask(calls.vlm)
    cycle: list[Any] = [asyncio.run(begin())]
    cycle.append(cycle)
    dropped = weakref.ref(cycle[0])
    del cycle
    until(lambda: gc.collect() is not None and dropped() is None)
    check_as_new(calls, expected)
    del calls.names[:]
    stream(calls.vlm)  # nobody reads it, so nothing begins
    gc.collect()
    assert calls.names == []


def test_a_task_that_its_event_loop_drops_stops_the_work(calls: RuntimeCalls) -> None:
    expected = ask(calls.vlm)
    loop = asyncio.new_event_loop()
    begun, go_on = threading.Event(), threading.Event()
    calls.expect(3, functools.partial(pause, begun, go_on))
    coroutine = calls.vlm.aask(IMAGE, "What else?", max_tokens=TOKENS)

    async def start() -> None:
        coroutine.send(None)
        await asyncio.to_thread(begun.wait, SECONDS)

    loop.run_until_complete(start())
    loop.close()
    coroutine.close()
    go_on.set()
    check_as_new(calls, expected)


class Broken(Exception):
    pass


def broken_images() -> Iterator[Image.Image]:
    yield IMAGE
    raise Broken("no second image")


def test_errors_keep_their_type_and_traceback(smolvlm: VLM) -> None:
    async def main() -> None:
        with pytest.raises(ImageError, match="no image at") as missing:
            await smolvlm.aask("missing.png", QUESTION)
        assert "load_image" in "".join(traceback.format_tb(missing.value.__traceback__))
        with pytest.raises(Broken) as broken:
            async for _ in smolvlm.astream(broken_images(), QUESTION):
                pytest.fail("there is no answer")
        assert "broken_images" in "".join(traceback.format_tb(broken.value.__traceback__))
        with pytest.raises(InputError, match="max_tokens"):
            await smolvlm.chat().asend(QUESTION, max_tokens=0)
        chunks = smolvlm.astream("missing.png", QUESTION)
        with pytest.raises(ImageError):
            await anext(chunks)
        assert [chunk async for chunk in chunks] == []

    asyncio.run(main())


def test_an_error_leaves_no_reference_cycle(smolvlm: VLM) -> None:
    """So that a large image of a failed request is freed at once."""

    async def main() -> None:
        images: list[ImageSource] = [IMAGE, "missing.png"]
        chunks = smolvlm.astream(images, QUESTION)
        dropped.append(weakref.ref(chunks))
        with pytest.raises(ImageError):
            await anext(chunks)

    dropped: list[weakref.ref[Any]] = []
    gc.collect()
    gc.disable()
    try:
        asyncio.run(main())
        until(lambda: dropped[0]() is None)
    finally:
        gc.enable()


def test_images_are_read_with_the_context_of_the_caller(smolvlm: VLM) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: list[str] = []

    def images() -> Iterator[Image.Image]:
        seen.append(variable.get())
        yield IMAGE

    async def main() -> None:
        variable.set("the caller's")
        await smolvlm.aask(images(), QUESTION, max_tokens=1)

    asyncio.run(main())
    assert seen == ["the caller's"]


def test_nothing_is_computed_before_it_is_asked_for(calls: RuntimeCalls) -> None:
    async def main() -> None:
        async with calls.vlm.astream(None, "What?", max_tokens=500) as chunks:
            await asyncio.sleep(0.05)
            assert calls.names == []
            while not (await anext(chunks)).token_ids:
                pass
            count = len(calls.names)
            await asyncio.sleep(0.05)
            assert len(calls.names) == count

    asyncio.run(main())


def test_requests_get_threads_in_the_order_of_their_tasks() -> None:
    """Those that are cancelled or late do not change the order of the others."""

    async def main() -> None:
        turns, order = _Turns(), list[int]()

        async def enter(number: int, timeout: float | None = None) -> None:
            if await turns.enter(timeout):
                order.append(number)

        for number in range(MAX_THREADS):
            await enter(number)
        assert order == [*range(MAX_THREADS)]
        order.clear()
        tasks = [asyncio.create_task(enter(number)) for number in range(5)]
        late = asyncio.create_task(enter(5, 0.001))
        await late
        tasks[1].cancel()
        for number in (0, 2, 3, 4):
            turns.leave()
            await happens(functools.partial(order.__contains__, number))
            assert order[-1] == number
        first, second = (asyncio.create_task(enter(number)) for number in (6, 7))
        await asyncio.sleep(0)
        turns.leave()
        first.cancel()  # between its turn and its next step
        await asyncio.wait_for(second, SECONDS)
        assert order[-1] == 7
        for _ in range(MAX_THREADS):
            turns.leave()
        assert turns._threads == 0 and not turns._waiting

    asyncio.run(main())


def test_requests_that_wait_have_no_threads(smolvlm: VLM) -> None:
    """A deadline or its task ends such a request; the others keep their turns."""

    async def main() -> None:
        with smolvlm.stream(None, "What?", max_tokens=500) as holding:
            next(holding)
            tasks = [
                asyncio.create_task(smolvlm.aask(IMAGE, QUESTION, max_tokens=TOKENS))
                for _ in range(MAX_THREADS + 20)
            ]
            late = asyncio.create_task(smolvlm.aask(None, QUESTION, within=0.05))
            with pytest.raises(DeadlineError):
                await asyncio.wait_for(late, SECONDS)
            for task in (tasks.pop(), tasks.pop(1)):
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.to_thread(until, lambda: len(async_threads()) == MAX_THREADS)
        for task in tasks:
            assert (await task).token_ids == expected
        assert (await smolvlm.aask(IMAGE, QUESTION, max_tokens=TOKENS)).token_ids == expected
        (turns,) = _turns[smolvlm._engine].values()
        await happens(lambda: not turns._threads)
        assert not turns._waiting

    expected = ask(smolvlm)
    asyncio.run(main())


def test_a_stream_that_is_closed_before_its_turn_ends(smolvlm: VLM) -> None:
    async def main() -> None:
        with smolvlm.stream(None, "What?", max_tokens=500) as holding:
            next(holding)
            tasks = [asyncio.create_task(smolvlm.aask(None, QUESTION)) for _ in range(MAX_THREADS)]
            chunks = stream(smolvlm)
            first = asyncio.ensure_future(anext(chunks, None))
            await asyncio.sleep(0)
            await chunks.aclose()
            for task in tasks:
                task.cancel()
            assert await first is None
            await asyncio.wait(tasks)

    asyncio.run(main())


def test_the_wait_counts_as_time_of_the_request(smolvlm: VLM) -> None:
    async def main() -> None:
        with smolvlm.stream(None, "What?", max_tokens=500) as holding:
            next(holding)
            tasks = [
                asyncio.create_task(smolvlm.aask(None, QUESTION, max_tokens=1))
                for _ in range(MAX_THREADS + 1)
            ]
            await asyncio.sleep(0)  # each task has made its request
            await asyncio.sleep(0.1)
        stats = [(await task).stats for task in tasks]
        assert min(one.wait_ms for one in stats) > 90

    asyncio.run(main())


def test_cancel_scopes_of_anyio_stop_the_work(calls: RuntimeCalls) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as group:
            async for chunk in calls.vlm.astream(None, "What?", max_tokens=500):
                if chunk.token_ids:
                    group.cancel_scope.cancel()

    expected = ask(calls.vlm)
    anyio.run(main)
    assert len(calls.names) < 100
    check_as_new(calls, expected)


def test_closing_the_model_ends_what_computes_and_what_waits(calls: RuntimeCalls) -> None:
    async def main() -> None:
        begun, go_on = threading.Event(), threading.Event()
        calls.expect(3, functools.partial(pause, begun, go_on))
        tasks = [asyncio.create_task(calls.vlm.aask(IMAGE, QUESTION))]
        await asyncio.to_thread(begun.wait, SECONDS)
        tasks += [asyncio.create_task(calls.vlm.aask(None, "What?")) for _ in range(4)]
        await happens(lambda: len(calls.vlm._engine._lock._waiting) >= MAX_THREADS - 1)
        closing = asyncio.create_task(asyncio.to_thread(calls.vlm.close))
        await happens(lambda: calls.vlm._engine._lock.closed)
        go_on.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ClosedError] * 5
        await closing

    asyncio.run(main())


def test_another_framework_gets_an_error(smolvlm: VLM) -> None:
    with pytest.raises(InputError, match=r"trio\.to_thread\.run_sync"):
        smolvlm.aask(None, QUESTION).send(None)


@pytest.mark.slow
def test_tasks_that_are_cancelled_at_any_time_leave_nothing_behind(
    fresh: Callable[..., VLM],
) -> None:
    """A thousand requests of eight tasks; each of them is read, left or cancelled."""

    async def read(choice: float) -> None:
        options: GenerationOptions = {"max_tokens": TOKENS, "cache_images": choice < 0.5}
        if choice < 0.3:
            assert (await vlm.aask(IMAGE, QUESTION, **options)).token_ids == expected
            counts["answers"] += 1
        elif choice < 0.6:
            async with vlm.astream(IMAGE, QUESTION, **options) as chunks:
                async for chunk in chunks:
                    if chunk.token_ids and choice < 0.45:
                        break
        else:
            async for chunk in vlm.astream(IMAGE, QUESTION, **options):
                if chunk.token_ids and choice < 0.8:
                    break

    async def worker(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(125):
            task = asyncio.create_task(read(chance.random()))
            if chance.random() < 0.5:
                await asyncio.sleep(chance.uniform(0, longest))
                task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                counts["cancelled"] += 1

    async def main() -> None:
        await asyncio.gather(*map(worker, range(8)))

    vlm, counts = fresh(), Counter[str]()
    expected = ask(vlm)
    longest = 2 * vlm.ask(IMAGE, QUESTION, max_tokens=TOKENS).stats.total_ms / 1000
    asyncio.run(main())
    assert counts["answers"] and counts["cancelled"]
    until(lambda: not vlm._engine._lock._lock.locked())
    assert ask(vlm) == expected
    gc.collect()
    assert not any(type(value) is AsyncChunkStream for value in gc.get_objects())


EXIT = """
import asyncio, sys
from edgevlm import VLM
vlm = VLM.from_pretrained(threads=1)
async def main():
    task = asyncio.create_task(vlm.aask("examples/scene.png", "What is in the picture?"))
    chunks = vlm.astream("examples/scene.png", "What is in the picture?")
    await anext(chunks)
    vlm.kept = chunks
    await asyncio.sleep(0)
    print("left", flush=True)
    if sys.argv[1] == "error":
        raise SystemExit(3)
asyncio.run(main())
"""


@pytest.mark.parametrize("how", ["return", "error"])
def test_a_program_ends_while_the_model_works(how: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, how],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == ({"return": 0, "error": 3}[how], "left\n"), done.stderr
    assert done.stderr == ""
