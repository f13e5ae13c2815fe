"""edgevlm beside its peers in one run: ``python -m benchmarks.comparison FOLDER``.

SmolVLM-256M's real shape with random weights, the same pictures and prompts, two threads; rounds go
through the peers in turn, medians count. Every row says what was asked for (`at_least`) and what came out.
Writes FOLDER/results.json; `python -m benchmarks.plots FOLDER` draws it. Not covered: GPUs.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import peers
from benchmarks.files import THREADS, Files, described
from benchmarks.peers import Answered, Turn
from benchmarks.table import HEAD, Row, compared, line
from benchmarks.worker import Worker
from edgevlm.bundle import Bundle
from edgevlm.evaluation.report import write_json
from edgevlm.export.parity import relative_error

ROUNDS = 5
TOKENS = 32
CONTEXT = 4096
LONG = 1100
"""Positions of a prompt with a picture of 17 tiles."""
PHASES = ("wait", "prepare", "encode", "prefill")
QUESTIONS = ("What is in the picture?", "How many things are there?", "And what color are they?")
SQUARE, FRAME = (1024, 1024), (640, 480)
"""A square picture makes 17 tiles; a camera frame makes 13, or 1 by its own pixels."""


class Comparison:
    """All rows, one after the other; workers live as long as a row needs them."""

    def __init__(self, files: Files, rounds: int) -> None:
        self.files, self.rounds = files, rounds
        self.rows: list[Row] = []
        self.phases: dict[str, dict[str, float]] = {}
        """Where our first tokens' time goes, seconds."""
        self.errors: dict[str, float] = {}
        """Of each runtime's embeddings of one tile, relative to transformers in float32."""

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
        height, width = self.files.tile_size
        tile = np.asarray(Image.open(self.files.picture(99, (width, height))))
        reference = {"checkpoint": self.files.checkpoint, "threads": THREADS}
        with self._workers(
            mtmd=self._multimodal(),
            onnx_int8=self._edgevlm(),
            onnx_fp32=self._edgevlm(vision="fp32"),
            openvino=self._edgevlm(vision="fp32", device="openvino"),
            openvino_int8=self._edgevlm(vision="int8", device="openvino"),
            openvino_int8_static=self._edgevlm(vision="int8-static", device="openvino"),
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
        bars = {"onnx_int8": 2.0, "openvino": 3.5, "openvino_int8_static": 3.5}
        for name, taken in seconds.items():
            if name != "mtmd":
                note = f"relative error {self.errors[name]:.1e}"
                if name == "openvino":
                    note += f"; {openvino}"
                self._add(
                    compared(
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
            ours, theirs = ([workers[name].call("load")] for name in ("ours", "theirs"))
            self._add(compared("load, files in memory", peer, ours, theirs, 1.0))
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
            a, b = memory
            self._add(Row("peak memory, 17 tiles", peer, "MB", a, b, b / a, 1 / 0.9))

    def _questions(
        self,
        workers: dict[str, Worker],
        name: str,
        size: tuple[int, int],
        bars: tuple[float | None, float | None],
        options: dict[str, Any],
    ) -> None:
        """A new picture each round, and a second question about it."""
        answers: dict[str, list[list[Answered]]] = {"ours": [[], []], "theirs": [[], []]}
        for i in range(self.rounds + 1):
            picture = self.files.picture(i, size)
            for who, worker in workers.items():
                given = options if who == "ours" else {}
                for j in (0, 1):
                    turns: list[Turn] = [("user", [picture], QUESTIONS[j])]
                    answered = worker.call("answer", turns, 1, **given)
                    if i:
                        answers[who][j].append(answered)
        for j, what in enumerate(("first token", "first token of a second question")):
            self._first_tokens(f"{what}: {name}", answers["ours"][j], answers["theirs"][j], bars[j])

    def _first_tokens(
        self, work: str, ours: list[Answered], theirs: list[Answered], at_least: float | None
    ) -> None:
        a, b = ([answered.first_token for answered in found] for found in (ours, theirs))
        self._add(compared(work, "MTMDChatHandler", a, b, at_least))
        stats = [vars(answered.stats) for answered in ours]
        self.phases[work] = {
            phase: median([found[f"{phase}_ms"] / 1000 for found in stats]) for phase in PHASES
        }

    def _conversation(self, workers: dict[str, Worker]) -> None:
        """The next turn of a conversation that has shown three pictures."""
        turns: list[Turn] = []
        for i in range(3):
            turns += [("user", [self.files.picture(20 + i, SQUARE)], QUESTIONS[i])]
            answered = workers["ours"].call("answer", turns, 8)
            turns += [("assistant", [], answered.text or "It is.")]
        answers: dict[str, list[Answered]] = {"ours": [], "theirs": []}
        for i in range(self.rounds):
            asked: list[Turn] = [*turns, ("user", [], f"{QUESTIONS[i % 3]} ({i})")]
            for who, worker in workers.items():
                answers[who].append(worker.call("answer", asked, 1))
        work = "first token of the next turn, after 3 pictures"
        self._first_tokens(work, answers["ours"], answers["theirs"], 30.0)

    def decoding(self) -> None:
        """The decoder by itself, beside bare llama.cpp and OpenVINO GenAI."""
        nano = Bundle.open("edgevlm-nano")
        decoders = {
            "q4_0": self.files.decoder("q4_0"),
            "q8_0": self.files.decoder("q8_0"),
            "edgevlm-nano": nano.path(nano.decoder_file(None)),
        }
        for name, path in decoders.items():
            own = name == "edgevlm-nano"
            given = {"decoder": path, "threads": THREADS, "context_length": 2048}
            wanted: dict[str, tuple[type, dict[str, Any]]] = {"ours": (peers.OurDecoder, given)}
            for attention in ("AUTO", "DISABLED"):
                for batch in (256, 512, 1024):
                    setting = {"flash_attention": attention, "batch_length": batch}
                    wanted[f"{attention.lower()}_{batch}"] = peers.BareLoop, given | setting
            with self._workers(**wanted) as workers:
                if name == "q4_0":
                    self._genai(workers["ours"], path)
                self._decode(name, workers, 16, 0.90 if own else 0.97)
                self._decode(name, workers, 120 if own else LONG, 0.90 if own else 0.97)

    def _decode(self, name: str, workers: dict[str, Worker], prompt: int, at_least: float) -> None:
        """Prefill and decoding, after `prompt` positions, of text and of embeddings."""
        decoded: dict[str, list[float]] = {who: [] for who in workers}
        filled: dict[str, list[float]] = {who: [] for who in workers}
        embedded: dict[str, list[float]] = {who: [] for who in workers}
        for i in range(self.rounds + 1):
            for who, worker in workers.items():
                prefill, decode = worker.call("rates", prompt, TOKENS)
                embeddings = worker.call("embedding_rate", prompt)
                if i:
                    decoded[who].append(decode)
                    filled[who].append(prefill)
                    embedded[who].append(embeddings)
        where = f"{name}, {prompt} positions"
        self._rates(f"decode after {where}", decoded, at_least)
        if prompt == LONG:
            bar = 1.8 if name == "q4_0" else None
            self._rates(f"decode after {where}", decoded, bar, "auto_512")
        if prompt > 16:
            self._rates(f"prefill of text: {where}", filled, 0.95)
            self._rates(f"prefill of embeddings: {where}", embedded, 0.95)

    def _rates(
        self,
        work: str,
        found: dict[str, list[float]],
        at_least: float | None,
        setting: str | None = None,
    ) -> None:
        """A row beside bare llama.cpp with one setting, or with its best."""
        if setting is None:
            bare = [who for who in found if who != "ours"]
            setting = max(bare, key=lambda who: median(found[who]))
            peer = f"bare llama.cpp, its best settings ({setting})"
        else:
            peer = "llama.cpp's default settings"
        rates = found["ours"], found[setting]
        self._add(compared(work, peer, *rates, at_least, unit="tokens/s"))

    def _genai(self, ours: Worker, decoder: Path) -> None:
        """OpenVINO GenAI, if it is installed."""
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
            compared(
                "decode after q4_0, 450 positions",
                "OpenVINO GenAI",
                found["ours"],
                found["theirs"],
                1.4,
                unit="tokens/s",
            )
        )

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        print(line(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--only",
        choices=("encoding", "answers", "decoding"),
        help="a part, whose rows are only shown",
    )
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
    if options.only is not None:
        return
    result = described(options.rounds) | {
        "rows": [dataclasses.asdict(row) | {"reached": row.reached} for row in comparison.rows],
        "phases": comparison.phases,
        "errors": comparison.errors,
    }
    write_json(options.folder / "results.json", result)


if __name__ == "__main__":
    main()
