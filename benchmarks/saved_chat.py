"""Measure what a saved KV cache is worth: ``python -m benchmarks.saved_chat [BUNDLE] [--rounds N]``.

A conversation about three camera frames is saved. Models that were just loaded continue it: one restores the
KV cache, the other has a context of another length and prefills again. The figures are medians of the
processor time with one thread, which other programs hardly change, on models loaded in turn. The default is
the built-in model. A model with random weights does not do, if its answers have no text.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from edgevlm import VLM
from edgevlm.results import Stats

THREADS = 1
FRAMES = 3


def frame(seed: int) -> Image.Image:
    """Return smooth noise, 640 x 480 pixels, which PNG compresses as a photograph or worse."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((640, 480), Image.Resampling.BICUBIC)).astype(np.int16)
    noisy = smooth + random.integers(-4, 5, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", nargs="?", default="edgevlm-nano")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    logging.getLogger("edgevlm").setLevel(logging.ERROR)  # it warns that the KV cache is not used
    seconds: dict[str, list[float]] = {"save": [], "restored": [], "prefilled again": []}
    stats: dict[str, Stats] = {}

    def measure(name: str, call: Any) -> Any:
        start = time.process_time()
        result = call()
        seconds[name].append(time.process_time() - start)
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "talk.zip")
        with VLM.from_pretrained(given.bundle, threads=THREADS) as vlm:
            length, chat = vlm.context_length, vlm.chat()
            for number in range(FRAMES):
                chat.send(f"Frame {number}?", images=frame(number), detail="auto", max_tokens=16)
            for _ in range(given.rounds):
                measure("save", lambda: chat.save(path))
        for turn in range(given.rounds):
            ways = {"restored": length, "prefilled again": length - 1}
            for name in sorted(ways, reverse=bool(turn % 2)):
                with VLM.from_pretrained(
                    given.bundle, threads=THREADS, context_length=ways[name]
                ) as vlm:
                    answer = measure(
                        name, lambda vlm=vlm: vlm.load_chat(path).send("And now?", max_tokens=1)
                    )
                stats[name] = answer.stats
        size = path.stat().st_size
    restored, again = stats["restored"], stats["prefilled again"]
    assert restored.cached_tokens and not restored.encoded_tiles and not again.cached_tokens
    print(
        f"{restored.prompt_tokens} positions, {again.encoded_tiles} tiles: a file of {size / 1e6:.1f} MB; "
        f"{1000 * median(seconds['save']):.0f} ms of processor time to save it; to load it and for the first "
        f"token {1000 * median(seconds['restored']):.0f} ms with the KV cache, "
        f"{1000 * median(seconds['prefilled again']):.0f} ms without it"
    )


if __name__ == "__main__":
    main()
