"""Measure what `VLM.watch` costs beside the work of the model: ``python -m benchmarks.frame_cost FOLDER``.

The model has the shape of SmolVLM-256M and random weights, and sees one tile of each frame of 640 x 480
pixels. A step of `watch` resizes the frame, builds the prompt, encodes, decodes what is new, and answers. The
bare loop calls the two runtimes alone, with the tile and the tokens made before: encode, decode the frame's
part of the prompt, sample and decode the answer. Both take turns, frame by frame, and give the same tokens.
Both have one thread, and their processor time counts, so that other work on the machine disturbs little.
After half of the rounds the two models change places. The result is in FOLDER/frame_cost.json.
"""

from __future__ import annotations

import time
from contextlib import closing
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.files import environment, parse_arguments
from edgevlm import VLM, Answer
from edgevlm.evaluation.report import write_json
from edgevlm.inputs.image_processor import ProcessedImage, Span
from edgevlm.inputs.prompt import user_message
from edgevlm.options import Generation

ROUNDS = 30
HEIGHT, WIDTH = 480, 640
QUESTION = "What is in the picture?"
OPTIONS: Any = {"max_tokens": 4, "detail": "low", "cache_images": False, "repetition_penalty": 1.01}
"""With a penalty there are no drafts, so that both decode the answer one token after another."""


def frames(count: int) -> list[NDArray[np.uint8]]:
    """Return frames of noise."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(count)]


class BareLoop:
    """The runtimes of a model, which nothing else uses."""

    def __init__(self, vlm: VLM) -> None:
        self._engine = vlm._engine
        self._generation = Generation(**OPTIONS)

    def prepare(self, frame: NDArray[np.uint8]) -> ProcessedImage:
        """Resize a frame into its tile."""
        image = self._engine.process_image(frame, self._generation.image_budget)
        assert len(image.pixels) == len(image.spans) == 1
        return image

    def answer(self, image: ProcessedImage) -> tuple[float, tuple[int, ...]]:
        """Return the seconds of the processor for a frame, and the tokens of the answer."""
        engine, decoder = self._engine, self._engine._decoder
        (span,), pixels = image.spans, np.stack(image.pixels)
        items = engine.tokenize([user_message(QUESTION, 1)], [image])
        place = items.index(span)
        head = [item for item in items[:place] if not isinstance(item, Span)]
        tail = [item for item in items[place + 1 :] if not isinstance(item, Span)]
        vision, scale = engine._encoder._vision, engine._encoder._scale
        if engine._kv_cache.held != tuple(
            head
        ):  # the first frame decodes what all prompts begin with
            engine._kv_cache.reset()
            decoder.decode_tokens(head, np.arange(len(head), dtype=np.int32), logits=False)
            engine._kv_cache.extend(head)
        begin = time.process_time()
        engine._kv_cache.settle()  # cuts the decoder back to the head
        rows = span.plan.pack(list(vision.encode(pixels) * scale))
        at = len(head)
        decoder.decode_embeddings(rows, np.arange(at, at + len(rows), dtype=np.int32), logits=False)
        at += len(rows)
        decoder.decode_tokens(tail, np.arange(at, at + len(tail), dtype=np.int32), logits=True)
        at += len(tail)
        tokens: list[int] = []
        with closing(decoder.sampler(self._generation.sampling, engine._end_tokens)) as sampler:
            while len(tokens) < OPTIONS["max_tokens"]:
                if tokens:
                    decoder.decode_tokens(tokens[-1:], np.array([at], np.int32), logits=True)
                    at += 1
                if (token := sampler.sample()) in engine._end_tokens:
                    break
                tokens.append(token)
        return time.process_time() - begin, tuple(tokens)


def measure(
    watching: VLM, bare: BareLoop, shown: list[NDArray[np.uint8]]
) -> dict[str, list[float]]:
    """Answer each frame in both ways, and return the seconds; the first two frames are not counted."""
    times: dict[str, list[float]] = {"watch": [], "bare": []}
    with watching.watch(iter(shown), QUESTION, **OPTIONS) as watch:
        for index, frame in enumerate(shown):
            image = bare.prepare(frame)
            answers: dict[str, tuple[int, ...]] = {}
            for which in ("watch", "bare") if index % 2 else ("bare", "watch"):
                if which == "bare":
                    seconds, answers["bare"] = bare.answer(image)
                else:
                    begin = time.process_time()
                    seen = next(watch)
                    seconds = time.process_time() - begin
                    assert isinstance(seen.answer, Answer)
                    answers["watch"] = seen.answer.token_ids
                times[which].append(seconds)
            assert answers["bare"] == answers["watch"]
    return {name: taken[2:] for name, taken in times.items()}


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    given: Any = {"threads": 1, "vision": "int8", "decoder": "q4_0", "device": "cpu"}
    half = (rounds + 1) // 2
    with (
        VLM.from_pretrained(files.bundle, **given) as one,
        VLM.from_pretrained(files.bundle, **given) as other,
    ):
        parts = [
            measure(one, BareLoop(other), frames(half + 2)),
            measure(other, BareLoop(one), frames(half + 2)),
        ]
    watch, bare = ([part for each in parts for part in each[name]] for name in ("watch", "bare"))
    found = {
        "watch, ms": 1000 * median(watch),
        "bare encode and decode, ms": 1000 * median(bare),
        "more, percent": 100 * (median(watch) / median(bare) - 1),
        "more, percent, median of the pairs": 100
        * (median(a / b for a, b in zip(watch, bare, strict=True)) - 1),
    }
    for name, value in found.items():
        print(f"{name:40} {value:8.1f}")
    write_json(files.folder / "frame_cost.json", environment(rounds) | {"threads": 1} | found)


if __name__ == "__main__":
    main()
