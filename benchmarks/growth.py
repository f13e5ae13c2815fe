"""How cost grows with tiles, pictures, context and answer: ``python -m benchmarks.growth FOLDER``.

SmolVLM-256M's real shape with random weights, as in `benchmarks.comparison`, whose files it shares. Writes
FOLDER/growth.json; `python -m benchmarks.plots FOLDER` draws it. Each figure is the median of the rounds.
Not covered: GPUs, several requests at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks import peers
from benchmarks.comparison import QUESTIONS
from benchmarks.files import THREADS, Files, asked, described
from benchmarks.peers import Turn
from benchmarks.worker import Worker
from edgevlm.evaluation.report import write_json
from edgevlm.results import Stats

ROUNDS = 3
CONTEXT = 8192
MOSAICS = ((1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 4))
"""Columns and rows that a picture is cut into; all but the first have the whole as one more tile."""
PICTURES = (1, 2, 3, 4, 6, 8)
CONTEXTS = (16, 256, 512, 1024, 2048, 4096, 8192 - 16)
ANSWERS = (1, 32, 128, 512)
FOLLOWED = 16
"""Tokens that are decoded after a context to tell how fast that is."""


@dataclass(frozen=True)
class Cost:
    """What one question costs, seconds."""

    tiles: int
    positions: int
    """Of the prompt."""
    encode: float
    prefill: float
    first_token: float


def cost_of(
    worker: Worker,
    rounds: int,
    pictures: list[tuple[int, int]],
    files: Files,
    seeds: Iterator[int],
) -> Cost:
    """A question about pictures of the given sizes that no cache knows."""
    found: list[Stats] = []
    for _ in range(rounds):
        shown = [files.picture(next(seeds), size) for size in pictures]
        turns: list[Turn] = [("user", shown, QUESTIONS[0])]
        found.append(worker.call("answer", turns, 1, detail="auto").stats)
    return Cost(
        tiles=found[0].encoded_tiles,
        positions=found[0].prompt_tokens,
        encode=median([stats.encode_ms / 1000 for stats in found]),
        prefill=median([stats.prefill_ms / 1000 for stats in found]),
        first_token=median([stats.first_token_ms / 1000 for stats in found]),
    )


def by_pictures(files: Files, rounds: int) -> tuple[list[Cost], list[Cost]]:
    """One picture of ever more tiles and then four of the largest; and ever more pictures of one tile."""
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
    tiles = [cost_of(worker, rounds, shown, files, seeds) for shown in sets]
    pictures = [cost_of(worker, rounds, [sizes[0]] * count, files, seeds) for count in PICTURES]
    worker.close()
    return tiles, pictures


def by_context(files: Files, rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Positions and tokens per second at each length of context, ours and llama.cpp's defaults."""
    decoder = {"decoder": files.decoder("q4_0"), "threads": THREADS, "context_length": CONTEXT}
    workers = {
        "edgevlm": Worker(peers.OurDecoder, **decoder),
        "llama.cpp, its default settings": Worker(
            peers.BareLoop, **decoder, flash_attention="AUTO"
        ),
    }
    found: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in workers}
    for length in CONTEXTS:
        prompt = min(length, CONTEXT - FOLLOWED)
        taken = {
            name: [worker.call("rates", prompt, FOLLOWED) for _ in range(rounds)]
            for name, worker in workers.items()
        }
        for name, rates in taken.items():
            prefill, decode = zip(*rates, strict=True)
            found[name][length] = median(prefill), median(decode)
    for worker in workers.values():
        worker.close()
    return found


def by_answer(files: Files, rounds: int) -> dict[int, float]:
    """Seconds for an answer of so many tokens after a prompt of 16."""
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
    files, rounds = asked(__doc__, ROUNDS)
    context, answer = by_context(files, rounds), by_answer(files, rounds)
    tiles, pictures = by_pictures(files, rounds)
    result = described(rounds) | {
        "tiles": [vars(cost) for cost in tiles],
        "pictures": [vars(cost) for cost in pictures],
        "context": context,
        "answer": answer,
    }
    write_json(files.folder / "growth.json", result)


if __name__ == "__main__":
    main()
