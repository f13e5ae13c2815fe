"""Compare models for images of their own size with llama.cpp: ``python -m benchmarks.native_images FOLDER``.

The models have real shapes and random weights. edgevlm runs beside llama.cpp's own multimodal stack (mtmd)
with the same decoder file. A camera frame of 640 x 480 pixels is new in each round. Each round asks all four
set-ups; every other round is in the opposite order. The result is in FOLDER/native_images.json.

Each program has one thread, and the figures are its processor time: other programs on the machine change
those little. With ``--threads 2`` the time on the clock counts; nothing else may run then.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import peers
from benchmarks.comparison import FRAME, PHASES, QUESTIONS
from benchmarks.files import Files, environment, run_python
from benchmarks.mmproj import write_mmproj
from benchmarks.worker import Worker
from edgevlm.evaluation.report import write_json

ROUNDS = 3
CONTEXT = 2048
DECODER = "q8_0"
SHAPES = {"LFM2-VL 450M": "lfm2-vl", "Qwen3-VL 2B": "qwen3-vl"}
"""Names in `tests.families.real_shapes`, and folders."""
SETUPS = ("edgevlm int8", "edgevlm fp32", "mtmd q8_0", "mtmd f16")
"""Program, and precision of the vision part."""
REFERENCE = "edgevlm fp32"


class ShapeFiles(Files):
    """Checkpoint, bundle, projectors and frames of one shape; missing ones are created."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder / SHAPES[name])
        self.name = name

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            # The import is here because it loads PyTorch, and workers would load it, too.
            from tests.families import real_shapes

            real_shapes.build(real_shapes.SHAPES[self.name], self.folder)
        if not self.bundle.exists():
            precisions = ["--vision", "fp32,int8", "--decoder", DECODER]
            # The parity of random weights is not that of a model.
            options = ["--quick", "--allow-drift", *precisions]
            run_python("-m", "edgevlm", "export", self.checkpoint, self.bundle, *options)
        for precision in ("f16", "q8_0"):
            if not self.mmproj(precision).exists():
                write_mmproj(self.checkpoint, self.mmproj(precision), precision)

    def mmproj(self, precision: str) -> Path:
        return self.folder / f"mmproj.{precision}.gguf"

    def worker(self, setup: str, threads: int) -> Worker:
        program, precision = setup.split()
        given = {"threads": threads, "context_length": CONTEXT}
        if program == "edgevlm":
            return Worker(
                peers.EdgeVLM, bundle=self.bundle, vision=precision, decoder=DECODER, **given
            )
        return Worker(
            peers.Multimodal,
            decoder=self.decoder(DECODER),
            projector=self.mmproj(precision),
            flash_attention=True,  # the faster one
            **given,
        )


def measure(files: ShapeFiles, rounds: int, threads: int) -> dict[str, Any]:
    """Measure one shape.

    Returns:
        ``image_tokens``, ``errors`` of embeddings, ``memory_mb`` and ``values`` of all rounds, by set-up.
    """
    with ExitStack() as stack:
        workers = {setup: files.worker(setup, threads) for setup in SETUPS}
        for worker in workers.values():
            stack.callback(worker.close)
        # This also warms up the vision part.
        tokens, errors = compare_embeddings(workers, np.asarray(Image.open(files.image(99, FRAME))))
        values: dict[str, dict[str, list[float]]] = {setup: {} for setup in SETUPS}
        for i in range(rounds):
            for setup in SETUPS if i % 2 else SETUPS[::-1]:
                for name, value in ask(workers[setup], files.image(i, FRAME)).items():
                    values[setup].setdefault(name, []).append(value)
        memory = {setup: worker.call("peak_memory") / 1e6 for setup, worker in workers.items()}
    return {"image_tokens": tokens, "errors": errors, "memory_mb": memory, "values": values}


def compare_embeddings(
    workers: Mapping[str, Worker], frame: NDArray[np.uint8]
) -> tuple[int, dict[str, float]]:
    """Return the image tokens of a frame, and the distance of each set-up to edgevlm's fp32.

    Raises:
        ValueError: the set-ups have different numbers of image tokens.
    """
    found = {}
    for setup, worker in workers.items():
        options = {"detail": "high"} if setup.startswith("edgevlm") else {}
        found[setup] = worker.call("embeddings", frame, **options)[1]
    shapes = {setup: rows.shape for setup, rows in found.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"set-ups have different embeddings: {shapes}")
    reference = found[REFERENCE]
    errors = {
        setup: float(np.linalg.norm(rows - reference) / np.linalg.norm(reference))
        for setup, rows in found.items()
    }
    return len(reference), errors


def ask(worker: Worker, frame: Path) -> dict[str, float]:
    """Ask two questions about a frame that is new; return what was measured, by name, in seconds."""
    first, second = (
        worker.call("answer", [("user", [frame], question)], 1) for question in QUESTIONS[:2]
    )
    measured = {
        "first token": first.first_token,
        "first token, processor": first.processor,
        "second question": second.first_token,
        "second question, processor": second.processor,
    }
    if first.stats is not None:
        if second.stats.encoded_tiles:
            raise ValueError(f"the second question encoded {second.stats.encoded_tiles} tiles")
        measured |= {phase: vars(first.stats)[f"{phase}_ms"] / 1000 for phase in PHASES}
        measured["prompt positions"] = first.stats.prompt_tokens
        measured["second question positions"] = (
            second.stats.prompt_tokens - second.stats.cached_tokens
        )
    return measured


def table(result: Mapping[str, Any]) -> str:
    """Return a result as a Markdown table: medians, and the least and the largest value."""
    clock = ", processor" if result["threads"] == 1 else ""
    kind = "s of one core" if clock else "s"
    rows = []
    for name, shape in result["shapes"].items():
        where = f"{name}, {shape['image_tokens']} image tokens"
        for work, words in (
            ("first token", "first token, new frame"),
            ("second question", "first token, second question about it"),
        ):
            cells = [_spread(shape["values"][setup][work + clock]) for setup in SETUPS]
            rows.append([f"{where}: {words}, {kind}", *cells])
        memory = [f"{shape['memory_mb'][setup]:.0f}" for setup in SETUPS]
        errors = [f"{shape['errors'][setup]:.0e}" for setup in SETUPS]
        errors[SETUPS.index(REFERENCE)] = "0"
        rows += [
            [f"{name}: peak memory, MB", *memory],
            [f"{name}: distance of embeddings from {REFERENCE}", *errors],
        ]
    head = ["", *SETUPS]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _spread(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=1, help="of each program")
    options = parser.parse_args()
    shapes = {}
    for name in SHAPES:
        files = ShapeFiles(options.folder, name)
        files.make()
        shapes[name] = measure(files, options.rounds, options.threads)
    result = environment(options.rounds) | {"threads": options.threads, "shapes": shapes}
    write_json(options.folder / "native_images.json", result)
    print(table(result))


if __name__ == "__main__":
    main()
