"""Measure how soon a cancelled answer stops: ``python -m benchmarks.cancelling FOLDER``.

Another thread cancels at a random moment. The time is that from the call of `ChunkStream.cancel` until the
reader has its error and the next request can use the model. The models are the built-in one, and one of
SmolVLM-256M's shape with random weights. The result is in FOLDER/cancelling.json.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

import numpy as np

from benchmarks.files import THREADS, Files, environment, parse_arguments
from edgevlm import VLM, CancelledError
from edgevlm.engine.vision_encoder import TILES_PER_CHUNK
from edgevlm.evaluation.report import write_json
from edgevlm.results import collect

ROUNDS = 200
IMAGE = (640, 480)
QUESTION = "What is in the picture?"
TOKENS = 24


def models(files: Files) -> dict[str, dict[str, Any]]:
    """Return arguments of `VLM.from_pretrained` by the name of the model."""
    return {
        "edgevlm-nano": {"model": "edgevlm-nano"},
        "SmolVLM-256M's shape": {"model": files.bundle, "vision": "int8", "decoder": "q4_0"},
    }


def measure(vlm: VLM, files: Files, rounds: int) -> dict[str, dict[str, float]]:
    """Return number, median, 99th percentile and maximum of the milliseconds, for each phase."""
    random = np.random.default_rng(0)
    images = [files.image(20_000 + seed, IMAGE) for seed in range(8)]
    options: dict[str, Any] = {"max_tokens": TOKENS, "detail": "high", "cache_images": False}
    collect(vlm.stream(images[0], QUESTION, **options))
    stats = collect(vlm.stream(images[1], QUESTION, **options)).stats
    encode_chunks = -(-stats.encoded_tiles // TILES_PER_CHUNK)
    found: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(2, rounds + 2):
        stream = vlm.stream(images[number % 8], QUESTION, **options)
        cancelled: list[float] = []
        computing, seen, tokens = threading.Event(), 0, 0

        def cancel(wait: float) -> None:
            computing.wait()  # noqa: B023  # the thread ends in this round
            time.sleep(wait)
            cancelled.append(time.perf_counter())  # noqa: B023
            stream.cancel()  # noqa: B023

        wait = random.uniform(0, 0.95 * stats.total_ms / 1000)
        thread = threading.Thread(target=cancel, args=[wait])
        thread.start()
        computing.set()
        try:
            for chunk in stream:
                seen, tokens = seen + 1, tokens + len(chunk.token_ids)
        except CancelledError:
            vlm.cache_info()  # uses the model
            ended = time.perf_counter()
            phase = "decode" if tokens else "prefill" if seen >= encode_chunks else "encode"
            found[phase].append((ended - cancelled[0]) * 1000)
        thread.join()
    return {
        phase: {
            "cancelled": len(times),
            "median ms": float(np.median(times)),
            "99 % ms": float(np.percentile(times, 99)),
            "max ms": max(times),
        }
        for phase, times in sorted(found.items())
    }


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    result: dict[str, Any] = {}
    for name, arguments in models(files).items():
        for device in ("cpu", "openvino"):
            with VLM.from_pretrained(**arguments, threads=THREADS, device=device) as vlm:
                result[f"{name}, {vlm.vision_device}"] = measure(vlm, files, rounds)
    for name, phases in result.items():
        for phase, figures in phases.items():
            print(f"{name:45} {phase:8}", *(f"{key} {value:.1f}" for key, value in figures.items()))
    write_json(files.folder / "cancelling.json", environment(rounds) | result)


if __name__ == "__main__":
    main()
