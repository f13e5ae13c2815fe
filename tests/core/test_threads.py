"""Many threads and several models in one process: each answer is the one that a single thread gets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgevlm import VLM, Answer, CancelledError
from tests.conftest import picture
from tests.support.oracle import BUNDLES

SECONDS = 300
"""Longest time that a test waits, in seconds."""

THREADS = 16
LARGE, SMALL, OTHER = picture(1, 256, 256), picture(2), picture(3, 300, 200)
TURN = [
    {
        "role": "user",
        "content": [{"type": "image", "image": OTHER}, {"type": "text", "text": "What is it?"}],
    }
]


# --- calls --------------------------------------------------------------------------------------


def ask(vlm: VLM) -> Any:
    return vlm.ask(LARGE, "What is it?", max_tokens=8).token_ids


def ask_two_images(vlm: VLM) -> Any:
    answer = vlm.ask([LARGE, SMALL], "What differs?", max_tokens=4, cache_images=False)
    return answer.token_ids


def ask_in_time(vlm: VLM) -> Any:
    return vlm.ask(None, "Say something.", max_tokens=8, within=1000).token_ids


def ask_many(vlm: VLM) -> Any:
    answers = vlm.ask_many([(SMALL, "What is it?"), (SMALL, "Why?")], max_tokens=4)
    return [answer.token_ids for answer in answers if isinstance(answer, Answer)]


def stream(vlm: VLM) -> Any:
    chunks = vlm.stream(OTHER, "Where?", max_tokens=8)
    return sum((chunk.token_ids for chunk in chunks), ())


def stream_in_asyncio(vlm: VLM) -> Any:
    async def read() -> Any:
        chunks = vlm.astream(OTHER, "Where?", max_tokens=8)
        return sum([chunk.token_ids async for chunk in chunks], ())

    return asyncio.run(read())


def cancel(vlm: VLM) -> Any:
    chunks = vlm.stream(LARGE, "And?", max_tokens=100)
    with pytest.raises(CancelledError):
        for number, _ in enumerate(chunks):
            if number == 9:
                chunks.cancel()
    return "cancelled"


def cancel_from_elsewhere(vlm: VLM) -> Any:
    """At any moment: while it waits, encodes, prefills or decodes, or after its end."""
    chunks = vlm.stream(LARGE, "And then?", max_tokens=20, cache_images=False)
    canceller = threading.Timer(0.02, chunks.cancel)
    canceller.start()
    with contextlib.suppress(CancelledError):
        for _ in chunks:
            pass
    canceller.join()
    return "disturbed"


def leave(vlm: VLM) -> Any:
    with vlm.stream(SMALL, "Well?", max_tokens=100) as chunks:
        return list(itertools.islice((one.token_ids for one in chunks if one.token_ids), 3))


def generate(vlm: VLM) -> Any:
    return vlm.generate(TURN, max_tokens=8).token_ids


def converse(vlm: VLM) -> Any:
    chat = vlm.chat()
    first = chat.send("What is it?", SMALL, max_tokens=6)
    return first.token_ids, chat.send("And why?", max_tokens=6).token_ids


def score(vlm: VLM) -> Any:
    scores = vlm.score(SMALL, "Is it red?", ["yes", "no"])
    return np.array([one.logprob for one in scores])


def encode(vlm: VLM) -> Any:
    return vlm.encode_image(LARGE)


def prompt(vlm: VLM) -> Any:
    return vlm.prompt(TURN).tokens


def logits(vlm: VLM) -> Any:
    return vlm.logits(TURN, [5, 6])


CALLS: list[Callable[[VLM], Any]] = [
    ask,
    ask_two_images,
    ask_in_time,
    ask_many,
    stream,
    stream_in_asyncio,
    cancel,
    cancel_from_elsewhere,
    leave,
    generate,
    converse,
    score,
    encode,
    prompt,
    logits,
]


def check_same(found: Any, expected: Any, call: Callable[[VLM], Any]) -> None:
    if isinstance(expected, np.ndarray):
        np.testing.assert_allclose(found, expected, atol=2e-3, err_msg=call.__name__)
    else:
        assert found == expected, call.__name__


def check_in_threads(vlms: list[VLM], rounds: int) -> None:
    """Let each of many threads make all calls, in an order of its own."""
    expected = {id(vlm): [call(vlm) for call in CALLS] for vlm in vlms}

    def run(seed: int) -> None:
        order = [*itertools.product(vlms, range(len(CALLS)))] * rounds
        random.Random(seed).shuffle(order)
        for vlm, number in order:
            call = CALLS[number]
            check_same(call(vlm), expected[id(vlm)][number], call)

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(run, seed) for seed in range(THREADS)]:
            done.result(SECONDS)
    for vlm in vlms:
        assert not vlm._engine._lock._lock.locked()
        assert vlm._engine._lock._waiting == []


# --- tests --------------------------------------------------------------------------------------


def test_threads_that_share_a_model_get_the_same_answers(fresh: Callable[..., VLM]) -> None:
    check_in_threads([fresh()], 1)


def test_several_models_answer_at_the_same_time() -> None:
    names = ("smolvlm", "paligemma", "smolvlm")
    vlms = [VLM.from_pretrained(BUNDLES / name, threads=1) for name in names]
    expected = [ask(vlm) for vlm in vlms]
    barrier = threading.Barrier(2 * len(vlms))

    def run(number: int) -> None:
        vlm = vlms[number % len(vlms)]
        barrier.wait(SECONDS)
        for _ in range(5):
            assert ask(vlm) == expected[number % len(vlms)]

    with ThreadPoolExecutor(2 * len(vlms)) as pool:
        assert len(list(pool.map(run, range(2 * len(vlms))))) == 2 * len(vlms)
    for number, vlm in enumerate(vlms):  # the others answer on
        vlm.close()
        for other, wanted in zip(vlms[number + 1 :], expected[number + 1 :], strict=True):
            assert ask(other) == wanted


@pytest.mark.slow
def test_many_threads_share_several_models_for_long() -> None:
    vlms = [VLM.from_pretrained(BUNDLES / "smolvlm", threads=count) for count in (1, 2)]
    check_in_threads(vlms, 2)
    for vlm in vlms:
        vlm.close()


OPEN_AND_CLOSE = """
import sys
from edgevlm import VLM
from edgevlm.runtimes import system
for _ in range(20):
    vlm = VLM.from_pretrained("edgevlm-nano", threads=1)
    chat = vlm.chat()
    chat.send("What shape is it?", "examples/shapes.png")
    vlm.score("examples/square.png", "What color is it?", ["red", "green"])
    vlm.ask_many([("examples/scene.png", "What is in the picture?"), (None, "Hello")])
    opened = system.resident_memory()
    vlm.close()
    print(opened, system.resident_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read on Linux alone")
def test_closing_a_model_frees_its_memory() -> None:
    """In a process of its own, where nothing else takes memory."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN_AND_CLOSE], capture_output=True, text=True, check=True
    )
    opened, closed = np.array([line.split() for line in done.stdout.splitlines()], float).T / 2**20
    assert len(closed) == 20
    assert np.median(opened - closed) > 15, "closing returns less than the model takes, in MB"
    assert closed[-1] - closed[1] < 5, "each time some memory stays, in MB"
