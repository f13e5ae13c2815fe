"""Measure ``memory`` of `VLM.watch` over an endless stream: ``python -m benchmarks.memory [--frames 7200]``.

The model looks at drawn rectangles with a memory of several frames, from one source or from several that
take turns. The result has the time of a step at the beginning and at the end, the memory of the process, and
how far the probabilities of choices are from those of a new prompt about the same frames. It is written as
JSON to stdout. With ``--samples FILE`` each 60 steps add a line to a CSV file, of which `benchmarks.plots`
draws time and memory. With ``--distinct N`` the same N frames come again and again, so that their embeddings
come from a cache and a step is the decoder's work alone. On a machine that does other work, too, the
processor time of a step says more than its time, and a new watch at the end says what the load has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from edgevlm import VLM, Choice, Detail
from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.runtimes import system
from edgevlm.runtimes.protocols import Place

QUESTION = "What color is it?"
COLORS = {
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (240, 210, 40),
}
CHOICES = list(COLORS)
STEPS = 60
"""Steps of one sample: the medians of their times, and the memory of the process after them."""
WARM_UP = 1 / 6
"""Share of the frames after which the memory must not grow any more."""
COMPARED = 40
"""Steps at the end that are compared with a new prompt."""
MOST_FRAMES = 10**6
AFTERWARDS = "steps 61 to 120 of a new watch afterwards, ms and ms of the processor"
"""What a step costs at the end without the frames before: other programs may load the machine meanwhile."""
FIELDS = ("frame", "step ms", "processor ms", "memory MB")
Sample = tuple[int, float, float, float]


def draw(number: int) -> NDArray[np.uint8]:
    """Draw a frame with a rectangle of another color and size for each number."""
    rng = np.random.default_rng(number)
    image = Image.new("RGB", (320, 240), tuple(rng.integers(200, 256, 3).tolist()))
    left, top = rng.integers(10, 120), rng.integers(10, 80)
    box = [
        int(left),
        int(top),
        int(left + rng.integers(60, 180)),
        int(top + rng.integers(60, 140)),
    ]
    ImageDraw.Draw(image).rectangle(box, fill=COLORS[CHOICES[rng.integers(4)]])
    return np.asarray(image)


def source(index: int, count: int, distinct: int | None) -> Iterator[NDArray[np.uint8]]:
    """Draw the frames of a source; with `distinct` the same ones come again."""
    return (draw(index * MOST_FRAMES + at % (distinct or count)) for at in range(count))


def measure(
    vlm: VLM,
    count: int,
    memory: int,
    sources: int,
    detail: Detail | None,
    file: Path | None,
    distinct: int | None = None,
) -> dict[str, Any]:
    """Watch so many frames of all sources, and return what was measured.

    Args:
        distinct: frames of a source before they come again, with their embeddings; None: they never do.
        file: to which samples are written.
    """
    samples: list[Sample] = []
    times: list[float] = []
    used: list[float] = []
    seen_of = [0] * sources
    last: list[tuple[int, int, Choice]] = []
    with contextlib.ExitStack() as stack:
        lines = None
        if file is not None:
            opened = stack.enter_context(file.open("w", newline="", buffering=1))
            lines = csv.writer(opened, lineterminator="\n")
            lines.writerow(FIELDS)
        shown = [source(index, count // sources, distinct) for index in range(sources)]
        watch = vlm.watch(
            shown,
            QUESTION,
            choices=CHOICES,
            memory=memory,
            detail=detail,
            cache_images=distinct is not None,
        )
        begin = time.process_time()
        for step, seen in enumerate(stack.enter_context(watch), 1):
            times.append(1000 * seen.seconds)
            used.append(1000 * (time.process_time() - begin))
            if step % STEPS == 0:
                resident = (system.resident_memory() or 0) / 1e6
                medians = round(median(times), 2), round(median(used), 2)
                samples.append((step, *medians, round(resident, 2)))
                times.clear()
                used.clear()
                if lines is not None:
                    lines.writerow(samples[-1])
            seen_of[seen.source] += 1
            if step > count - COMPARED and isinstance(seen.answer, Choice):
                last.append((seen.source, seen_of[seen.source], seen.answer))
            begin = time.process_time()
        turn = measure_turn(vlm)
    compared = [
        (
            [
                draw(index * MOST_FRAMES + at % (distinct or count))
                for at in range(max(0, number - memory), number)
            ],
            choice,
        )
        for index, number, choice in last
    ]
    found = {"frames": count, "memory": memory, "sources": sources} | turn
    return found | summary(samples) | compare(vlm, compared, detail)


def measure_turn(vlm: VLM) -> dict[str, Any]:
    """Copy the memory that is held out and back, as for the turn of another source."""
    decoder, entries = vlm._engine._decoder, vlm._engine._kv_cache.held_positions
    times = []
    for _ in range(20):
        begin = time.process_time()
        copy = decoder.save()
        decoder.restore(copy, Place(entries, entries))
        times.append(1000 * (time.process_time() - begin))
    return {
        "entries of one memory": entries,
        "its copy, MB": round(copy.nbytes / 1e6, 2),
        "copied out and back, ms of the processor": round(median(times), 2),
    }


def summary(samples: list[Sample]) -> dict[str, Any]:
    """Return the time of a step and the growth of the process; samples have the `FIELDS`."""
    _, times, used, resident = zip(*samples, strict=True)
    warm = resident[int(WARM_UP * len(resident)) :]
    return {
        "first 60 steps, ms": times[0],
        "last 60 steps, ms": times[-1],
        "ratio": round(times[-1] / times[0], 3),
        "first and last 60 steps, ms of the processor": [used[0], used[-1]],
        "ratio of these": round(used[-1] / used[0], 3),
        "memory of the process after 60 frames, MB": resident[0],
        "after the warm-up, MB": warm[0],
        "at the end, MB": warm[-1],
        "growth after the warm-up, MB": round(max(warm) - warm[0], 1),
    }


def compare(
    vlm: VLM, compared: list[tuple[list[NDArray[np.uint8]], Choice]], detail: Detail | None
) -> dict[str, Any]:
    """Compare choices with those of new prompts about the same frames."""
    differences, same = [], 0
    for images, choice in compared:
        vlm._engine._kv_cache.reset()
        fresh = vlm.choose(images, QUESTION, CHOICES, cache_images=False, detail=detail)
        same += fresh.label == choice.label
        differences.append(
            max(abs(fresh.probabilities[one] - choice.probabilities[one]) for one in CHOICES)
        )
    return {
        "difference of a probability from a new prompt, median": round(median(differences), 4),
        "the same, most": round(max(differences), 4),
        "same label": f"{same} of {len(compared)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--frames", type=int, default=7200)
    parser.add_argument("--memory", type=int, default=8)
    parser.add_argument("--sources", type=int, default=1)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--detail", choices=["low", "high", "auto"])
    parser.add_argument("--distinct", metavar="N", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", metavar="FILE", type=Path)
    parser.add_argument("--vision")
    parser.add_argument("--decoder")
    options = parser.parse_args()
    given: Any = {name: getattr(options, name) for name in ("vision", "decoder")}
    given |= {"threads": options.threads, "device": "cpu"}
    settings = options.memory, options.sources, options.detail
    with VLM.from_pretrained(options.model, **given) as vlm:
        found = measure(vlm, options.frames, *settings, options.samples, options.distinct)
    with VLM.from_pretrained(options.model, **given) as vlm:
        new = measure(vlm, 2 * STEPS, *settings, None, options.distinct)
    found[AFTERWARDS] = [
        new["last 60 steps, ms"],
        new["first and last 60 steps, ms of the processor"][1],
    ]
    json.dump(found, sys.stdout, indent=2)
    print()


if __name__ == "__main__":
    main()
