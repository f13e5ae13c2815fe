"""Measure what forced tokens save: ``python -m benchmarks.forced_tokens [BUNDLE]``.

The answer keeps to a JSON schema with long keys, which leaves no choice for most of its tokens. They are
decoded in batches, and for comparison one at a time. The answers must be the same. The figures are medians;
the default is the built-in model.
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any
from unittest import mock

import numpy as np

from edgevlm import VLM, Answer
from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.engine import answer_decoder

THREADS = 2
ROUNDS = 15
KEYS = [f"distance_to_the_{thing}_in_centimetres" for thing in ("mug", "box", "wall", "door")]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {key: {"type": "integer", "minimum": 0, "maximum": 300} for key in KEYS},
    "required": KEYS,
    "additionalProperties": False,
}


def answer(vlm: VLM, batch: int) -> Answer:
    image = np.full((224, 224, 3), 200, np.uint8)
    with mock.patch.object(answer_decoder, "MAX_FORCED_TOKENS", batch):
        return vlm.ask(image, "How far away are the things?", json_schema=SCHEMA)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default=DEFAULT_MODEL)
    batches = {"in batches": answer_decoder.MAX_FORCED_TOKENS, "one at a time": 1}
    found: dict[str, list[Answer]] = {name: [] for name in batches}
    with VLM.from_pretrained(parser.parse_args().bundle, threads=THREADS) as vlm:
        for _ in range(ROUNDS + 1):
            for name, batch in batches.items():
                found[name].append(answer(vlm, batch))
    if len({one.token_ids for answers in found.values() for one in answers}) != 1:
        raise SystemExit("the answers differ")
    first = found["in batches"][0].stats
    print(f"{first.answer_tokens} tokens, {first.forced_tokens} of them forced")
    for name, answers in found.items():
        # the first answer encodes the image and tries the schema
        seconds = (
            median(
                one.stats.total_ms - one.stats.prepare_ms - one.stats.encode_ms
                for one in answers[1:]
            )
            / 1000
        )
        print(
            f"{name}: {seconds * 1000:.1f} ms, {first.answer_tokens / seconds:.0f} tokens per second"
        )


if __name__ == "__main__":
    main()
