"""Compare the decoders of a bundle, GGUF files and ONNX graphs: ``python -m benchmarks.decoders BUNDLE``.

Each decoder prefills random tokens and then decodes one token after another, at two depths of the context.
The decoders take turns, in one process; a result is the median of the rounds. JSON goes to stdout.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgevlm.bundle import Bundle
from edgevlm.engine.loading import load_decoder
from edgevlm.runtimes import system
from edgevlm.runtimes.protocols import DecoderRuntime, Place

PROMPT = 512
"""Tokens of a prefill."""
ANSWER = 16
"""Tokens that are decoded one by one."""
DEEP = 2048
"""Entries before the second measurement."""


def decode(decoder: DecoderRuntime, tokens: list[int], start: int) -> float:
    """Decode tokens in one call, and return the seconds."""
    positions = np.arange(start, start + len(tokens), dtype=np.int32)
    begin = time.perf_counter()
    decoder.decode_tokens(tokens, positions, logits=True)
    return time.perf_counter() - begin


def measure(decoder: DecoderRuntime, seed: int) -> dict[str, float]:
    """Return tokens per second of one round."""
    tokens = np.random.default_rng(seed).integers(0, decoder.vocabulary_size, DEEP + PROMPT)
    ids: list[int] = tokens.tolist()
    decoder.truncate(Place())
    found = {f"prefill of {PROMPT}": PROMPT / decode(decoder, ids[:PROMPT], 0)}
    at = PROMPT
    steps = [decode(decoder, [token], at + index) for index, token in enumerate(ids[:ANSWER])]
    found[f"answer after {PROMPT}"] = 1 / statistics.median(steps)
    if decoder.context_length >= DEEP + ANSWER:
        decoder.truncate(Place(PROMPT, PROMPT))
        decode(decoder, ids[PROMPT:DEEP], PROMPT)
        steps = [decode(decoder, [token], DEEP + index) for index, token in enumerate(ids[:ANSWER])]
        found[f"answer after {DEEP}"] = 1 / statistics.median(steps)
    return found


def compare(decoders: Mapping[str, DecoderRuntime], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median tokens per second of each decoder."""
    results: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for round_ in range(rounds):
        for name, decoder in decoders.items():
            for what, speed in measure(decoder, round_).items():
                results[name][what].append(speed)
    return {
        name: {what: round(statistics.median(speeds), 1) for what, speeds in measured.items()}
        for name, measured in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    bundle = Bundle.open(arguments.bundle)
    manifest = bundle.manifest
    length = min(manifest.decoder.context_length, DEEP + ANSWER)
    decoders, size = {}, {}
    for name, entry in manifest.decoder.choices.items():
        path = bundle.path(entry)
        decoders[name] = load_decoder(
            manifest, path, context_length=length, threads=arguments.threads
        )
        needed = manifest.decoder.needed(entry)
        size[name] = round(sum(one.size for one in needed) / 1e6, 1)
    found: dict[str, Any] = {
        "processor": system.cpu_model(),
        "threads": arguments.threads,
        "size of the files, MB": size,
        "tokens per second": compare(decoders, arguments.rounds),
    }
    json.dump(found, sys.stdout, indent=2)
    print()
    for decoder in decoders.values():
        decoder.close()


if __name__ == "__main__":
    main()
