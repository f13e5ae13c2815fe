"""Measure a vision graph's time by operator: ``python -m benchmarks.operators FILE.onnx``.

The figures are from ONNX Runtime's profile of one tile at a time: medians of each node, summed by operator.
For the decoder, ``edgevlm bench`` reports the share of the machine's memory bandwidth and arithmetic.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnxruntime

THREADS = 2
ROUNDS = 5


def by_operator(path: Path, rounds: int = ROUNDS, threads: int = THREADS) -> dict[str, float]:
    """Return milliseconds per tile by operator, the largest first."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        (entry,) = session.get_inputs()
        shape = [1, *entry.shape[1:]]
        for i in range(rounds):
            tile = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
            session.run(None, {entry.name: tile})
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    taken: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"], event["name"]].append(event["dur"] / 1000)
    found: defaultdict[str, float] = defaultdict(float)
    for (operator, _), milliseconds in taken.items():
        found[operator] += statistics.median(milliseconds)
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    found = by_operator(parser.parse_args().file)
    total = sum(found.values())
    for operator, milliseconds in found.items():
        print(f"{operator:32}{milliseconds:9.1f} ms{milliseconds / total:8.1%}")
    print(f"{'all':32}{total:9.1f} ms")


if __name__ == "__main__":
    main()
