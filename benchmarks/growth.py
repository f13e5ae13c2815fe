"""Measure how cost grows with tiles, images, context and answer: ``python -m benchmarks.growth FOLDER``.

Model and files are those of `benchmarks.comparison`. The result is in FOLDER/growth.json, and
`python -m benchmarks.plots FOLDER` draws it. Each figure is the median of the rounds, on the CPU, with one
request at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks import peers
from benchmarks.comparison import QUESTIONS
from benchmarks.files import THREADS, Files, environment, parse_arguments
from benchmarks.peers import Message
from benchmarks.worker import Worker
from edgevlm.evaluation.report import write_json
from edgevlm.results import Stats

ROUNDS = 3
CONTEXT = 8192
MOSAICS = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 4))
"""Columns and rows of tiles; all but the first have the whole image as one more tile."""
IMAGE_COUNTS = (1, 2, 3, 4, 6, 8)
CONTEXTS = (16, 256, 512, 1024, 2048, 4096, 8192 - 16)
ANSWERS = (1, 32, 128, 512)
DECODED_TOKENS = 16
"""Tokens that are decoded after a context to measure the rate."""


@dataclass(frozen=True)
class Cost:
    """Cost of one question; times are in seconds."""

    tiles: int
    positions: int
    """Positions of the prompt."""
    encode: float
    prefill: float
    first_token: float


def measure_cost(
    worker: Worker,
    rounds: int,
    images: list[tuple[int, int]],
    files: Files,
    seeds: Iterator[int],
) -> Cost:
    """Measure a question about new images of the given sizes."""
    found: list[Stats] = []
    for _ in range(rounds):
        shown = [files.image(next(seeds), size) for size in images]
        turns: list[Message] = [("user", shown, QUESTIONS[0])]
        found.append(worker.call("answer", turns, 1, detail="auto").stats)
    return Cost(
        tiles=found[0].encoded_tiles,
        positions=found[0].prompt_tokens,
        encode=median([stats.encode_ms / 1000 for stats in found]),
        prefill=median([stats.prefill_ms / 1000 for stats in found]),
        first_token=median([stats.first_token_ms / 1000 for stats in found]),
    )


def measure_images(files: Files, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """Measure one image with more and more tiles, up to four of the largest, and more images of one tile."""
    worker = Worker(
        peers.EdgeVLM,
        bundle=files.bundle,
        threads=THREADS,
        context_length=CONTEXT,
        vision="int8",
        decoder="q4_0",
        device="cpu",
    )
    height, width = files.tile_size
    sizes = [(width * columns, height * rows) for columns, rows in MOSAICS]
    sets = [*([size] for size in sizes), [sizes[-1]] * 2, [sizes[-1]] * 4]
    seeds = itertools.count(1000)
    tiles = [measure_cost(worker, rounds, shown, files, seeds) for shown in sets]
    images = [
        measure_cost(worker, rounds, [sizes[0]] * count, files, seeds) for count in IMAGE_COUNTS
    ]
    worker.close()
    return tiles, images


def measure_contexts(files: Files, rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Measure prefill and decoding rates at each length of context, ours and llama.cpp's defaults."""
    decoder = {"decoder": files.decoder("q4_0"), "threads": THREADS, "context_length": CONTEXT}
    workers = {
        "edgevlm": Worker(peers.OurDecoder, **decoder),
        "llama.cpp, its default settings": Worker(
            peers.BareLoop, **decoder, flash_attention="AUTO"
        ),
    }
    found: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in workers}
    for length in CONTEXTS:
        prompt = min(length, CONTEXT - DECODED_TOKENS)
        taken = {
            name: [worker.call("rates", prompt, DECODED_TOKENS) for _ in range(rounds)]
            for name, worker in workers.items()
        }
        for name, rates in taken.items():
            prefill, decode = zip(*rates, strict=True)
            found[name][length] = median(prefill), median(decode)
    for worker in workers.values():
        worker.close()
    return found


def measure_answers(files: Files, rounds: int) -> dict[int, float]:
    """Measure the seconds for an answer by its tokens, after a prompt of 16."""
    worker = Worker(
        peers.OurDecoder,
        decoder=files.decoder("q4_0"),
        threads=THREADS,
        context_length=CONTEXT,
    )
    found = {
        length: median([length / worker.call("rates", 16, length)[1] for _ in range(rounds)])
        for length in ANSWERS
    }
    worker.close()
    return found


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    context, answer = measure_contexts(files, rounds), measure_answers(files, rounds)
    tiles, images = measure_images(files, rounds)
    result = environment(rounds) | {
        "tiles": [vars(cost) for cost in tiles],
        "pictures": [vars(cost) for cost in images],
        "context": context,
        "answer": answer,
    }
    write_json(files.folder / "growth.json", result)


if __name__ == "__main__":
    main()
