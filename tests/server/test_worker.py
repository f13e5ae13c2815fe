"""Requests that wait for the model at the same time: their answers are those of `VLM`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from edgevlm import VLM
from edgevlm.errors import InferenceError
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.server.errors import RequestError
from edgevlm.server.metrics import Metrics
from edgevlm.server.worker import MAX_TOGETHER, Worker
from tests.support.serving import EXAMPLES, MODEL

SHAPES, SQUARE, SCENE = (EXAMPLES / f"{name}.png" for name in ("shapes", "square", "scene"))
IMAGES = (SHAPES, SQUARE, SCENE)
QUESTIONS = ("What is in the picture?", "How many shapes are there?", "What color is it?")
ASKED = [(IMAGES[index % 3], QUESTIONS[index // 3 % 3]) for index in range(14)]


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(MODEL, threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def expected() -> list[str]:
    with VLM.from_pretrained(MODEL, threads=1) as vlm:
        return [vlm.ask(image, question).text for image, question in ASKED]


@pytest.fixture
def worker(vlm: VLM) -> Iterator[Worker]:
    worker = Worker(vlm, 40, Metrics())
    yield worker
    worker.close()
    assert vlm._engine._decoder.room(0) == vlm.context_length  # no branch is open
    assert worker.waiting == worker._unfinished == 0


def messages(image: Path, question: str) -> list[dict[str, Any]]:
    parts = [{"type": "image", "image": image.read_bytes()}, {"type": "text", "text": question}]
    return [{"role": "user", "content": parts}]


Ask = Callable[[], Any]


async def read(worker: Worker, image: Path, question: str, **options: Any) -> list[str]:
    """Return the texts of the chunks of an answer."""
    chunks = worker.answer(messages(image, question), options)  # type: ignore[arg-type]
    return [chunk.text async for chunk in chunks]


def ask_at_once(vlm: VLM, worker: Worker, asks: Sequence[Ask]) -> list[Any]:
    """Let all requests wait before the first one is answered; return their results or errors."""

    async def ask_all() -> list[Any]:
        with vlm._engine._lock.hold():
            tasks = [asyncio.ensure_future(ask()) for ask in asks]
            while worker._unfinished < len(asks):
                await asyncio.sleep(0.01)
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(ask_all())


def reading(worker: Worker, image: Path, question: str, **options: Any) -> Ask:
    return lambda: read(worker, image, question, **options)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of branches in each batch."""
    found: list[int] = []
    decode = LlamaCppDecoder.decode_branches

    def counted(self: Any, branches: list[int], *arguments: Any, **options: Any) -> Any:
        found.append(len(set(branches)))
        return decode(self, branches, *arguments, **options)

    monkeypatch.setattr(LlamaCppDecoder, "decode_branches", counted)
    return found


def test_answers_are_those_of_the_library(
    vlm: VLM, worker: Worker, expected: list[str], batches: list[int]
) -> None:
    found = ask_at_once(vlm, worker, [reading(worker, *asked) for asked in ASKED])
    assert ["".join(texts) for texts in found] == expected
    assert max(batches) > 8
    longest = max(found, key=len)
    assert sum(map(bool, longest)) > 2  # it came in chunks


def test_others_between_them(vlm: VLM, worker: Worker, batches: list[int]) -> None:
    """Requests that cannot be decoded together have their turn, and the errors are those of one request."""
    options: list[dict[str, Any]] = [{} for _ in ASKED]
    options[4] = {"temperature": 0.8, "seed": 5}
    options[5] = {"top_logprobs": 1}
    options[9] = {"max_tokens": 2}
    options[10] = {"stop": ["a"]}
    options[11] = {"max_tokens": 100_000}
    options[12] = {"max_tokens": 0}
    asks = [reading(worker, *asked, **chosen) for asked, chosen in zip(ASKED, options, strict=True)]
    found = ask_at_once(vlm, worker, asks)
    with VLM.from_pretrained(MODEL, threads=1) as fresh:
        for index, (asked, chosen) in enumerate(zip(ASKED, options, strict=True)):
            if index in (11, 12):
                assert isinstance(found[index], RequestError)
            else:
                assert "".join(found[index]) == fresh.ask(*asked, **chosen).text
    assert max(batches) > 1


def test_clients_that_leave(vlm: VLM, worker: Worker, expected: list[str]) -> None:
    """Before their turn, and in the middle of their answers."""

    async def leave(image: Path, question: str, after: int) -> None:
        chunks = worker.answer(
            messages(image, question), {"max_tokens": 500, "cap_max_tokens": True}
        )
        async with contextlib.aclosing(_some(chunks, after)) as some:
            async for _ in some:
                pass
        await chunks.aclose()

    def leaving(index: int) -> Ask:
        return lambda: leave(*ASKED[index], after=index // 3)

    leavers = {1, 6, 9, 12}
    asks = [
        leaving(index) if index in leavers else reading(worker, *asked)
        for index, asked in enumerate(ASKED)
    ]
    found = ask_at_once(vlm, worker, asks)
    for index, texts in enumerate(found):
        assert texts is None if index in leavers else "".join(texts) == expected[index]


async def _some(chunks: AsyncGenerator[Any, None], count: int) -> AsyncGenerator[Any, None]:
    """Yield chunks up to the n-th with a text."""
    seen = 0
    async for chunk in chunks:
        yield chunk
        seen += bool(chunk.text)
        if seen >= count:
            return


@pytest.mark.parametrize("error", [InferenceError("it broke"), RuntimeError("a bug")])
def test_a_failure_of_the_batch(
    vlm: VLM,
    worker: Worker,
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """The requests of the batch get the error, and the worker goes on with those that wait."""

    decode = LlamaCppDecoder.decode_branches
    calls = 0

    def broken(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return decode(*arguments, **options)

    monkeypatch.setattr(LlamaCppDecoder, "decode_branches", broken)
    found = ask_at_once(vlm, worker, [reading(worker, *asked) for asked in ASKED])
    failed = [isinstance(one, RequestError | type(error)) for one in found]
    assert 1 < sum(failed) <= vlm._engine._decoder.max_branches
    for texts, wrong, right in zip(found, failed, expected, strict=True):
        assert wrong or "".join(texts) == right
    found = ask_at_once(vlm, worker, [reading(worker, *asked) for asked in ASKED])
    assert ["".join(texts) for texts in found] == expected


def test_first_come_first_served(vlm: VLM, worker: Worker) -> None:
    """More than are decoded together; each answer has one token, so they end in the order of their groups."""
    ended: list[int] = []

    def numbered(index: int) -> Ask:
        async def ask() -> None:
            await read(worker, *ASKED[index % len(ASKED)], max_tokens=1)
            ended.append(index)

        return ask

    count = MAX_TOGETHER + 6
    ask_at_once(vlm, worker, [numbered(index) for index in range(count)])
    assert sorted(ended) == list(range(count))
    size = vlm._engine._decoder.max_branches
    assert all(abs(at - index) <= size for at, index in enumerate(ended))
