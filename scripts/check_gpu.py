"""Try a bundle on this machine's GPU beside its CPU: python -m scripts.check_gpu [MODEL] [--json FILE]

The decoder with all layers on the GPU and the vision graph on CUDA are compared with the same files on the
CPU: numbers, answers, times, memory. Each check runs in a process of its own, so one that ends its
process is a failed check and not the end of all. What is missing (a GPU, a build for it, a package) is said
and its checks are "not run". The exit code is 1 if a check failed. Let nothing else use the GPU meanwhile.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.benchmark import rates
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.cli import doctor
from edgevlm.errors import EdgeVLMError
from edgevlm.halves import open_decoder, open_vision
from edgevlm.runtimes import llama_cpp_library, onnx, vision
from edgevlm.runtimes.llama_cpp import BUILD_WITH_CUDA, LlamaCppDecoder
from edgevlm.runtimes.onnx_providers import DEVICES
from edgevlm.vlm import VLM

IMAGES = Path(__file__).resolve().parent.parent / "examples"
REQUESTS = (
    (("shapes.png",), "What is in the picture?"),
    (("shapes.png",), "What color is the shape at the top left?"),
    (("scene.png",), "Where is the key?"),
    (("square.png",), "What color is it?"),
    (("scene.png", "changed.png"), "What changed?"),
    ((), "What is a picture?"),
)
SCHEMA = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "green", "blue"]}, "seen": {"type": "boolean"}},
    "required": ["color", "seen"],
    "additionalProperties": False,
}

ROUNDING_BOUND = 0.05
"""Relative error between two devices: both round activations to 8 bits for quantized weights, and not
in the same blocks."""
REPEAT_BOUND = 0.01
"""The same between two ways to the same position on one device."""
PROMPT, EMBEDDINGS, DRAFT = 150, 64, 16
"""Tokens, embeddings after them, and tokens after those whose logits are compared."""
MEMORY_LEFT = 64
"""MiB that may stay in use after a decoder was closed."""


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    outcome: Literal["passed", "failed", "not run"]
    detail: str = ""
    """Why it failed or was not run."""
    figures: dict[str, Any] = field(default_factory=dict)
    """Times in milliseconds, memory in MiB, rates in 1/s, errors relative."""


@dataclass(frozen=True)
class Setting:
    """What is checked; the CPU beside it is the reference."""

    model: str
    device: str
    """Of the vision graph, as in `VLM.from_pretrained`."""
    gpu_layers: int
    rounds: int


class CheckError(Exception):
    """A check found something wrong."""


# ---- the decoder


def _decoder(setting: Setting, file: str, gpu_layers: int, length: int = 512) -> LlamaCppDecoder:
    bundle = Bundle.open(setting.model)
    manifest = bundle.manifest
    return open_decoder(
        manifest,
        bundle.path(manifest.decoder.files[file]),
        context_length=min(length, manifest.decoder.context_length),
        gpu_layers=gpu_layers,
    )


def _positions(start: int, count: int) -> NDArray[np.int32]:
    return np.arange(start, start + count, dtype=np.int32)


def _tokens(decoder: LlamaCppDecoder, count: int, seed: int) -> list[int]:
    ids: list[int] = (
        np.random.default_rng(seed).integers(0, decoder.vocabulary_size, count).tolist()
    )
    return ids


def _take_in(decoder: LlamaCppDecoder) -> int:
    """The prompt of the comparisons: tokens, then embeddings as a picture's; returns its length."""
    decoder.decode_tokens(_tokens(decoder, PROMPT, 0), _positions(0, PROMPT), logits=False)
    decoder.decode_embeddings(
        decoder.embed(_tokens(decoder, EMBEDDINGS, 1)),
        _positions(PROMPT, EMBEDDINGS),
        logits=False,
        bidirectional=decoder.bidirectional,
    )
    return PROMPT + EMBEDDINGS


def _draft_logits(decoder: LlamaCppDecoder, start: int) -> NDArray[np.float32]:
    ids = _tokens(decoder, DRAFT, 2)
    return decoder.decode_draft(ids, _positions(start, DRAFT)).copy()


def _relative_error(found: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(found - reference) / np.linalg.norm(reference))


def check_logits(setting: Setting, file: str) -> dict[str, Any]:
    """The same tokens and embeddings on both devices."""
    logits = []
    for gpu_layers in (0, setting.gpu_layers):
        with closing(_decoder(setting, file, gpu_layers)) as decoder:
            logits.append(_draft_logits(decoder, _take_in(decoder)))
            device = decoder.device
    reference, found = logits
    same = found.argmax(axis=1) == reference.argmax(axis=1)
    error = _relative_error(found, reference)
    figures = {
        "device": device,
        "relative error": error,
        "same top token": f"{same.sum()} of {len(same)}",
    }
    if not error <= ROUNDING_BOUND:  # NaN is none
        raise CheckError(f"logits differ by {error:.1e} from the CPU's: {figures}")
    return figures


def check_cache(setting: Setting, file: str) -> dict[str, Any]:
    """Positions that are cut off, copied out and back, or decoded one by one give the same logits."""
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        start = _take_in(decoder)
        copy = decoder.save()
        first = _draft_logits(decoder, start)
        decoder.truncate(start)
        errors = {"after truncate": _relative_error(_draft_logits(decoder, start), first)}
        decoder.truncate(0)
        decoder.restore(copy, start)
        errors["after restore"] = _relative_error(_draft_logits(decoder, start), first)
        decoder.truncate(start)
        rows = []
        for at, token in enumerate(_tokens(decoder, DRAFT, 2), start=start):
            decoder.decode_tokens([token], _positions(at, 1), logits=True)
            rows.append(decoder.logits())
        errors["one by one"] = _relative_error(np.stack(rows), first)
        begun = time.perf_counter()
        decoder.restore(copy, start)
        restore_ms = 1000 * (time.perf_counter() - begun)
    # Single tokens and batches go through other kernels, which round otherwise.
    bounds = {"one by one": ROUNDING_BOUND}
    for name, error in errors.items():
        if not error <= bounds.get(name, REPEAT_BOUND):
            raise CheckError(f"logits {name} differ by {error:.1e}: {errors}")
    return {**errors, "copied KB": copy.nbytes // 1024, "restore ms": restore_ms}


def check_two_decoders(setting: Setting, file: str) -> dict[str, Any]:
    """Two decoders at once do not disturb each other, and closed ones give their memory back."""
    begin = memory_used()
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        alone = _draft_logits(decoder, _take_in(decoder))
    after_first = memory_used()
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        with closing(_decoder(setting, file, setting.gpu_layers)) as other:
            start = _take_in(decoder)
            _draft_logits(other, _take_in(other))
            beside = _draft_logits(decoder, start)
        decoder.truncate(start)
        errors = {
            "beside another": _relative_error(beside, alone),
            "after the other was closed": _relative_error(_draft_logits(decoder, start), alone),
        }
    for _ in range(setting.rounds):
        _decoder(setting, file, setting.gpu_layers).close()
    left = None if after_first is None else (memory_used() or 0) - after_first
    figures = {**errors, "MiB before": begin, "MiB after one": after_first, "MiB left": left}
    if not max(errors.values()) <= REPEAT_BOUND:
        raise CheckError(f"two decoders disturb each other: {figures}")
    if left is not None and left > MEMORY_LEFT:
        raise CheckError(f"closed decoders keep memory on the GPU: {figures}")
    return figures


def check_decoder_speed(setting: Setting, file: str) -> dict[str, Any]:
    """Prefill and decode rates on both devices, load time, memory on the GPU."""
    figures: dict[str, Any] = {}
    for place, gpu_layers in (("cpu", 0), ("gpu", setting.gpu_layers)):
        _decoder(setting, file, gpu_layers).close()  # files and kernels into the caches
        before = memory_used()
        begun = time.perf_counter()
        with closing(_decoder(setting, file, gpu_layers, 2048)) as decoder:
            figures[f"{place} load ms"] = 1000 * (time.perf_counter() - begun)
            for prompt in (16, 512, 1100):
                if prompt + 32 > decoder.context_length:
                    continue
                rates(decoder, prompt, 32)
                measured = [rates(decoder, prompt, 32) for _ in range(setting.rounds)]
                prefill, decode = (
                    statistics.median(values) for values in zip(*measured, strict=True)
                )
                figures[f"{place} prefill {prompt}"] = prefill
                figures[f"{place} decode after {prompt}"] = decode
            after = memory_used()
            figures[f"{place} MiB on the GPU"] = (
                None if before is None or after is None else after - before
            )
    return figures


# ---- the vision graph


def check_vision(setting: Setting, file: str) -> dict[str, Any]:
    """The same tiles on both devices: embeddings and times."""
    bundle = Bundle.open(setting.model)
    manifest = bundle.manifest
    entry = manifest.vision.files[file]
    width, height = manifest.image.tile_size
    tiles = np.random.default_rng(0).integers(0, 256, (16, height, width, 3), np.uint8)
    figures: dict[str, Any] = {}
    embeddings = []
    for place, device in (("cpu", "cpu"), ("gpu", setting.device)):
        before = memory_used()
        target = vision.select(device, None, (file,))
        begun = time.perf_counter()
        with closing(open_vision(manifest, bundle.path(entry), target=target)) as runtime:
            figures[f"{place} load ms"] = 1000 * (time.perf_counter() - begun)
            figures[place] = runtime.device
            embeddings.append(runtime.encode(tiles[:2]))
            begun = time.perf_counter()
            runtime.encode(tiles[:1])
            figures[f"{place} first tile ms"] = 1000 * (time.perf_counter() - begun)
            for count in (1, 8) if place == "cpu" else (1, 8, 16):
                runtime.encode(tiles[:count])
                figures[f"{place} {count} tiles ms"] = statistics.median(
                    _milliseconds(lambda n=count: runtime.encode(tiles[:n]))  # type: ignore[misc]
                    for _ in range(setting.rounds)
                )
            after = memory_used()
            figures[f"{place} MiB on the GPU"] = (
                None if before is None or after is None else after - before
            )
    figures["relative error"] = error = _relative_error(embeddings[1], embeddings[0])
    if not error <= ROUNDING_BOUND:
        raise CheckError(f"embeddings differ by {error:.1e} from the CPU's: {figures}")
    return figures


def _milliseconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - begun)


# ---- both


@contextmanager
def _loaded(setting: Setting, device: str, gpu_layers: int | None) -> Iterator[VLM]:
    with VLM.from_pretrained(setting.model, device=device, gpu_layers=gpu_layers) as vlm:
        yield vlm


def check_answers(setting: Setting, device: str, gpu_layers: int | None) -> dict[str, Any]:
    """Greedy answers beside the CPU's, a second turn and probabilities, with the times of each."""
    answers: list[list[str]] = []
    figures: dict[str, Any] = {}
    for place, where, layers in (("cpu", "cpu", 0), ("gpu", device, gpu_layers)):
        with _loaded(setting, where, layers) as vlm:
            figures[place] = vlm.device
            vlm.ask(str(IMAGES / "square.png"), "What is it?", max_tokens=2)  # warm
            texts, first, rate = [], [], []
            for names, question in REQUESTS:
                images = [str(IMAGES / name) for name in names] or None
                answer = vlm.ask(images, question, max_tokens=48)
                texts.append(answer.text)
                first.append(answer.stats.first_token_ms)
                rate.append(answer.stats.tokens_per_second)
            chat = vlm.chat()
            chat.send("What shape is it?", images=[str(IMAGES / "square.png")], max_tokens=16)
            turn = chat.send("What color is it?", max_tokens=16)
            texts.append(turn.text)
            scores = vlm.score(str(IMAGES / "square.png"), "What color is it?", ["red", "green"])
            answers.append(texts)
            figures[f"{place} first token ms"] = statistics.median(first)
            figures[f"{place} second turn ms"] = turn.stats.first_token_ms
            figures[f"{place} tokens per second"] = statistics.median(rate)
            figures[f"{place} share of green"] = scores[1].share
    same = sum(a == b for a, b in zip(*answers, strict=True))
    figures["same answers"] = f"{same} of {len(answers[0])}"
    figures["different"] = [pair for pair in zip(*answers, strict=True) if pair[0] != pair[1]]
    return figures


def check_schema(setting: Setting) -> dict[str, Any]:
    """An answer that a JSON schema holds to."""
    with _loaded(setting, "cpu", setting.gpu_layers) as vlm:
        image = str(IMAGES / "square.png")
        answer = vlm.ask(image, "What color is it?", json_schema=SCHEMA, max_tokens=64)
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        raise CheckError(f"{answer.text!r} is not JSON: {error}") from None
    if set(value) != {"color", "seen"} or value["color"] not in ("red", "green", "blue"):
        raise CheckError(f"{answer.text!r} does not keep to the schema")
    return {"answer": answer.text, "tokens per second": answer.stats.tokens_per_second}


# ---- which checks there are, and how they run


def memory_used() -> int | None:
    """MiB in use on all GPUs by all processes, as nvidia-smi says; None without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if listed.returncode != 0:
        return None
    return sum(int(line) for line in listed.stdout.split() if line.isdigit())


def decoder_lacks(gpu_layers: int) -> str:
    """Why the decoder cannot run on the GPU; empty if it can."""
    try:
        offloads = llama_cpp_library.library().llama_supports_gpu_offload()
    except EdgeVLMError as error:
        return str(error)
    if gpu_layers == 0 or offloads:
        return ""
    return (
        f"llama.cpp sees no GPU: none is there, or it is built for the CPU only; {BUILD_WITH_CUDA}"
    )


def vision_lacks(device: str) -> str:
    """Why the vision graph cannot run on `device`; empty if it may."""
    if device not in DEVICES or device in onnx.available_devices():
        return ""
    there = ", ".join(onnx.library().get_available_providers())
    wanted = DEVICES[device]
    return f"{wanted.provider} is not in this ONNX Runtime, which has {there}; {wanted.install}"


def run(name: str, lacks: str, check: Callable[..., dict[str, Any]], *arguments: Any) -> Check:
    """One check in a child process."""
    if lacks:
        return Check(name, "not run", lacks)
    print(f"check_gpu: {name}", file=sys.stderr, flush=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return Check(name, "passed", figures=pool.submit(check, *arguments).result())
        except BrokenProcessPool:
            return Check(name, "failed", "the process was ended; what it wrote last stands above")
        except (CheckError, EdgeVLMError) as error:
            return Check(name, "failed", str(error))


def check_all(setting: Setting) -> Iterator[Check]:
    """All checks of a bundle, the decoder's first.

    Raises:
        BundleError: no such bundle.
    """
    manifest = Bundle.open(setting.model).manifest
    decoder, pictures = decoder_lacks(setting.gpu_layers), vision_lacks(setting.device)
    for file in manifest.decoder.files:
        for what, check in (
            ("logits", check_logits),
            ("key-value cache", check_cache),
            ("two at once", check_two_decoders),
            ("speed", check_decoder_speed),
        ):
            yield run(f"decoder {file}: {what}", decoder, check, setting, file)
    for file in manifest.vision.files:
        yield run(f"vision {file}", pictures, check_vision, setting, file)
    places = (
        ("decoder on the GPU", decoder, ("cpu", setting.gpu_layers)),
        ("vision on the GPU", pictures, (setting.device, 0)),
        ("both on the GPU", pictures or decoder, (setting.device, setting.gpu_layers)),
        ("nothing said (device auto)", pictures and decoder, ("auto", None)),
    )
    for what, lacks, where in places:
        yield run(f"answers, {what}", lacks, check_answers, setting, *where)
    guidance = importlib.util.find_spec("llguidance")
    schema = decoder or ("" if guidance else "llguidance is not installed; pip install llguidance")
    yield run("JSON schema", schema, check_schema, setting)


def describe(check: Check) -> str:
    """A check as text, a figure a line."""
    lines = [f"{check.outcome:8} {check.name}{f': {check.detail}' if check.detail else ''}"]
    for name, value in check.figures.items():
        shown = f"{value:.3g}" if isinstance(value, float) and value < 1000 else value
        shown = f"{value:.0f}" if isinstance(value, float) and value >= 1000 else shown
        lines.append(f"             {name:28} {shown}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything into this file")
    parser.add_argument(
        "--device", default="cuda", help="of the vision graph (default: %(default)s)"
    )
    parser.add_argument("--gpu-layers", metavar="N", type=int, default=-1, help="default: all (-1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    setting = Setting(parsed.model, parsed.device, parsed.gpu_layers, parsed.rounds)
    machine = doctor.examine()
    print(doctor.describe(machine), end="\n\n", flush=True)
    checks = []
    try:
        for check in check_all(setting):
            print(describe(check), flush=True)
            checks.append(check)
    except EdgeVLMError as error:
        parser.error(str(error))
    finally:
        if parsed.json is not None:
            result = {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "setting": asdict(setting),
                "machine": asdict(machine),
                "checks": [asdict(check) for check in checks],
            }
            parsed.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    counts = {
        outcome: sum(check.outcome == outcome for check in checks)
        for outcome in ("passed", "failed", "not run")
    }
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
