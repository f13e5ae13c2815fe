"""What edgevlm's fixed settings on CPUs were chosen by: ``python -m benchmarks.settings FOLDER``.

Settings of memory, each undone once; tiles per run of the vision graph, with their time and memory;
llama.cpp's attention kernels, caches and batch lengths, at several lengths of context. The files are those
of `benchmarks.comparison`; rounds go through the settings in turn and medians count. Writes
FOLDER/settings.json. Not covered: GPUs.
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
from benchmarks.files import THREADS, Files, asked, described
from benchmarks.worker import Worker
from edgevlm.evaluation.report import write_json

ROUNDS = 3
TILES = 8
TOGETHER = (1, 2, 4, 8)
CONTEXT = 2560
LENGTHS = (16, 450, 1100, 2200)
TOKENS = 32
KERNELS = {"flash": "ENABLED", "plain": "DISABLED"}
BATCHES = (128, 256, 512)
CACHES = ("Q8_0", "F32")
"""Beside F16; with flash attention, which alone takes the first."""
UNDONE = ("nothing", "no memory plan", "no mapped weights", "freed memory returned")


class Undone(peers.EdgeVLM):
    """edgevlm with one of its settings of memory as if it had not been made."""

    def __init__(self, undone: str, **options: Any) -> None:
        from edgevlm.runtimes import system
        from edgevlm.runtimes.llama_cpp import library
        from edgevlm.runtimes.onnx import session

        if undone == "no memory plan":

            class Planned(session.OnnxVision):
                def _create_session(self, *arguments: Any, **named: Any) -> Any:
                    arguments[2].enable_mem_pattern = True
                    return super()._create_session(*arguments, **named)

            vars(session)["OnnxVision"] = Planned
        elif undone == "no mapped weights":
            llama = library.library()
            vars(llama)["LLAMA_LOAD_MODE_NONE"] = llama.LLAMA_LOAD_MODE_MMAP
        elif undone == "freed memory returned":
            system.return_freed_memory = lambda: None
        super().__init__(**options)


class Tiles(peers.Memory):
    """The vision graph in ONNX Runtime, some tiles a run."""

    def __init__(self, path: Path, input_name: str, output_name: str, together: int) -> None:
        from edgevlm.runtimes.onnx.session import OnnxVision

        class Runtime(OnnxVision):
            BATCH_LENGTH = together

        self._runtime = Runtime(
            path, input_name=input_name, output_name=output_name, device="cpu", threads=THREADS
        )

    def seconds(self, tiles: NDArray[np.uint8]) -> float:
        """For all of them."""
        start = time.perf_counter()
        self._runtime.encode(tiles)
        return time.perf_counter() - start


def by_tiles(files: Files, rounds: int) -> dict[int, dict[str, float]]:
    """Seconds a tile, and megabytes of the process, by the tiles of a run."""
    manifest = files.manifest
    path = files.bundle / manifest.vision.files["int8"].name
    names = {"input_name": manifest.vision.input_name, "output_name": manifest.vision.output_name}
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, *files.tile_size, 3), np.uint8)
    found = {}
    for together in TOGETHER:
        worker = Worker(Tiles, path=path, together=together, **names)
        taken = [worker.call("seconds", tiles) for _ in range(rounds + 1)][1:]
        memory = worker.call("peak_memory") / 1e6
        found[together] = {"seconds_a_tile": median(taken) / TILES, "memory_mb": memory}
        worker.close()
        print(f"{together} tiles a run: {median(taken) / TILES:.3f} s a tile, {memory:.0f} MB")
    return found


def by_memory(files: Files) -> dict[str, float]:
    """Peak megabytes of a picture of 17 tiles with one setting undone."""
    turns = [("user", [files.picture(0, SQUARE)], QUESTIONS[0])]
    found = {}
    for undone in UNDONE:
        given = {"threads": THREADS, "vision": "int8", "decoder": "q4_0", "device": "cpu"}
        worker = Worker(
            Undone, undone=undone, bundle=files.bundle, context_length=SHORT_CONTEXT, **given
        )
        worker.call("answer", turns, TOKENS)
        found[undone] = worker.call("peak_memory") / 1e6
        worker.close()
        print(f"undone: {undone}: {found[undone]:.0f} MB", flush=True)
    return found


def by_setting(files: Files, rounds: int) -> dict[str, dict[int, tuple[float, float]]]:
    """Positions and tokens per second of each setting after each length of context."""
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
        except RuntimeError as error:  # Q8_0 wants attention heads of a multiple of 32 numbers.
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
    files, rounds = asked(__doc__, ROUNDS)
    result = described(rounds) | {
        "memory_mb": by_memory(files),
        "tiles": by_tiles(files, rounds),
        "decoder": by_setting(files, rounds),
    }
    write_json(files.folder / "settings.json", result)


if __name__ == "__main__":
    main()
