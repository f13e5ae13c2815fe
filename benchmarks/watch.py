"""Run `VLM.watch` on a camera that fails: ``python -m benchmarks.watch [--seconds 600] [--model M]``.

A synthetic camera makes 30 frames of 640 x 480 pixels in a second. Each frame has the color of its second, so
that each value can be checked against its frame. From time to time the camera stalls, floods or breaks, and a
frame is damaged. The result has ages, times of the model and memory after the warm-up, and is written as JSON
to stdout. The exit status is 1 if a value is wrong, if one is older than ``max_age``, if a stall was not told
in time, or if the memory grew by more than `ALLOWED_MB`.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edgevlm import VLM, StalledError
from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.errors import EdgeVLMError, SourceError
from edgevlm.frames.source import Pace, RawFrame
from edgevlm.runtimes import system
from edgevlm.watch import Watch

RATE, SIZE = 30, (640, 480)
COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 80, 220)}
QUESTION = "What color is it?"
MAX_AGE = 2.0
WARM_UP = 1 / 6
"""Share of the time after which the memory must not grow any more."""
ALLOWED_MB = 5
STALL_SECONDS = 3.0


class FailingCamera:
    """A camera whose frames fail at random.

    Args:
        seed: seed of the failures.
    """

    name = "the failing camera"
    pace: Pace = "live"

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.failures: Counter[str] = Counter()
        self.stalled = (0.0, 0.0)
        """Beginning and end of the last stall, in seconds of `time.monotonic`."""

    def open(self) -> Iterator[RawFrame]:
        """Deliver frames until the camera breaks."""
        while True:
            failure = self._random.choices(
                ["none", "stall", "flood", "break", "damage"], [4000, 3, 5, 3, 20]
            )[0]
            if failure != "none":
                self.failures[failure] += 1
            if failure == "stall":
                begin = time.monotonic()
                self.stalled = begin, begin + STALL_SECONDS
                time.sleep(STALL_SECONDS)
            elif failure == "break":
                raise SourceError("the camera broke")
            elif failure == "damage":
                yield RawFrame(b"damaged", None)
            elif failure == "flood":
                for _ in range(300):
                    yield RawFrame(self._draw(), None)
            yield RawFrame(self._draw(), None)
            time.sleep(1 / RATE)

    def _draw(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        color = list(COLORS)[int(time.monotonic()) % len(COLORS)]
        image = Image.new("RGB", SIZE, "white")
        ImageDraw.Draw(image).rectangle([200, 140, 440, 340], fill=COLORS[color])
        return np.asarray(image)


def color_of(frame: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    """Return the color in the middle of a frame."""
    middle = tuple(int(value) for value in frame[240, 320])
    return next(name for name, color in COLORS.items() if color == middle)


def soak(vlm: VLM, seconds: float, seed: int) -> dict[str, Any]:
    """Watch the camera, and return what was measured."""
    camera = FailingCamera(seed)
    question = vlm._frame_question(QUESTION, None, list(COLORS), None, {"cache_images": False})
    watch = Watch(
        [(camera, question)],
        max_age=MAX_AGE,
        within=None,
        every=0.0,
        min_change=0.0,
        every_frame=False,
    )
    ages, times, memory, told = [], [], [], []
    wrong = late = 0
    errors: Counter[str] = Counter()
    start = looked = time.monotonic()
    with watch:
        while (now := time.monotonic()) < start + seconds:
            if now - looked >= 1:
                looked = now
                memory.append((now - start, (system.resident_memory() or 0) / 1e6))
            try:
                seen = next(watch)
            except StalledError:
                told.append(time.monotonic() - camera.stalled[0] - MAX_AGE)
            except EdgeVLMError as error:
                errors[type(error).__name__] += 1
            else:
                ages.append(seen.age)
                times.append(seen.seconds)
                late += seen.age > MAX_AGE
                wrong += seen.value != color_of(seen.frame)
        stats = watch.stats
    gc.collect()
    warm = [mb for at, mb in memory if at >= WARM_UP * seconds]
    half = len(warm) // 2
    return {
        "seconds": seconds,
        "frames": stats.frames,
        "answered": stats.answered,
        "dropped": stats.dropped,
        "stalls told": stats.stalls,
        "told later than max_age, seconds": quantiles(told) if told else {},
        "reopened": stats.reopened,
        "failures of the camera": dict(camera.failures),
        "errors": dict(errors),
        "wrong values": wrong,
        "values older than max_age": late,
        "age, seconds": quantiles(ages),
        "time of the model, seconds": quantiles(times),
        "memory after the warm-up, MB": quantiles(warm),
        "growth, MB": round(float(np.median(warm[half:]) - np.median(warm[:half])), 1),
    }


def quantiles(values: list[float]) -> dict[str, float]:
    """Return the median, the 90th and 99th percentile and the maximum."""
    found = np.quantile(values, [0.5, 0.9, 0.99, 1.0])
    names = ("median", "90 %", "99 %", "most")
    return {name: round(float(value), 3) for name, value in zip(names, found, strict=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with VLM.from_pretrained(arguments.model, threads=1) as vlm:
        found = soak(vlm, arguments.seconds, arguments.seed)
    json.dump(found, sys.stdout, indent=2)
    print()
    failed = found["wrong values"] or found["values older than max_age"]
    return int(bool(failed) or found["growth, MB"] > ALLOWED_MB)


if __name__ == "__main__":
    sys.exit(main())
