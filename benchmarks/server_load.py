"""Many clients at once: ``python -m benchmarks.server_load [--clients 32] [--seconds 60]``.

Starts ``edgevlm serve`` with the built-in model; each client asks about a picture of its own, again as soon
as it has its answer. Says how many answers came, how long they took, how evenly the clients were served,
what went wrong, and what memory the server held from beginning to end.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import socket
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from statistics import median
from typing import Any

import httpx
import numpy as np
from PIL import Image

from edgevlm.runtimes import system

MODEL = "edgevlm-nano"
QUESTION = "What is in the picture?"


def picture(seed: int) -> str:
    """A data URI of colored squares."""
    squares = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(squares).resize((640, 480), Image.Resampling.NEAREST).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def client(url: str, seed: int, end: float, statuses: Counter[int]) -> list[float]:
    """Seconds of each answer."""
    taken: list[float] = []
    async with httpx.AsyncClient(timeout=120) as http:
        while (start := time.monotonic()) < end:
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": picture(seed + 1000 * len(taken))}},
                {"type": "text", "text": QUESTION},
            ]
            body = {"model": MODEL, "messages": [{"role": "user", "content": parts}]}
            answer = await http.post(f"{url}/v1/chat/completions", json=body)
            statuses[answer.status_code] += 1
            if answer.status_code == httpx.codes.OK:
                taken.append(time.monotonic() - start)
            else:
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    return taken


async def watched(process: int, end: float) -> list[float]:
    """Megabytes once a second; none where the system does not say."""
    found = []
    while time.monotonic() < end:
        held = system.resident_memory(process)
        if held is not None:
            found.append(held / 1e6)
        await asyncio.sleep(1)
    return found


async def load(url: str, process: int, clients: int, seconds: float) -> dict[str, Any]:
    statuses: Counter[int] = Counter()
    end = time.monotonic() + seconds
    memory, *taken = await asyncio.gather(
        watched(process, end), *(client(url, seed, end, statuses) for seed in range(clients))
    )
    every = sorted(second for answers in taken for second in answers)
    counts = [len(answers) for answers in taken]
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(every),
        "answers_per_second": len(every) / seconds,
        "statuses": dict(statuses),
        "median_s": median(every),
        "p95_s": every[int(len(every) * 0.95)],
        "answers_of_a_client": [min(counts), max(counts)],
        "memory_mb": memory[:: max(1, len(memory) // 6)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edgevlm", "serve", "--port", str(port)]
    with subprocess.Popen(command) as server:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        found = asyncio.run(load(url, server.pid, options.clients, options.seconds))
        server.terminate()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
