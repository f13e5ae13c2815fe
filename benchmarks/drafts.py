"""Measure the cost and the gain of a draft: ``python -m benchmarks.drafts [DECODER.gguf]``.

A draft of n tokens is decoded as one batch with the token before it. It saves the decoding of n tokens if all
of it is right, and it costs the time of the batch beyond one token if nothing is right. The figures are
medians. The default is the built-in model.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np

from edgevlm.bundle import Bundle
from edgevlm.engine.prompt_lookup import MAX_DRAFT_LENGTH
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place

THREADS = 2
POSITIONS = 130
"""Positions before the draft: a question about an image of one tile."""
ROUNDS = 30


def seconds(decoder: LlamaCppDecoder, rounds: int = ROUNDS) -> dict[int, float]:
    """Measure a batch, in seconds, by the number of draft tokens in it."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, decoder.vocabulary_size - 3, POSITIONS + MAX_DRAFT_LENGTH + 1).tolist()
    at = np.arange(len(tokens), dtype=np.int32)
    decoder.decode_tokens(tokens[:POSITIONS], at[:POSITIONS], logits=False)
    taken: dict[int, list[float]] = {length: [] for length in range(MAX_DRAFT_LENGTH + 1)}
    for _ in range(rounds):
        for length, found in taken.items():
            decoder.truncate(Place(POSITIONS, POSITIONS))
            batch = slice(POSITIONS, POSITIONS + length + 1)
            start = time.perf_counter()
            decoder.decode_draft(tokens[batch], at[batch])
            found.append(time.perf_counter() - start)
    return {length: median(found) for length, found in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("decoder", type=Path, nargs="?")
    path = parser.parse_args().decoder
    if path is None:
        nano = Bundle.open("edgevlm-nano")
        path = nano.path(nano.decoder_file(None))
    decoder = LlamaCppDecoder(path, context_length=512, threads=THREADS)
    found = seconds(decoder)
    for length, taken in found.items():
        single = found[0]
        print(
            f"draft of {length}: {taken * 1000:6.1f} ms, {taken / single:4.1f} times one token; "
            f"all right: {(length + 1) * single / taken:4.1f} times as fast"
        )
    decoder.close()


if __name__ == "__main__":
    main()
