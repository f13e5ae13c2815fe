"""Compare edgevlm with its peers on the CPU: ``python -m benchmarks.comparison FOLDER``.

The model has the shape of SmolVLM-256M and random weights. All peers get the same images and prompts, and two
threads. Each round measures all peers; the medians count. Every row has the required ratio (`at_least`) and
the measured one. The result is in FOLDER/results.json; `python -m benchmarks.plots FOLDER` draws it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import peers
from benchmarks.files import THREADS, Files, environment
from benchmarks.peers import Message, TimedAnswer
from benchmarks.table import HEAD, ComparisonRow, compare, line
from benchmarks.worker import Worker
from edgevlm.bundle import Bundle
from edgevlm.evaluation.report import write_json

ROUNDS = 5
SELECTION_ROUNDS = 2
"""Rounds that find the best of llama.cpp's settings. Further rounds compare it with ours."""
TOKENS = 32
CONTEXT = 4096
SHORT_CONTEXT = 2048
LONG_PROMPT = 1100
"""Positions of a prompt with an image of 17 tiles."""
PHASES = ("wait", "prepare", "encode", "prefill")
PARTS = ("loading", "encoding", "decoding", "answers")
WORKS = ("decode after", "prefill of text:", "prefill of embeddings:")
Rates = dict[str, dict[str, list[float]]]
"""Measured rates per second, by worker and by work."""
DEFAULTS = "auto_512"
"""llama.cpp's own settings."""
QUESTIONS = ("What is in the picture?", "How many things are there?", "And what color are they?")
SQUARE, FRAME = (1024, 1024), (640, 480)
"""A square image has 17 tiles; a camera frame has 13, or 1 with detail "auto"."""


class Comparison:
    """Measures all rows, one after the other; workers exist as long as a row needs them."""

    def __init__(self, files: Files, rounds: int) -> None:
        self.files, self.rounds = files, rounds
        self.rows: list[ComparisonRow] = []
        self.phases: dict[str, dict[str, float]] = {}
        """Time to our first token by phase, in seconds."""
        self.errors: dict[str, float] = {}
        """Relative error of each runtime's embeddings of one tile to transformers in float32."""

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
        """Measure one tile in every vision runtime."""
        # The import is here because it loads PyTorch, and workers would load it, too.
        from edgevlm.export.parity import relative_error

        height, width = self.files.tile_size
        tile = np.asarray(Image.open(self.files.image(99, (width, height))))
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
            for i in range(self.rounds + 1):  # the first warms up
                shown = np.roll(tile, i, axis=1)
                found = {name: worker.call("embeddings", shown) for name, worker in workers.items()}
                for name, (took, embeddings) in found.items():
                    self.errors[name] = relative_error(embeddings, found["torch_fp32"][1])
                    if i:
                        seconds[name].append(took)
            openvino = workers["openvino"].call("device")
        bars = {"onnx_int8": 2.0, "openvino": 3.5, "openvino_int8": 3.5}
        for name, taken in seconds.items():
            if name != "mtmd":
                note = f"relative error {self.errors[name]:.1e}"
                if name == "openvino":
                    note += f"; {openvino}"
                self._add(
                    compare(
                        f"encode one tile: {name}",
                        "llama.cpp mtmd f16",
                        taken,
                        seconds["mtmd"],
                        bars.get(name),
                        note,
                    )
                )

    def loading(self) -> None:
        """Measure loading with the files in the system's cache, and the memory for an image."""
        with self._workers(ours=self._edgevlm(), theirs=self._multimodal()) as workers:
            loads: dict[str, list[float]] = {name: [] for name in workers}
            for _ in range(4 * self.rounds):  # a fraction of a second each, and uneven
                for name, worker in workers.items():
                    loads[name].append(worker.call("load"))
        self._add(
            compare("load, warm page cache", "MTMDChatHandler", loads["ours"], loads["theirs"], 1.0)
        )
        short = {"context_length": SHORT_CONTEXT}
        make, given = self._multimodal()
        with self._workers(ours=self._edgevlm(**short), theirs=(make, given | short)) as workers:
            turns = [("user", [self.files.image(0, SQUARE)], QUESTIONS[0])]
            memory = []
            for worker in workers.values():
                worker.call("answer", turns, TOKENS)
                memory.append(worker.call("peak_memory") / 1e6)
            a, b = memory
            self._add(
                ComparisonRow(
                    "peak memory, 17 tiles", "MTMDChatHandler", "MB", a, b, b / a, 1 / 0.9
                )
            )

    def answers(self) -> None:
        """Measure first tokens; the peer is the multimodal chat handler."""
        with self._workers(ours=self._edgevlm(), theirs=self._multimodal()) as workers:
            self._questions(workers, "17 tiles", SQUARE, (3.0, 30.0), {})
            self._questions(
                workers, "camera frame, detail auto", FRAME, (10.0, None), {"detail": "auto"}
            )
            self._conversation(workers)

    def _questions(
        self,
        workers: dict[str, Worker],
        name: str,
        size: tuple[int, int],
        bars: tuple[float | None, float | None],
        options: dict[str, Any],
    ) -> None:
        """Measure a new image in each round, and a second question about it."""
        answers: dict[str, list[list[TimedAnswer]]] = {"ours": [[], []], "theirs": [[], []]}
        for i in range(self.rounds):
            image = self.files.image(i, size)
            for who, worker in workers.items():
                given = options if who == "ours" else {}
                for j in (0, 1):
                    turns: list[Message] = [("user", [image], QUESTIONS[j])]
                    answers[who][j].append(worker.call("answer", turns, 1, **given))
        for j, what in enumerate(("first token", "first token of a second question")):
            self._first_tokens(f"{what}: {name}", answers["ours"][j], answers["theirs"][j], bars[j])

    def _first_tokens(
        self, work: str, ours: list[TimedAnswer], theirs: list[TimedAnswer], at_least: float | None
    ) -> None:
        a, b = ([timed.first_token for timed in found] for found in (ours, theirs))
        self._add(compare(work, "MTMDChatHandler", a, b, at_least))
        stats = [vars(timed.stats) for timed in ours]
        self.phases[work] = {
            phase: median([found[f"{phase}_ms"] / 1000 for found in stats]) for phase in PHASES
        }

    def _conversation(self, workers: dict[str, Worker]) -> None:
        """Measure the next turn of a conversation with three images."""
        turns: list[Message] = []
        for i in range(3):
            turns += [("user", [self.files.image(20 + i, FRAME)], QUESTIONS[i])]
            timed = workers["ours"].call("answer", turns, 8)
            turns += [("assistant", [], timed.text or "It is.")]
        answers: dict[str, list[TimedAnswer]] = {"ours": [], "theirs": []}
        for i in range(self.rounds):
            asked: list[Message] = [*turns, ("user", [], f"{QUESTIONS[i % 3]} ({i})")]
            for who, worker in workers.items():
                answers[who].append(worker.call("answer", asked, 1))
        work = "first token of the next turn, after 3 frames"
        self._first_tokens(work, answers["ours"], answers["theirs"], 30.0)

    def decoding(self) -> None:
        """Measure the decoder alone; the peers are bare llama.cpp and OpenVINO GenAI."""
        nano = Bundle.open("edgevlm-nano")
        decoders = {
            "q4_0": self.files.decoder("q4_0"),
            "edgevlm-nano": nano.path(nano.decoder_file(None)),
        }
        for name, path in decoders.items():
            own = name == "edgevlm-nano"
            given = {"decoder": path, "threads": THREADS, "context_length": SHORT_CONTEXT}
            wanted: dict[str, tuple[type, dict[str, Any]]] = {"ours": (peers.OurDecoder, given)}
            for attention in ("AUTO", "DISABLED"):
                for batch in (256, 512, 1024):
                    setting = {"flash_attention": attention, "batch_length": batch}
                    wanted[f"{attention.lower()}_{batch}"] = peers.BareLoop, given | setting
            with self._workers(**wanted) as workers:
                if name == "q4_0":
                    self._genai(workers["ours"], path)
                self._decode(name, workers, 16, 0.90 if own else 0.97)
                self._decode(name, workers, 120 if own else LONG_PROMPT, 0.90 if own else 0.97)

    def _decode(self, name: str, workers: dict[str, Worker], prompt: int, at_least: float) -> None:
        """Measure prefill of text and of embeddings, and decoding after `prompt` positions."""
        bare = {who: worker for who, worker in workers.items() if who != "ours"}
        chosen = _rates(bare, prompt, SELECTION_ROUNDS)
        works = {"decode after": at_least}
        if prompt > 16:
            works |= {"prefill of text:": 0.95, "prefill of embeddings:": 0.95}
        best = {work: max(bare, key=lambda who: median(chosen[who][work])) for work in works}
        shown = {"ours", DEFAULTS, *best.values()}
        found = _rates(
            {who: workers[who] for who in workers if who in shown}, prompt, 2 * self.rounds
        )
        where = f"{name}, {prompt} positions"
        for work, bar in works.items():
            peer = f"bare llama.cpp, its best settings ({best[work]})"
            rates = found["ours"][work], found[best[work]][work]
            self._add(compare(f"{work} {where}", peer, *rates, bar, unit="tokens/s"))
        if prompt == LONG_PROMPT:
            peer, work = "llama.cpp's default settings", "decode after"
            rates = found["ours"][work], found[DEFAULTS][work]
            self._add(compare(f"{work} {where}", peer, *rates, 1.8, unit="tokens/s"))

    def _genai(self, ours: Worker, decoder: Path) -> None:
        """Measure OpenVINO GenAI if it is installed."""
        try:
            theirs = Worker(peers.OpenVinoGenAI, decoder=decoder, threads=THREADS)
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
            compare(
                "decode after q4_0, 450 positions",
                "OpenVINO GenAI",
                found["ours"],
                found["theirs"],
                1.4,
                unit="tokens/s",
            )
        )

    def _add(self, row: ComparisonRow) -> None:
        self.rows.append(row)
        print(line(row), flush=True)


def _rates(workers: dict[str, Worker], prompt: int, rounds: int) -> Rates:
    """Measure the rates of all workers; every other round is in the opposite order."""
    found: Rates = {who: {work: [] for work in WORKS} for who in workers}
    for i in range(rounds + 1):
        order = list(workers.items())
        for who, worker in order if i % 2 else reversed(order):
            prefill, decode = worker.call("rates", prompt, TOKENS)
            rates = decode, prefill, worker.call("embedding_rate", prompt)
            if i:  # the first warms up
                for work, rate in zip(WORKS, rates, strict=True):
                    found[who][work].append(rate)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--only", choices=PARTS, help="measure this part only, keep the others")
    options = parser.parse_args()
    files = Files(options.folder)
    files.make()
    print(HEAD)
    path = options.folder / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in PARTS if options.only is None else (options.only,):
        comparison = Comparison(files, options.rounds)
        getattr(comparison, name)()
        results[name] = environment(options.rounds) | {
            "rows": [dataclasses.asdict(row) | {"reached": row.reached} for row in comparison.rows],
            "phases": comparison.phases,
            "errors": comparison.errors,
        }
        write_json(path, results)


if __name__ == "__main__":
    main()
