"""Measure the server with many clients: ``python -m benchmarks.server_load [--clients 32] [--seconds 60]``.

It starts ``edgevlm serve``. Each client asks about its own image, or with ``--shared`` about that of this
second, and asks again as soon as it has the answer. The result has the number of answers, their times, the
processor time of the server for each, the smallest and largest number of answers of a client, the HTTP
statuses, and the memory of the server over time.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
from PIL import Image

from edgevlm.runtimes import system

QUESTIONS = (
    "What is in the picture?",
    "What color is it?",
    "How many shapes are there?",
    "Where is it?",
)


def image(seed: int) -> str:
    """Return an image of colored squares as a data URI."""
    squares = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(squares).resize((640, 480), Image.Resampling.NEAREST).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def client(
    url: str, seed: int, end: float, statuses: Counter[int], options: argparse.Namespace
) -> list[float]:
    """Ask until `end`; return the seconds of each answer."""
    taken: list[float] = []
    async with httpx.AsyncClient(timeout=900) as http:
        while (start := time.monotonic()) < end:
            shown = image(int(end - start) if options.shared else seed + 1000 * len(taken))
            question = QUESTIONS[(seed + len(taken)) % len(QUESTIONS)]
            parts: list[dict[str, Any]] = [
                {"type": "image_url", "image_url": {"url": shown, "detail": "low"}},
                {"type": "text", "text": question},
            ]
            body = {
                "messages": [{"role": "user", "content": parts}],
                "max_tokens": options.max_tokens,
            }
            answer = await http.post(f"{url}/v1/chat/completions", json=body)
            statuses[answer.status_code] += 1
            if answer.status_code == httpx.codes.OK:
                taken.append(time.monotonic() - start)
            else:
                await asyncio.sleep(float(answer.headers.get("Retry-After", 1)))
    return taken


def processor_seconds(process: int) -> float:
    """Return the processor time of a process; Linux only."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def watch_memory(process: int, end: float) -> list[float]:
    """Return megabytes once a second; empty if the system does not report them."""
    found = []
    while time.monotonic() < end:
        held = system.resident_memory(process)
        if held is not None:
            found.append(held / 1e6)
        await asyncio.sleep(1)
    return found


async def load(url: str, process: int, options: argparse.Namespace) -> dict[str, Any]:
    clients, seconds = options.clients, options.seconds
    statuses: Counter[int] = Counter()
    begin, end = processor_seconds(process), time.monotonic() + seconds
    memory, *taken = await asyncio.gather(
        watch_memory(process, end),
        *(client(url, seed, end, statuses, options) for seed in range(clients)),
    )
    spent = processor_seconds(process) - begin
    every = sorted(second for answers in taken for second in answers)
    counts = [len(answers) for answers in taken]
    return {
        "clients": clients,
        "seconds": seconds,
        "answers": len(every),
        "answers_per_second": len(every) / seconds,
        "processor_ms_per_answer": 1000 * spent / len(every),
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
    parser.add_argument("--model", default="edgevlm-nano")
    parser.add_argument("--threads", type=int, help="of the server; default: its own")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--shared", action="store_true", help="all ask about the same image")
    options = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "edgevlm", "serve", "--port", str(port)]
    command += ["--model", options.model]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with subprocess.Popen(command) as server:
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        found = asyncio.run(load(url, server.pid, options))
        server.terminate()
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
