"""Measure questions that are answered together: ``python -m benchmarks.many [BUNDLE] [--rounds N]``.

Eight questions, about an image each or about one image, are answered by `VLM.ask_many` and by one `VLM.ask`
after another. Each round has new images, which no cache holds, and takes both ways in turn, on two models.
The figures are medians of the processor time with one thread, which other programs hardly change. The default
is the built-in model.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from edgevlm import VLM
from edgevlm.results import Answer

THREADS = 1
QUESTIONS = (
    "What is in the picture?",
    "What color is the shape at the top left?",
    "How many shapes are there?",
    "What shape is at the bottom?",
    "Is there a red circle?",
    "What color is the largest shape?",
    "Where is the square?",
    "What is at the right?",
)
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "black")


def drawing(rng: np.random.Generator) -> Image.Image:
    """Return a white image with a few shapes."""
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    for cell in rng.permutation(6)[: rng.integers(1, 5)].tolist():
        x, y = 105 * (cell % 3) + 20, 115 * (cell // 3) + 20
        size = int(rng.integers(50, 75))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + size, y + size), fill=COLORS[rng.integers(len(COLORS))])
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="edgevlm-nano")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args()
    options: dict[str, Any] = {"max_tokens": given.max_tokens, "detail": "low"}
    rng = np.random.default_rng(0)
    alone, together = (VLM.from_pretrained(given.bundle, threads=THREADS) for _ in range(2))

    def one_by_one(requests: list[Any]) -> list[Any]:
        return [alone.ask(*request, **options) for request in requests]

    def many(requests: list[Any]) -> list[Any]:
        return together.ask_many(requests, **options)

    ways: tuple[Callable[[list[Any]], list[Any]], ...] = (one_by_one, many)
    for name, images in (("an image each", len(QUESTIONS)), ("one image", 1)):
        seconds: dict[str, list[float]] = {way.__name__: [] for way in ways}
        tokens, equal, total = 0, 0, 0
        for turn in range(given.rounds + 1):  # the first one warms up
            drawings = [drawing(rng) for _ in range(images)]
            requests = [
                (drawings[index % images], question) for index, question in enumerate(QUESTIONS)
            ]
            answers = {}
            for way in ways[:: 1 if turn % 2 else -1]:
                start = time.process_time()
                answers[way.__name__] = way(requests)
                if turn:
                    seconds[way.__name__].append(time.process_time() - start)
            for ours, theirs in zip(answers["many"], answers["one_by_one"], strict=True):
                assert isinstance(ours, Answer)
                total += 1
                tokens += len(theirs.token_ids)
                equal += ours.token_ids == theirs.token_ids
        apart, joint = (median(seconds[way.__name__]) for way in ways)
        print(
            f"{name}: {1000 * apart:.0f} ms of processor time one after another, "
            f"{1000 * joint:.0f} ms together, "
            f"{apart / joint:.2f} times the throughput; {tokens / total:.1f} tokens an answer, "
            f"{equal} of {total} answers equal"
        )
    alone.close()
    together.close()


if __name__ == "__main__":
    main()
