"""Threads of a request with a deadline: no more than have a core."""

from __future__ import annotations

import numpy as np
import pytest

from edgevlm.cancellation import CancelSignal
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.thread_limit import (
    MAX_PAUSE,
    MIN_PAUSE,
    WINDOW,
    Clocks,
    ThreadLimit,
)
from tests.support.oracle import BUNDLES


class Machine:
    """Decodes with the threads that are allowed, each of which has a core for a share of the time."""

    def __init__(self, threads: int) -> None:
        self.limit = ThreadLimit(threads)
        self.now = 100.0
        self.attempts: list[float] = []
        """Times at which more than one thread computed."""

    def compute(self, cores: float, seconds: float, threads: int | None = None) -> int:
        """Compute for some seconds while `cores` are free, in calls of 10 ms; return the limit after it."""
        end = self.now + seconds
        while self.now < end:
            used = threads or self.limit.limit
            if used > 1:
                self.attempts.append(self.now)
            self.now += 0.01
            self.limit.record(used, 0.01, 0.01 * min(1.0, cores / used), self.now)
        return self.limit.limit


def test_threads_double_while_all_have_a_core() -> None:
    machine = Machine(6)
    assert machine.limit.limit == 1
    assert [machine.compute(6, WINDOW) for _ in range(4)] == [2, 4, 6, 6]


def test_threads_are_those_that_have_a_core() -> None:
    machine = Machine(8)
    machine.compute(8, 1)
    assert machine.compute(5.5, 2 * WINDOW) == 5
    assert machine.compute(1, 2 * WINDOW) == 1
    assert Machine(2).compute(0.5, 1) == 1, "one thread on a busy core: more would be slower"


def test_attempts_to_use_more_threads_become_rare() -> None:
    """One core is free: a single thread has it, and two have not."""
    machine = Machine(2)
    machine.compute(1.2, 600)
    begins = [
        now
        for before, now in zip([-1.0, *machine.attempts], machine.attempts, strict=False)
        if now - before > 2 * WINDOW
    ]
    pauses = np.diff(begins)
    assert pauses[0] == pytest.approx(MIN_PAUSE, abs=0.2)
    assert pauses[-1] == pytest.approx(MAX_PAUSE, abs=0.2)
    assert (np.diff(pauses) > -0.2).all()
    assert len(machine.attempts) * 0.01 < 2, "of 600 seconds"
    machine.compute(2, MAX_PAUSE + 1)
    assert machine.limit.limit == 2
    machine.compute(1.2, WINDOW + MIN_PAUSE + 4 * WINDOW)
    assert len(machine.attempts) > len(begins), "the pause is short again"


def test_requests_without_a_deadline_tell_how_many_threads_have_a_core() -> None:
    machine = Machine(2)
    assert machine.compute(2, WINDOW, threads=2) == 2
    assert machine.compute(1, WINDOW, threads=2) == 1
    assert machine.compute(2, WINDOW, threads=2) == 2, "a measurement counts more than a pause"


def test_two_threads_that_wait_have_no_core() -> None:
    limit = ThreadLimit(2)
    limit.limit = 2
    start = Clocks.now()
    limit.add(2, Clocks(start.wall - 1, start.thread - 1, start.process - 1.2))
    assert limit.limit == 1, (
        "the caller spins, and the other thread has its core for a fifth of the time"
    )


def test_only_requests_with_a_deadline_are_limited() -> None:
    with Decoder() as decoder:
        decoder._thread_limit.limit = 1
        assert decoder.decode(None) == 2
        assert decoder.decode(CancelSignal()) == 2
        decoder._thread_limit.limit = 1
        assert decoder.decode(CancelSignal(within=1000)) == 1
        decoder._thread_limit.limit = 2
        assert decoder.decode(CancelSignal(within=1000)) == 2
        decoder._thread_limit.limit = 1
        decoder.on_cpu = False
        assert decoder.decode(CancelSignal(within=1000)) == 2, "on a GPU no thread waits for a core"


class Decoder(LlamaCppDecoder):
    """A decoder with two threads."""

    def __init__(self) -> None:
        path = BUNDLES / "smolvlm" / "decoder.f16.gguf"
        super().__init__(path, context_length=64, threads=2, try_file=False)
        self._thread_limit = ThreadLimit(2)
        self._thread_limit.add = lambda threads, start: None  # type: ignore[method-assign]

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def decode(self, cancel: CancelSignal | None) -> int:
        """Decode a token and return the threads that llama.cpp used."""
        position = np.array([self._held.place.position], np.int32)
        self.decode_tokens([5], position, logits=True, cancel=cancel)
        return int(self._llama.llama_n_threads(self._context))
