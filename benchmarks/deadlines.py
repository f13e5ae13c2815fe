"""Measure how often an answer is late: ``python -m benchmarks.deadlines FOLDER``.

Each answer is about a new image and has a deadline (``within``). Two other processes keep the cores busy. An
answer is late if the call returns after its deadline, whatever it returns. The models are those of
`benchmarks.cancelling`. The result is in FOLDER/deadlines.json.
"""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.cancelling import QUESTION, models
from benchmarks.files import THREADS, Files, environment, parse_arguments
from edgevlm import VLM, DeadlineError
from edgevlm.evaluation.report import write_json
from edgevlm.inputs.images import load_image

ROUNDS = 100
SECONDS = (0.1, 0.3, 1.0)
IMAGE = (640, 480)
BUSY = "while True: pass"


def measure(vlm: VLM, files: Files, within: float, rounds: int) -> dict[str, float]:
    """Return shares of the answers, and how late the latest one was."""
    random = np.random.default_rng(0)
    image = load_image(files.image(20_000, IMAGE))
    late_ms, counts = [], {"whole": 0, "cut": 0, "none": 0}
    tiles = []
    for _ in range(rounds):
        frame = np.roll(image, random.integers(1, 640), axis=1) ^ np.uint8(random.integers(256))
        start = time.perf_counter()
        try:
            answer = vlm.ask(frame, QUESTION, within=within, max_tokens=64, cache_images=False)
        except DeadlineError:
            counts["none"] += 1
        else:
            counts["cut" if answer.finish_reason == "deadline" else "whole"] += 1
            tiles.append(answer.stats.encoded_tiles)
        late_ms.append((time.perf_counter() - start - within) * 1000)
    shares = {name: count / rounds for name, count in counts.items()}
    late = {"late": float(np.mean(np.array(late_ms) > 0)), "latest ms": max(late_ms)}
    return shares | late | {"tiles": float(np.mean(tiles)) if tiles else 0.0}


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    result: dict[str, Any] = {}
    with ExitStack() as stack:
        for _ in range(THREADS):
            busy = subprocess.Popen([sys.executable, "-c", BUSY])
            stack.callback(busy.wait)
            stack.callback(busy.kill)
        for name, arguments in models(files).items():
            with VLM.from_pretrained(**arguments, threads=THREADS, device="cpu") as vlm:
                vlm.ask(files.image(20_001, IMAGE), QUESTION, max_tokens=16)
                for within in SECONDS:
                    result[f"{name}, {within} s"] = measure(vlm, files, within, rounds)
    for name, figures in result.items():
        print(f"{name:30}", *(f"{key} {value:.3g}" for key, value in figures.items()))
    write_json(files.folder / "deadlines.json", environment(rounds) | result)


if __name__ == "__main__":
    main()
