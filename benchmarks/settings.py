"""Measure the alternatives to edgevlm's fixed settings on CPUs: ``python -m benchmarks.settings FOLDER``.

It measures memory with each memory setting removed, time and memory by tiles per run of the vision graph,
and llama.cpp's attention kernels, cache types and batch lengths at several lengths of context. The files are
those of `benchmarks.comparison`. Each round measures all settings; the medians count. The result is in
FOLDER/settings.json.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.comparison import QUESTIONS, SHORT_CONTEXT, SQUARE
from benchmarks.files import THREADS, Files, environment, parse_arguments
from benchmarks.worker import Worker
from edgevlm.evaluation.report import write_json

ROUNDS = 3
TILES = 8
BATCH_SIZES = (1, 2, 4, 8)
CONTEXT = 2560
LENGTHS = (16, 450, 1100, 2200)
TOKENS = 32
KERNELS = {"flash": "ENABLED", "plain": "DISABLED"}
BATCHES = (128, 256, 512)
CACHES = ("Q8_0", "F32")
"""Cache types besides F16. They are measured with flash attention, which Q8_0 needs."""
REMOVED = ("nothing", "no memory plan", "no mapped weights", "freed memory returned")


class WithoutSetting(peers.EdgeVLM):
    """edgevlm without one of its memory settings."""

    def __init__(self, removed: str, **options: Any) -> None:
        from edgevlm.runtimes import system
        from edgevlm.runtimes.llama_cpp import library
        from edgevlm.runtimes.onnx import session, vision

        if removed == "no memory plan":

            class Planned(session.SessionOpener):
                def _create_session(self, *arguments: Any, **named: Any) -> Any:
                    arguments[2].enable_mem_pattern = True
                    return super()._create_session(*arguments, **named)

            vars(vision)["SessionOpener"] = Planned
        elif removed == "no mapped weights":
            llama = library.load_llama_cpp()
            vars(llama)["LLAMA_LOAD_MODE_NONE"] = llama.LLAMA_LOAD_MODE_MMAP
        elif removed == "freed memory returned":
            system.return_freed_memory = lambda: None
        super().__init__(**options)


class Tiles(peers.Memory):
    """The vision graph in ONNX Runtime with a number of tiles per run."""

    def __init__(self, path: Path, input_name: str, output_name: str, batch_size: int) -> None:
        from edgevlm.runtimes.onnx.vision import OnnxVision

        class Runtime(OnnxVision):
            BATCH_SIZE = batch_size

        self._runtime = Runtime(
            path, input_name=input_name, output_name=output_name, device="cpu", threads=THREADS
        )

    def seconds(self, tiles: NDArray[np.uint8]) -> float:
        """Return the seconds for all tiles."""
        start = time.perf_counter()
        self._runtime.encode(tiles)
        return time.perf_counter() - start


def measure_batch_sizes(files: Files, rounds: int) -> dict[int, dict[str, float]]:
    """Measure seconds per tile, and megabytes of the process, by tiles per run."""
    manifest = files.manifest
    path = files.bundle / manifest.vision.files["int8"].name
    names = {"input_name": manifest.vision.input_name, "output_name": manifest.vision.output_name}
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, *files.tile_size, 3), np.uint8)
    found = {}
    for batch_size in BATCH_SIZES:
        worker = Worker(Tiles, path=path, batch_size=batch_size, **names)
        taken = [worker.call("seconds", tiles) for _ in range(rounds + 1)][1:]
        memory = worker.call("peak_memory") / 1e6
        found[batch_size] = {"seconds_a_tile": median(taken) / TILES, "memory_mb": memory}
        worker.close()
        print(f"{batch_size} tiles a run: {median(taken) / TILES:.3f} s a tile, {memory:.0f} MB")
    return found


def measure_memory_settings(files: Files) -> dict[str, float]:
    """Measure peak megabytes for an image of 17 tiles with one setting removed."""
    turns = [("user", [files.image(0, SQUARE)], QUESTIONS[0])]
    found = {}
    for removed in REMOVED:
        given = {"threads": THREADS, "vision": "int8", "decoder": "q4_0", "device": "cpu"}
        worker = Worker(
            WithoutSetting,
            removed=removed,
            bundle=files.bundle,
            context_length=SHORT_CONTEXT,
            **given,
        )
        worker.call("answer", turns, TOKENS)
        found[removed] = worker.call("peak_memory") / 1e6
        worker.close()
        print(f"removed: {removed}: {found[removed]:.0f} MB", flush=True)
    return found


def measure_decoder_settings(
    files: Files, rounds: int
) -> dict[str, dict[int, tuple[float, float]]]:
    """Measure prefill and decoding rates of each setting after each length of context."""
    given = {
        "decoder": files.decoder("q4_0"),
        "threads": THREADS,
        "context_length": min(CONTEXT, files.manifest.decoder.context_length),
    }
    wanted: dict[str, dict[str, Any]] = {
        f"{name} {batch}": {"flash_attention": kernel, "batch_length": batch}
        for name, kernel in KERNELS.items()
        for batch in BATCHES
    }
    for cache in CACHES:
        wanted[f"flash 256 {cache}"] = {
            "flash_attention": "ENABLED",
            "batch_length": 256,
            "cache_type": cache,
        }
    workers = {}
    for name, setting in wanted.items():
        try:
            workers[name] = Worker(peers.BareLoop, **given, **setting)
        except RuntimeError as error:  # Q8_0 needs attention heads of a multiple of 32 numbers.
            print(f"{name} left out: {error}")
    found: dict[str, dict[int, tuple[float, float]]] = {name: {} for name in workers}
    for length in LENGTHS:
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in workers}
        for i in range(rounds + 1):
            for name, worker in workers.items():
                measured = worker.call("rates", length, TOKENS)
                if i:
                    rates[name].append(measured)
        for name, taken in rates.items():
            prefill, decode = (median(each) for each in zip(*taken, strict=True))
            found[name][length] = prefill, decode
            print(
                f"{length:5} positions, {name:15} prefill {prefill:7.0f}/s, decode {decode:7.1f}/s"
            )
    for worker in workers.values():
        worker.close()
    return found


def main() -> None:
    files, rounds = parse_arguments(__doc__, ROUNDS)
    result = environment(rounds) | {
        "memory_mb": measure_memory_settings(files),
        "tiles": measure_batch_sizes(files, rounds),
        "decoder": measure_decoder_settings(files, rounds),
    }
    write_json(files.folder / "settings.json", result)


if __name__ == "__main__":
    main()
