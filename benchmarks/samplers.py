"""Compare the samplers in NumPy and in llama.cpp: ``python -m benchmarks.samplers``.

Both choose from the same logits in turns, of vocabularies of SmolLM2's and Gemma 3's size. The figures are
medians for one token. llama.cpp's chain gets its list of tokens by a copy, which `llama_sampler_sample` would
write itself.
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.llama_cpp.sampler import LlamaCppSampler
from edgevlm.runtimes.protocols import Sampling
from edgevlm.runtimes.sampler import NumpySampler

VOCABULARIES = (49_152, 262_144)
SETTINGS = {
    "greedy": Sampling(),
    "greedy, penalty": Sampling(repetition_penalty=1.1),
    "defaults": Sampling(temperature=1.0),
    "defaults, penalty": Sampling(temperature=1.0, repetition_penalty=1.1),
    "top-k 200": Sampling(temperature=1.0, top_k=200),
    "no top-k": Sampling(temperature=1.0, top_k=0),
    "temperature alone": Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0),
}


def some_logits(size: int) -> NDArray[np.float32]:
    """Return logits of which a few are likely; ids of frequent tokens are low, as merges number them."""
    random = np.random.default_rng(0)
    logits = 2.5 * random.standard_normal(size) - 0.3 * np.log1p(np.arange(size))
    logits[random.integers(size, size=20)] += 12
    return logits.astype(np.float32)


def chain(sampling: Sampling, logits: NDArray[np.float32]) -> Callable[[], int]:
    """Return llama.cpp's choice of a token."""
    llama = load_llama_cpp()
    size = len(logits)
    sampler = LlamaCppSampler(None, size, sampling, lambda: logits)
    if sampler._greedy:
        return sampler.sample
    listed = np.zeros(size, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
    listed["id"], listed["logit"] = np.arange(size), logits
    candidates: Any = (llama.llama_token_data * size)()

    def sample() -> int:
        ctypes.memmove(candidates, listed.ctypes.data, listed.nbytes)
        array = llama.llama_token_data_array(candidates, size, -1, False)
        llama.llama_sampler_apply(sampler._chain, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        llama.llama_sampler_accept(sampler._chain, token)
        return token

    return sample


def seconds(calls: list[Callable[[], int]], rounds: int) -> list[float]:
    """Return the median time of each call, in turns."""
    taken: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [median(found) for found in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    rounds = parser.parse_args().rounds
    for size in VOCABULARIES:
        logits = some_logits(size)
        print(f"{size} tokens")
        for name, sampling in SETTINGS.items():
            ours = NumpySampler(size, sampling, lambda logits=logits: logits)  # type: ignore[misc]
            theirs, numpy = seconds([chain(sampling, logits), ours.sample], rounds)
            print(f"  {name:18} llama.cpp {1e6 * theirs:6.0f} µs, NumPy {1e6 * numpy:6.0f} µs")


if __name__ == "__main__":
    main()
