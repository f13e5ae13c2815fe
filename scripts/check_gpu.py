"""Try a bundle on this machine's GPU beside its CPU: python -m scripts.check_gpu [MODEL] [--json FILE]

The decoder with all layers on the GPU and the vision graph on CUDA are compared with the same files on the
CPU: numbers, answers, times, memory, and whether tiles are encoded while the decoder works. Each check runs
in its own process, so a crash is one failed check and not the end of all. If something is missing (a GPU, a
build for it, a package), its checks are "not run". The exit code is 1 if a check failed, and 77 if nothing
was run, as without a GPU. Let nothing else use the GPU meanwhile.
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
from collections.abc import Callable, Collection
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgevlm.benchmark import decoder_rates
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.cli import doctor
from edgevlm.engine.loading import load_decoder, load_vision
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.inputs.images import load_image
from edgevlm.options import KV_TYPES, KVType
from edgevlm.results import PromptTile
from edgevlm.runtimes import devices, system
from edgevlm.runtimes.llama_cpp import library
from edgevlm.runtimes.llama_cpp.decoder import LlamaCppDecoder
from edgevlm.runtimes.onnx import session
from edgevlm.runtimes.onnx.execution_providers import ONNX_DEVICES
from edgevlm.runtimes.protocols import Place
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

FLOAT_BOUNDS = {"fp32": 2e-3, "fp16": 1e-2, "f32": 1e-2, "f16": 1e-2}
"""Relative error between two devices, by a file's precision. ONNX Runtime computes fp32 in TF32 on a GPU, and
llama.cpp keeps its KV cache in f16. Measured on an H200: fp32 6e-4, fp16 1.1e-3, decoder f16 2.8e-3."""
ROUNDING_BOUND = 0.05
"""The same for quantized files: both devices round activations to 8 bits, but not in the same blocks."""
REPEAT_BOUND = 0.01
"""The same between two ways to the same position on one device."""
PROMPT, EMBEDDINGS, DRAFT = 150, 64, 16
"""Tokens, embeddings after them (as many as attend to each other, if that is less), and tokens after those
whose logits are compared."""
LONG_CONTEXT = 8192
"""Positions of the context in which types of the KV cache are compared; less if the model has less."""
NOTHING_RUN = 77
"""Exit code that test harnesses read as "skipped"."""
AHEAD_TILES = 12
"""Tiles of the question that shows whether they are encoded ahead: three runs of the vision graph."""
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


def _decoder(
    setting: Setting, file: str, gpu_layers: int, length: int = 512, kv: KVType = "f16"
) -> LlamaCppDecoder:
    bundle = Bundle.open(setting.model)
    manifest = bundle.manifest
    decoder = load_decoder(
        manifest,
        bundle.path(manifest.decoder.files[file]),
        context_length=min(length, manifest.decoder.context_length),
        gpu_layers=gpu_layers,
        kv=kv,
    )
    assert isinstance(decoder, LlamaCppDecoder)
    return decoder


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
    count = min(EMBEDDINGS, decoder.bidirectional) or EMBEDDINGS
    decoder.decode_embeddings(
        decoder.embed(_tokens(decoder, count, 1)),
        _positions(PROMPT, count),
        logits=False,
        bidirectional=bool(decoder.bidirectional),
    )
    return PROMPT + count


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
    bound = FLOAT_BOUNDS.get(file, ROUNDING_BOUND)
    if not error <= bound:  # also for NaN
        raise CheckError(
            f"logits differ by {error:.1e} from the CPU's, at most {bound:g} may be: {figures}"
        )
    return figures


def check_cache(setting: Setting, file: str) -> dict[str, Any]:
    """Positions that are cut off, copied out and back, or decoded one by one give the same logits."""
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        start = _take_in(decoder)
        copy = decoder.save()
        first = _draft_logits(decoder, start)
        decoder.truncate(Place(start, start))
        errors = {"after truncate": _relative_error(_draft_logits(decoder, start), first)}
        decoder.truncate(Place())
        decoder.restore(copy, Place(start, start))
        errors["after restore"] = _relative_error(_draft_logits(decoder, start), first)
        decoder.truncate(Place(start, start))
        rows = []
        for at, token in enumerate(_tokens(decoder, DRAFT, 2), start=start):
            decoder.decode_tokens([token], _positions(at, 1), logits=True)
            rows.append(decoder.logits())
        errors["one by one"] = _relative_error(np.stack(rows), first)
        begun = time.perf_counter()
        decoder.restore(copy, Place(start, start))
        restore_ms = 1000 * (time.perf_counter() - begun)
    # Single tokens and batches go through other kernels, which round otherwise.
    bounds = {"one by one": ROUNDING_BOUND}
    for name, error in errors.items():
        if not error <= bounds.get(name, REPEAT_BOUND):
            raise CheckError(f"logits {name} differ by {error:.1e}: {errors}")
    return {**errors, "copied KB": copy.nbytes // 1024, "restore ms": restore_ms}


def check_two_decoders(setting: Setting, file: str) -> dict[str, Any]:
    """Two decoders at once do not disturb each other, and closed ones give their memory back."""
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        alone = _draft_logits(decoder, _take_in(decoder))
    memory = GpuMemory()  # what a process keeps, however many decoders it had
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        with closing(_decoder(setting, file, setting.gpu_layers)) as other:
            start = _take_in(decoder)
            _draft_logits(other, _take_in(other))
            beside = _draft_logits(decoder, start)
            both = memory.taken()
        decoder.truncate(Place(start, start))
        errors = {
            "beside another": _relative_error(beside, alone),
            "after the other was closed": _relative_error(_draft_logits(decoder, start), alone),
        }
    for _ in range(setting.rounds):
        _decoder(setting, file, setting.gpu_layers).close()
    left = memory.taken()
    figures = {**errors, "MiB of both": both, "MiB left": left}
    if not max(errors.values()) <= REPEAT_BOUND:
        raise CheckError(f"two decoders disturb each other: {figures}")
    if left is not None and left > MEMORY_LEFT:
        raise CheckError(f"closed decoders keep memory on the GPU: {figures}")
    return figures


def check_decoder_speed(setting: Setting, file: str) -> dict[str, Any]:
    """Prefill and decode rates on both devices, load time, memory on the GPU."""
    memory = GpuMemory()
    figures: dict[str, Any] = {}
    for place, gpu_layers in (("cpu", 0), ("gpu", setting.gpu_layers)):
        _decoder(setting, file, gpu_layers).close()  # files and kernels into the caches
        resident = system.resident_memory()
        begun = time.perf_counter()
        with closing(_decoder(setting, file, gpu_layers, 2048)) as decoder:
            figures[f"{place} load ms"] = 1000 * (time.perf_counter() - begun)
            for prompt in (16, 512, 1100):
                if prompt + 32 > decoder.context_length:
                    continue
                decoder_rates(decoder, prompt, 32)
                measured = [decoder_rates(decoder, prompt, 32) for _ in range(setting.rounds)]
                prefill, decode = (
                    statistics.median(values) for values in zip(*measured, strict=True)
                )
                figures[f"{place} prefill {prompt}"] = prefill
                figures[f"{place} decode after {prompt}"] = decode
            figures[f"{place} MiB of the process"] = _mebibytes_since(resident)
            figures[f"{place} MiB on the GPU"] = memory.taken()
    return figures


def check_kv(setting: Setting, file: str) -> dict[str, Any]:
    """A KV cache in q8_0 beside one in f16: logits, memory, and rates with a context that is full."""
    with closing(_decoder(setting, file, setting.gpu_layers)) as decoder:
        _take_in(decoder)  # what a process keeps, whatever its cache
    figures: dict[str, Any] = {}
    logits = {}
    for kv in KV_TYPES:
        memory = GpuMemory()
        try:
            decoder = _decoder(setting, file, setting.gpu_layers, LONG_CONTEXT, kv)
        except InputError as refusal:
            return {kv: str(refusal)}  # heads of another size
        with closing(decoder):
            logits[kv] = _draft_logits(decoder, _take_in(decoder))
            prompt = decoder.context_length - 2 * DRAFT
            decoder_rates(decoder, prompt, DRAFT)
            rates = [decoder_rates(decoder, prompt, DRAFT) for _ in range(setting.rounds)]
            prefill, decode = (statistics.median(values) for values in zip(*rates, strict=True))
            figures[f"{kv} prefill {prompt}"] = prefill
            figures[f"{kv} decode after {prompt}"] = decode
            figures[f"{kv} MiB on the GPU"] = memory.taken()
    figures["relative error"] = error = _relative_error(logits["q8_0"], logits["f16"])
    if not error <= ROUNDING_BOUND:
        raise CheckError(f"logits with the KV cache in q8_0 differ by {error:.1e}: {figures}")
    return figures


def check_images(setting: Setting, file: str) -> dict[str, Any]:
    """Prompts with one and with two images on both devices, and the same from the KV cache.

    Families differ here: in the spans of their images, and in who attends to whom.
    """
    bundle = Bundle.open(setting.model)
    vision = next(iter(bundle.manifest.vision.files))
    logits = []
    prompts, from_cache = 0, 0.0
    for gpu_layers in (0, setting.gpu_layers):
        with VLM.from_pretrained(
            setting.model, vision=vision, decoder=file, device="cpu", gpu_layers=gpu_layers
        ) as vlm:
            engine = vlm._engine
            random = np.random.default_rng(2)
            answer = random.integers(0, bundle.manifest.decoder.vocabulary_size, DRAFT).tolist()
            rows = []
            for names in (("square.png",), ("scene.png", "changed.png")):
                images = [engine.process_image(load_image(IMAGES / name)) for name in names]
                parts = [{"type": "image"}] * len(names) + [{"type": "text", "text": "What is it?"}]
                messages = [{"role": "user", "content": parts}]
                try:
                    rows.append(engine.logits(messages, images, answer))
                except InputError:
                    if len(names) == 1:
                        raise
                    continue  # a model for one image
                again = engine.logits(messages, images, answer)
                from_cache = max(from_cache, _relative_error(again, rows[-1]))
            prompts = len(rows)
            logits.append(np.concatenate(rows))
    same = logits[1].argmax(axis=1) == logits[0].argmax(axis=1)
    error = _relative_error(logits[1], logits[0])
    figures = {
        "prompts": prompts,
        "relative error": error,
        "same top token": f"{same.sum()} of {len(same)}",
        "asked again": from_cache,
    }
    if not error <= FLOAT_BOUNDS.get(file, ROUNDING_BOUND) or not from_cache <= REPEAT_BOUND:
        raise CheckError(f"logits after images differ: {figures}")
    return figures


# ---- the vision graph


def check_vision(setting: Setting, file: str) -> dict[str, Any]:
    """The same tiles on both devices: embeddings, times of one tile and of several, memory on the GPU."""
    bundle = Bundle.open(setting.model)
    manifest = bundle.manifest
    entry = manifest.vision.files[file]
    height, width = manifest.image.tile_size or (448, 448)
    tiles = np.random.default_rng(0).integers(0, 256, (13, height, width, 3), np.uint8)
    memory = GpuMemory()
    figures: dict[str, Any] = {}
    embeddings = []
    for place, device in (("cpu", "cpu"), ("gpu", setting.device)):
        backend = devices.select_backend(device, None, (file,))
        resident = system.resident_memory()
        begun = time.perf_counter()
        with closing(load_vision(manifest, bundle.path(entry), backend=backend)) as runtime:
            figures[f"{place} load ms"] = 1000 * (time.perf_counter() - begun)
            figures[place] = runtime.device
            figures[f"{place} first run ms"] = _milliseconds(runtime.encode, tiles[:1])
            embeddings.append(runtime.encode(tiles[:4]))
            for count in (1, 4, 13):
                runtime.encode(tiles[:count])
                figures[f"{place} {count} tiles ms"] = statistics.median(
                    _milliseconds(runtime.encode, tiles[:count]) for _ in range(setting.rounds)
                )
            figures[f"{place} MiB of the process"] = _mebibytes_since(resident)
            figures[f"{place} MiB on the GPU"] = memory.taken()
    figures["relative error"] = error = _relative_error(embeddings[1], embeddings[0])
    bound = FLOAT_BOUNDS.get(file, ROUNDING_BOUND)
    if not error <= bound:
        raise CheckError(
            f"embeddings differ by {error:.1e} from the CPU's, at most {bound:g} may be: {figures}"
        )
    return figures


def _mebibytes_since(before: int | None) -> int | None:
    """Growth of this process's memory in MiB; None where the system does not say."""
    now = system.resident_memory()
    return None if now is None or before is None else (now - before) // 2**20


def _milliseconds(work: Callable[..., object], *arguments: object) -> float:
    begun = time.perf_counter()
    work(*arguments)
    return 1000 * (time.perf_counter() - begun)


# ---- both


def check_answers(
    setting: Setting, device: str, gpu_layers: int | None, reference: dict[str, Any]
) -> dict[str, Any]:
    """Greedy answers, a second turn and probabilities, with the times of each.

    Args:
        reference: what this function returned for the CPU; empty for the CPU itself.
    """
    square = str(IMAGES / "square.png")
    answers: dict[str, str] = {}
    first, rate = [], []
    with VLM.from_pretrained(setting.model, device=device, gpu_layers=gpu_layers) as vlm:
        figures: dict[str, Any] = {
            "device": f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"
        }
        vlm.ask(square, "What is it?", max_tokens=2)  # kernels loaded, buffers allocated
        for names, question in REQUESTS:
            images = [str(IMAGES / name) for name in names] or None
            answer = vlm.ask(images, question, max_tokens=48)
            answers[" ".join([question, *names])] = answer.text
            first.append(answer.stats.first_token_ms)
            rate.append(answer.stats.tokens_per_second)
        chat = vlm.chat()
        chat.send("What shape is it?", images=[square], max_tokens=16)
        turn = chat.send("What color is it?", max_tokens=16)
        answers["second turn"] = turn.text
        scores = vlm.score(square, "What color is it?", ["red", "green"])
    figures["first token ms"] = statistics.median(first)
    figures["second turn ms"] = turn.stats.first_token_ms
    figures["tokens per second"] = statistics.median(rate)
    figures["share of green"] = scores[1].probability
    if reference:
        cpu: dict[str, str] = reference["answers"]
        other = {asked: [cpu[asked], text] for asked, text in answers.items() if text != cpu[asked]}
        figures["same answers"] = f"{len(answers) - len(other)} of {len(answers)}"
        figures["other answers"] = other
    return {**figures, "answers": answers}


def check_encode_ahead(setting: Setting, device: str, gpu_layers: int) -> dict[str, Any]:
    """The vision graph on one device encodes tiles while the decoder on the other one works."""
    random = np.random.default_rng(0)
    question = "What is in the images?"
    with VLM.from_pretrained(setting.model, device=device, gpu_layers=gpu_layers) as vlm:
        image = random.integers(0, 256, (480, 640, 3), np.uint8)
        parts = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        prompt = vlm.prompt([{"role": "user", "content": parts}])
        tiles = sum(isinstance(part, PromptTile) for part in prompt.parts)
        count = -(-AHEAD_TILES // tiles)
        engine = vlm._engine
        encoder, decoder = engine._encoder, engine._decoder
        figures: dict[str, Any] = {
            "vision": vlm.vision_device,
            "decoder": vlm.decoder_device,
            "encodes ahead by itself": encoder.ahead,
            "tiles": count * tiles,
        }
        vision_runs = record_calls(encoder._vision, "encode")
        decoder_runs = record_calls(decoder, "decode_tokens", "decode_embeddings")
        for ahead in (False, True):
            encoder.ahead = ahead
            times, overlaps = [], []
            for _ in range(1 + setting.rounds):  # the first loads kernels
                images = list(random.integers(0, 256, (count, *image.shape), np.uint8))
                vision_runs.clear()
                decoder_runs.clear()
                stats = vlm.ask(images, question, max_tokens=1).stats
                times.append(stats.encode_ms + stats.prefill_ms)
                overlaps.append(overlap_ms(vision_runs, decoder_runs))
            name = "ahead" if ahead else "one after the other"
            figures[f"{name}: encode and prefill ms"] = statistics.median(times[1:])
            figures[f"{name}: both at work ms"] = statistics.median(overlaps[1:])
    if not figures["ahead: both at work ms"] > 0:
        raise CheckError(f"vision graph and decoder never worked at the same time: {figures}")
    return figures


def record_calls(owner: Any, *names: str) -> list[tuple[float, float]]:
    """Replace methods of an object by ones that record when each call began and ended, in seconds."""
    calls: list[tuple[float, float]] = []

    def recorded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            begun = time.perf_counter()
            try:
                return method(*arguments, **options)
            finally:
                calls.append((begun, time.perf_counter()))

        return call

    for name in names:
        setattr(owner, name, recorded(getattr(owner, name)))
    return calls


def overlap_ms(
    first: Collection[tuple[float, float]], second: Collection[tuple[float, float]]
) -> float:
    """Return the milliseconds in which calls of both lists ran; calls of one list do not overlap."""
    return 1000 * sum(
        max(0.0, min(end, other_end) - max(begin, other_begin))
        for begin, end in first
        for other_begin, other_end in second
    )


def check_schema(setting: Setting) -> dict[str, Any]:
    """An answer that a JSON schema holds to."""
    image = str(IMAGES / "square.png")
    with VLM.from_pretrained(setting.model, device="cpu", gpu_layers=setting.gpu_layers) as vlm:
        answer = vlm.ask(image, "What color is it?", json_schema=SCHEMA, max_tokens=64)
    try:
        value = json.loads(answer.text)
    except ValueError as error:
        raise CheckError(f"{answer.text!r} is not JSON: {error}") from None
    if set(value) != {"color", "seen"} or value["color"] not in ("red", "green", "blue"):
        raise CheckError(f"{answer.text!r} does not keep to the schema")
    return {"answer": answer.text, "tokens per second": answer.stats.tokens_per_second}


# ---- which checks there are, and how they run


class GpuMemory:
    """How much more memory of all GPUs is in use than when this was created, by whichever process."""

    def __init__(self) -> None:
        self._before = self._used()

    def taken(self) -> int | None:
        """MiB; None if nvidia-smi does not say."""
        used = self._used()
        return None if used is None or self._before is None else used - self._before

    def _used(self) -> int | None:
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
        return library.no_gpu_reason() if gpu_layers else ""
    except EdgeVLMError as error:
        return str(error)


def vision_lacks(device: str) -> str:
    """Why the vision graph cannot run on `device`; empty if it may."""
    if device not in ONNX_DEVICES or device in session.available_devices():
        return ""
    there = ", ".join(session.load_onnxruntime().get_available_providers())
    wanted = ONNX_DEVICES[device]
    return (
        f"{wanted.provider} is not in this ONNX Runtime, which has {there}; {wanted.install_hint}"
    )


class Runner:
    """Runs checks, each in a child process, and keeps what came out.

    Args:
        only: checks whose names do not hold this text are left out.
    """

    def __init__(self, only: str = "") -> None:
        self.only = only
        self.checks: list[Check] = []

    def run(
        self, name: str, lacks: str, check: Callable[..., dict[str, Any]], *arguments: Any
    ) -> dict[str, Any]:
        """The figures of one check; empty if it failed, was left out or, for what it lacks, not run."""
        if self.only not in name:
            return {}
        done = Check(name, "not run", lacks) if lacks else _in_child(name, check, *arguments)
        print(describe(done, {check.detail for check in self.checks if check.detail}), flush=True)
        self.checks.append(done)
        return done.figures


def _in_child(name: str, check: Callable[..., dict[str, Any]], *arguments: Any) -> Check:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        try:
            return Check(name, "passed", figures=pool.submit(check, *arguments).result())
        except BrokenProcessPool:
            return Check(name, "failed", "its process was ended; what it wrote last stands above")
        except (CheckError, EdgeVLMError) as error:
            return Check(name, "failed", str(error))


def check_all(setting: Setting, runner: Runner) -> None:
    """All checks of a bundle.

    Raises:
        BundleError: no such bundle.
    """
    manifest = Bundle.open(setting.model).manifest
    decoder, pictures = decoder_lacks(setting.gpu_layers), vision_lacks(setting.device)
    for file in manifest.decoder.files:
        runner.run(f"decoder {file}: logits", decoder, check_logits, setting, file)
        runner.run(f"decoder {file}: key-value cache", decoder, check_cache, setting, file)
        runner.run(f"decoder {file}: images", decoder, check_images, setting, file)
        runner.run(f"decoder {file}: KV cache in q8_0", decoder, check_kv, setting, file)
        runner.run(f"decoder {file}: two at once", decoder, check_two_decoders, setting, file)
        runner.run(f"decoder {file}: speed", decoder, check_decoder_speed, setting, file)
    for file in manifest.vision.files:
        runner.run(f"vision {file}", pictures, check_vision, setting, file)
    neither = pictures and decoder
    cpu = runner.run("answers: CPU", neither, check_answers, setting, "cpu", 0, {})
    for place, lacks, device, gpu_layers in (
        ("decoder on the GPU", decoder, "cpu", setting.gpu_layers),
        ("vision on the GPU", pictures, setting.device, 0),
        ("both on the GPU", pictures or decoder, setting.device, setting.gpu_layers),
        ("device auto", neither, "auto", None),
    ):
        runner.run(f"answers: {place}", lacks, check_answers, setting, device, gpu_layers, cpu)
    one_pass = (
        "attention over the whole prompt needs all tiles before the decoder begins"
        if manifest.decoder.attention == "prefix"
        else ""
    )
    for place, lacks, device, gpu_layers in (
        ("decoder on the GPU", decoder, "cpu", setting.gpu_layers),
        ("vision on the GPU", pictures, setting.device, 0),
    ):
        lacks = lacks or one_pass
        runner.run(f"encode ahead: {place}", lacks, check_encode_ahead, setting, device, gpu_layers)
    guidance = importlib.util.find_spec("llguidance") is not None
    lacks = decoder or ("" if guidance else "llguidance is not installed; pip install llguidance")
    runner.run("JSON schema", lacks, check_schema, setting)


def describe(check: Check, known: Collection[str] = ()) -> str:
    """A check as text, a figure a line.

    Args:
        known: details that need not be said again.
    """
    detail = "as above" if check.detail in known else check.detail
    lines = [f"{check.outcome:8} {check.name}{f': {detail}' if detail else ''}"]
    lines += [f"{'':13}{name:28} {_shown(value)}" for name, value in check.figures.items()]
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", default=DEFAULT_MODEL)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything into this file")
    parser.add_argument(
        "--only", metavar="TEXT", default="", help="checks with this in their names"
    )
    parser.add_argument(
        "--device", default="cuda", help="of the vision graph (default: %(default)s)"
    )
    parser.add_argument("--gpu-layers", metavar="N", type=int, default=-1, help="default: all (-1)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="default: %(default)s")
    parsed = parser.parse_args(arguments)
    setting = Setting(parsed.model, parsed.device, parsed.gpu_layers, parsed.rounds)
    machine = doctor.examine()
    print(doctor.format_report(machine), end="\n\n", flush=True)
    runner = Runner(parsed.only)
    try:
        check_all(setting, runner)
    except EdgeVLMError as error:
        parser.error(str(error))
    finally:
        if parsed.json is not None:
            result = {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "setting": asdict(setting),
                "machine": asdict(machine),
                "checks": [asdict(check) for check in runner.checks],
            }
            parsed.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    outcomes = [check.outcome for check in runner.checks]
    counts = {outcome: outcomes.count(outcome) for outcome in ("passed", "failed", "not run")}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    if counts["failed"]:
        return 1
    if counts["not run"] == len(outcomes):
        print(
            "nothing was run: this machine has no GPU that edgevlm can use, or no check was named"
        )
        return NOTHING_RUN
    return 0


if __name__ == "__main__":
    sys.exit(main())
