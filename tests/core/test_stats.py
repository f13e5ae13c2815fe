"""Statistics of answers of the built-in model."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgevlm import VLM
from edgevlm.results import Stats

SQUARE = Path(__file__).resolve().parents[2] / "examples" / "square.png"
QUESTION = "What is in the picture?"


@pytest.fixture
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained("edgevlm-nano", threads=1) as loaded:
        yield loaded


def parts(stats: Stats) -> float:
    """Return the sum of all phases, which must be the total."""
    decoder = stats.prefill_ms + stats.decode_ms
    return stats.wait_ms + stats.prepare_ms + stats.encode_ms + decoder


def test_the_parts_are_the_total(vlm: VLM) -> None:
    start = time.perf_counter()
    stats = vlm.ask(SQUARE, QUESTION).stats
    wall = (time.perf_counter() - start) * 1000
    assert parts(stats) == pytest.approx(stats.total_ms)
    assert 0 < stats.first_token_ms < stats.total_ms < wall
    rate = (stats.answer_tokens - 1) / stats.decode_ms * 1000
    assert stats.tokens_per_second == pytest.approx(rate)
    assert stats.load_ms > 0


def test_tiles_are_encoded_or_cached(vlm: VLM) -> None:
    first, second = (vlm.ask(SQUARE, text).stats for text in (QUESTION, "What shape is it?"))
    assert (first.encoded_tiles, first.cached_tiles) == (1, 0)
    assert (second.encoded_tiles, second.cached_tiles) == (0, 1)


def test_peak_memory_is_that_of_this_process_alone(vlm: VLM) -> None:
    """It is not that of the parent process, which is large here."""
    told = vlm.ask(None, QUESTION, max_tokens=1).stats.peak_memory
    assert told is not None
    block = b"1" * (told + 400_000_000)
    program = "from edgevlm.runtimes import system; print(system.peak_memory())"
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    after = vlm.ask(None, QUESTION, max_tokens=1).stats.peak_memory
    assert after is not None and after > len(block)
    assert int(child.stdout) < 400_000_000


def test_the_time_of_the_reader_is_not_the_model_s(vlm: VLM) -> None:
    start = time.perf_counter()
    slept = 0.0
    chunks = vlm.stream(SQUARE, QUESTION, max_tokens=3)
    stats = None
    while stats is None:
        time.sleep(0.3)
        slept += 300
        stats = next(chunks).stats
    wall = (time.perf_counter() - start) * 1000
    assert slept >= 900
    assert parts(stats) == pytest.approx(stats.total_ms)
    assert stats.total_ms <= wall - slept


def test_waiting_for_another_thread_is_told_apart(vlm: VLM) -> None:
    held = vlm.stream(SQUARE, QUESTION)
    next(held)
    waited: list[Stats] = []
    thread = threading.Thread(target=lambda: waited.append(vlm.ask(SQUARE, QUESTION).stats))
    thread.start()
    time.sleep(0.5)
    list(held)
    thread.join()
    assert waited[0].wait_ms >= 400
    assert parts(waited[0]) == pytest.approx(waited[0].total_ms)
