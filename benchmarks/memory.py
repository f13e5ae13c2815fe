"""Measure ``memory`` of `VLM.watch` over an endless stream: ``python -m benchmarks.memory [--frames 7200]``.

The model looks at drawn rectangles with a memory of several frames. The result has the time of a step at the
60th frame and at the last one, the memory of the process, and how far the probabilities of choices are from
those of a new prompt about the same frames. It is written as JSON to stdout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgevlm import VLM, Choice
from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.runtimes import system

QUESTION = "What color is it?"
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
}
CHOICES = list(COLORS)
AROUND = 30
"""Steps before and after one whose median time is taken."""
COMPARED = 40
"""Steps at the end that are compared with a new prompt."""


def frames(count: int) -> Iterator[NDArray[np.uint8]]:
    """Draw frames, each with a rectangle of another color and size."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        image = Image.new("RGB", (320, 240), tuple(rng.integers(200, 256, 3).tolist()))
        left, top = rng.integers(10, 120), rng.integers(10, 80)
        box = [
            int(left),
            int(top),
            int(left + rng.integers(60, 180)),
            int(top + rng.integers(60, 140)),
        ]
        ImageDraw.Draw(image).rectangle(box, fill=COLORS[CHOICES[rng.integers(4)]])
        yield np.asarray(image)


def measure(vlm: VLM, count: int, memory: int) -> dict[str, Any]:
    """Watch `count` frames, and return what was measured."""
    times: list[float] = []
    resident: list[float] = []
    shown: deque[NDArray[np.uint8]] = deque(maxlen=memory)
    compared: list[tuple[list[NDArray[np.uint8]], Choice]] = []
    with vlm.watch(frames(count), QUESTION, choices=CHOICES, memory=memory) as watch:
        for step, seen in enumerate(watch):
            shown.append(seen.frame)
            times.append(seen.seconds)
            if step % 60 == 0:
                resident.append((system.resident_memory() or 0) / 1e6)
            if step >= count - COMPARED and isinstance(seen.answer, Choice):
                compared.append((list(shown), seen.answer))
    differences, same = [], 0
    for images, choice in compared:
        vlm._engine._kv_cache.reset()
        fresh = vlm.choose(images, QUESTION, CHOICES, cache_images=False)
        same += fresh.label == choice.label
        differences.append(
            max(abs(fresh.probabilities[one] - choice.probabilities[one]) for one in CHOICES)
        )
    first, last = times[60 - AROUND : 60 + AROUND], times[-2 * AROUND :]
    half = len(resident) // 2
    return {
        "frames": count,
        "memory": memory,
        "step around the 60th, ms": round(1000 * float(np.median(first)), 2),
        "step at the end, ms": round(1000 * float(np.median(last)), 2),
        "ratio": round(float(np.median(last) / np.median(first)), 3),
        "memory of the process, MB": [
            round(mb, 1) for mb in resident[:: max(1, len(resident) // 8)]
        ],
        "growth after the first half, MB": round(max(resident[half:]) - max(resident[:half]), 1),
        "difference of a probability from a new prompt, median": round(
            float(np.median(differences)), 4
        ),
        "the same, most": round(max(differences), 4),
        "same label": f"{same} of {len(compared)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=7200)
    parser.add_argument("--memory", type=int, default=8)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    arguments = parser.parse_args()
    with VLM.from_pretrained(arguments.model, threads=1) as vlm:
        json.dump(measure(vlm, arguments.frames, arguments.memory), sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
