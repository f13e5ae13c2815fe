"""edgevlm beside its peers in one run: ``python -m benchmarks.comparison FOLDER``.

SmolVLM-256M's real shape with random weights, the same pictures and prompts, two threads; rounds go
through the peers in turn, medians count. Every row says what was asked for (`at_least`) and what came out.
Writes FOLDER/results.json; `python -m benchmarks.plots FOLDER` draws it. Not covered: GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import peers
from benchmarks.mmproj import write_mmproj
from benchmarks.peers import Turn, median, relative_error
from benchmarks.worker import Worker
from edgevlm.evaluation.report import versions, write_json
from edgevlm.runtimes import cpu

ROUNDS = 5
THREADS = 2
TOKENS = 32
CONTEXT = 4096
QUESTIONS = ("What is in the picture?", "How many things are there?", "And what color are they?")
SQUARE, FRAME = (1024, 1024), (640, 480)
"""A square picture makes 17 tiles; a camera frame makes 13, or 1 by its own pixels."""


@dataclass(frozen=True)
class Row:
    """One line of the comparison."""

    work: str
    peer: str
    unit: str
    ours: float
    """Median."""
    theirs: float
    ratio: float
    """How many times better ours is."""
    at_least: float | None
    """The ratio that was asked for."""
    note: str = ""
    rounds: Mapping[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        return None if self.at_least is None else self.ratio >= self.at_least


def times(
    work: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    at_least: float | None,
    note: str = "",
) -> Row:
    """A row of seconds, of which fewer are better."""
    a, b = median(ours), median(theirs)
    return Row(work, peer, "s", a, b, b / a, at_least, note, {"ours": ours, "theirs": theirs})


def rates(
    work: str,
    peer: str,
    ours: list[float],
    theirs: list[float],
    at_least: float | None,
    note: str = "",
) -> Row:
    """A row of tokens per second, of which more are better."""
    a, b = median(ours), median(theirs)
    return Row(
        work, peer, "tokens/s", a, b, a / b, at_least, note, {"ours": ours, "theirs": theirs}
    )


class Files:
    """Checkpoint, bundle, projector and pictures, made once in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint"
        self.bundle = folder / "bundle"
        self.projector = folder / "mmproj.f16.gguf"

    def make(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.checkpoint.exists():
            _run("-m", "tests.checkpoints", "smolvlm_256m", str(self.checkpoint))
        if not self.bundle.exists():
            precisions = ["--vision", "fp32,fp16,int8", "--decoder", "f16,q8_0,q4_0"]
            _run("-m", "edgevlm", "export", str(self.checkpoint), str(self.bundle), *precisions)
        if not self.projector.exists():
            write_mmproj(self.checkpoint, self.projector)

    def decoder(self, name: str) -> Path:
        return self.bundle / f"decoder.{name}.gguf"

    def picture(self, seed: int, size: tuple[int, int]) -> Path:
        """A PNG of smooth noise; another seed, another picture."""
        path = self.folder / f"picture-{size[0]}x{size[1]}-{seed}.png"
        if not path.exists():
            small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)
            Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
        return path


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True)


class Comparison:
    """All rows, one after the other; workers live as long as a row needs them."""

    def __init__(self, files: Files, rounds: int) -> None:
        self.files, self.rounds = files, rounds
        self.rows: list[Row] = []

    @contextmanager
    def _workers(self, **wanted: tuple[type, dict[str, Any]]) -> Iterator[dict[str, Worker]]:
        with ExitStack() as stack:
            workers = {}
            for name, (make, arguments) in wanted.items():
                workers[name] = Worker(make, **arguments)
                stack.callback(workers[name].close)
            yield workers

    def _edgevlm(self, **options: Any) -> tuple[type, dict[str, Any]]:
        given = {"bundle": self.files.bundle, "threads": THREADS, "context_length": CONTEXT}
        return peers.EdgeVLM, given | {
            "vision": "int8",
            "decoder": "q4_0",
            "device": "cpu",
        } | options

    def _multimodal(self, decoder: str = "q4_0") -> tuple[type, dict[str, Any]]:
        return peers.Multimodal, {
            "decoder": self.files.decoder(decoder),
            "projector": self.files.projector,
            "threads": THREADS,
            "context_length": CONTEXT,
        }

    def encoding(self) -> None:
        """One tile through every vision runtime."""
        tile = np.asarray(Image.open(self.files.picture(99, (512, 512))))
        reference = {"checkpoint": self.files.checkpoint, "threads": THREADS}
        with self._workers(
            mtmd=self._multimodal(),
            onnx_int8=self._edgevlm(),
            onnx_fp32=self._edgevlm(vision="fp32"),
            openvino=self._edgevlm(vision="fp32", device="openvino"),
            openvino_int8=self._edgevlm(vision="int8", device="openvino"),
            torch_fp32=(peers.Transformers, reference | {"dtype": "float32"}),
            torch_bf16=(peers.Transformers, reference | {"dtype": "bfloat16"}),
        ) as workers:
            seconds: dict[str, list[float]] = {name: [] for name in workers}
            errors: dict[str, float] = {}
            for i in range(self.rounds + 1):  # the first warms up
                shown = np.roll(tile, i, axis=1)
                found = {name: worker.call("embeddings", shown) for name, worker in workers.items()}
                for name, (took, embeddings) in found.items():
                    errors[name] = relative_error(embeddings, found["torch_fp32"][1])
                    if i:
                        seconds[name].append(took)
            openvino = workers["openvino"].call("device")
        bars = {"onnx_int8": 2.0, "openvino": 3.5}
        for name, taken in seconds.items():
            if name != "mtmd":
                note = f"relative error {errors[name]:.1e}"
                if name == "openvino":
                    note += f"; {openvino}"
                self._add(
                    times(
                        f"encode one tile: {name}",
                        "llama.cpp mtmd f16",
                        taken,
                        seconds["mtmd"],
                        bars.get(name),
                        note,
                    )
                )

    def answers(self) -> None:
        """First tokens, and decoding after them, beside the multimodal chat handler."""
        with self._workers(ours=self._edgevlm(), theirs=self._multimodal()) as workers:
            peer = "MTMDChatHandler"
            load = [[workers[name].call("load")] for name in ("ours", "theirs")]
            self._add(times("load, files in memory", peer, *load, 1.0))
            self._questions(workers, "17 tiles", SQUARE, (3.0, 30.0), {})
            self._questions(
                workers, "camera frame, detail auto", FRAME, (10.0, None), {"detail": "auto"}
            )
            self._conversation(workers)
        with self._workers(ours=self._edgevlm(), theirs=self._multimodal()) as workers:
            turns = [("user", [self.files.picture(0, SQUARE)], QUESTIONS[0])]
            memory = []
            for worker in workers.values():
                worker.call("answer", turns, TOKENS)
                memory.append(worker.call("peak_memory") / 1e6)
            ours, theirs = memory
            self._add(
                Row("peak memory, 17 tiles", peer, "MB", ours, theirs, theirs / ours, 1 / 0.9)
            )

    def _questions(
        self,
        workers: dict[str, Worker],
        name: str,
        size: tuple[int, int],
        bars: tuple[float | None, float | None],
        options: dict[str, Any],
    ) -> None:
        """A new picture each round, and a second question about it."""
        seconds: dict[str, list[list[float]]] = {"ours": [[], []], "theirs": [[], []]}
        for i in range(self.rounds + 1):
            picture = self.files.picture(i, size)
            for who, worker in workers.items():
                given = options if who == "ours" else {}
                for j in (0, 1):
                    turns: list[Turn] = [("user", [picture], QUESTIONS[j])]
                    answered = worker.call("answer", turns, 1, **given)
                    if i:
                        seconds[who][j].append(answered.first_token)
        for j, what in enumerate(("first token", "first token of a second question")):
            ours, theirs = seconds["ours"][j], seconds["theirs"][j]
            self._add(times(f"{what}: {name}", "MTMDChatHandler", ours, theirs, bars[j]))

    def _conversation(self, workers: dict[str, Worker]) -> None:
        """The next turn of a conversation that has shown three pictures."""
        turns: list[Turn] = []
        for i in range(3):
            turns += [("user", [self.files.picture(20 + i, SQUARE)], QUESTIONS[i])]
            answered = workers["ours"].call("answer", turns, 8)
            turns += [("assistant", [], answered.text or "It is.")]
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for i in range(self.rounds):
            asked: list[Turn] = [*turns, ("user", [], f"{QUESTIONS[i % 3]} ({i})")]
            for who, worker in workers.items():
                seconds[who].append(worker.call("answer", asked, 1).first_token)
        work = "first token of the next turn, after 3 pictures"
        self._add(times(work, "MTMDChatHandler", seconds["ours"], seconds["theirs"], 30.0))

    def decoding(self) -> None:
        """The decoder by itself, beside bare llama.cpp and OpenVINO GenAI."""
        for name in ("q4_0", "q8_0"):
            given = {"decoder": self.files.decoder(name), "threads": THREADS}
            wanted: dict[str, tuple[type, dict[str, Any]]] = {
                "ours": (peers.OurDecoder, given | {"context_length": CONTEXT})
            }
            for attention in ("AUTO", "DISABLED"):
                for batch in (256, 512, 1024):
                    wanted[f"{attention.lower()}_{batch}"] = (
                        peers.BareLoop,
                        given
                        | {
                            "context_length": CONTEXT,
                            "flash_attention": attention,
                            "batch_length": batch,
                        },
                    )
            self._rates(name, wanted)

    def _rates(self, name: str, wanted: dict[str, tuple[type, dict[str, Any]]]) -> None:
        with self._workers(**wanted) as workers:
            if name == "q4_0":
                self._genai(workers["ours"], wanted["ours"][1])
            for prompt in (16, 1100):
                found: dict[str, list[tuple[float, float]]] = {who: [] for who in workers}
                for i in range(self.rounds + 1):
                    for who, worker in workers.items():
                        measured = worker.call("rates", prompt, TOKENS)
                        if i:
                            found[who].append(measured)
                decoded = {who: [rate for _, rate in pairs] for who, pairs in found.items()}
                filled = {who: [rate for rate, _ in pairs] for who, pairs in found.items()}
                bare = [who for who in workers if who != "ours"]
                best = max(bare, key=lambda who: median(decoded[who]))
                default = "auto_512"
                where = f"{name}, after {prompt} positions"
                self._add(
                    rates(
                        f"decode: {where}",
                        f"bare llama.cpp, its best settings ({best})",
                        decoded["ours"],
                        decoded[best],
                        0.97 if prompt == 16 else None,
                    )
                )
                self._add(
                    rates(
                        f"decode: {where}",
                        "llama.cpp's default settings",
                        decoded["ours"],
                        decoded[default],
                        1.8 if (prompt, name) == (1100, "q4_0") else None,
                    )
                )
                if prompt > 16:
                    best = max(bare, key=lambda who: median(filled[who]))
                    self._add(
                        rates(
                            f"prefill: {name}, {prompt} positions",
                            f"bare llama.cpp, its best settings ({best})",
                            filled["ours"],
                            filled[best],
                            0.95,
                        )
                    )

    def _genai(self, ours: Worker, given: dict[str, Any]) -> None:
        """OpenVINO GenAI, if it is installed."""
        try:
            theirs = Worker(peers.OpenVinoGenAI, decoder=given["decoder"], threads=given["threads"])
        except RuntimeError as error:
            print(f"OpenVINO GenAI: not measured: {error}", file=sys.stderr)
            return
        found: dict[str, list[float]] = {"ours": [], "theirs": []}
        for i in range(self.rounds + 1):
            for who, worker in (("ours", ours), ("theirs", theirs)):
                rate = worker.call("rates", 450, TOKENS)[1]
                if i:
                    found[who].append(rate)
        theirs.close()
        self._add(
            rates(
                "decode: q4_0, after 450 positions",
                "OpenVINO GenAI",
                found["ours"],
                found["theirs"],
                1.4,
            )
        )

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)


def line(row: Row) -> str:
    """A row of the table."""
    bar = "" if row.at_least is None else f"{row.at_least:.2f}"
    mark = {True: "yes", False: "**no**", None: ""}[row.reached]
    return (
        f"| {row.work} | {row.peer} | {row.ours:.3g} {row.unit} | {row.theirs:.3g} | "
        f"{row.ratio:.2f} | {bar} | {mark} | {row.note} |"
    )


HEAD = """\
| work | peer | edgevlm | peer | times as good | at least | reached | |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=("encoding", "answers", "decoding"))
    options = parser.parse_args()
    files = Files(options.folder)
    files.make()
    comparison = Comparison(files, options.rounds)
    parts: dict[str, Callable[[], None]] = {
        "encoding": comparison.encoding,
        "decoding": comparison.decoding,
        "answers": comparison.answers,
    }
    print(HEAD)
    for name, part in parts.items():
        if options.only in (None, name):
            part()
    result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": cpu.model(),
        "threads": THREADS,
        "rounds": options.rounds,
        "versions": versions(),
        "rows": [dataclasses.asdict(row) | {"reached": row.reached} for row in comparison.rows],
    }
    write_json(options.folder / "results.json", json.loads(json.dumps(result)))


if __name__ == "__main__":
    main()
