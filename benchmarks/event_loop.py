"""Measure what asyncio costs with the built-in model: ``python -m benchmarks.event_loop``.

It prints the CPU time of answers with and without asyncio, taken in turns, and what many requests at once
do to the event loop: its longest pause, the threads and the memory.
"""

from __future__ import annotations

import argparse
import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable

import numpy as np

from edgevlm import VLM
from edgevlm.runtimes import system

LONG = "examples/scene.png", "What is in the picture?"
SHORT = "examples/square.png", "What color is it?"
TICK_SECONDS = 0.01


async def measure_cost(vlm: VLM, rounds: int) -> str:
    """Compare the CPU time of whole answers and of streams."""

    async def ask() -> int:
        return len(vlm.ask(*LONG).token_ids)

    async def aask() -> int:
        return len((await vlm.aask(*LONG)).token_ids)

    async def stream() -> int:
        return sum(1 for _ in vlm.stream(*LONG))

    async def astream() -> int:
        return sum([1 async for _ in vlm.astream(*LONG)])

    times: defaultdict[str, list[float]] = defaultdict(list)
    ways: list[Callable[[], Awaitable[int]]] = [ask, aask, stream, astream]
    chunks = 0
    for _ in range(rounds):
        for way in ways:
            start = time.process_time()
            chunks = await way()
            times[way.__name__].append(1000 * (time.process_time() - start))
    medians = {name: float(np.median(taken)) for name, taken in times.items()}
    listed = ", ".join(f"{name} {median:.2f}" for name, median in medians.items())
    per_chunk = 1000 * (medians["astream"] - medians["stream"]) / chunks
    return f"CPU ms, medians of {rounds}: {listed}; {per_chunk:.0f} µs for each of {chunks} chunks"


async def measure_load(vlm: VLM, requests: int) -> str:
    """Make many requests at once, beside a task that measures the pauses of the event loop."""
    pauses: list[float] = []
    threads: list[int] = []
    memory: list[int] = []

    async def tick() -> None:
        while True:
            start = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            pauses.append(1000 * (time.perf_counter() - start - TICK_SECONDS))
            threads.append(threading.active_count())
            memory.append((system.resident_memory() or 0) // 2**20)

    await vlm.aask(*SHORT)
    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0.5)
    before, idle = memory[-1], max(pauses)
    pauses.clear()
    start = time.process_time()
    await asyncio.gather(*(vlm.aask(*SHORT) for _ in range(requests)))
    seconds = time.process_time() - start
    ticking.cancel()
    middle, longest = np.percentile(pauses, [50, 100])
    return (
        f"{requests} requests at once: {seconds:.2f} s of CPU time, pauses of the event loop: median "
        f"{middle:.1f} ms, longest {longest:.1f} ms (idle: {idle:.1f} ms), at most {max(threads)} threads, "
        f"memory from {before} to {max(memory)} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        print(asyncio.run(measure_cost(vlm, options.rounds)))
        print(asyncio.run(measure_load(vlm, options.requests)))


if __name__ == "__main__":
    main()
