"""Measure the speed of a bundle on this machine, and the speed of the machine itself.

Each setting is measured in its own process, so that settings share neither memory nor caches. Rounds use
new images of equal size, which no cache holds. Figures are medians.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.engine.loading import default_gpu_layers, load_decoder
from edgevlm.options import KV_TYPES, KVType
from edgevlm.results import Stats
from edgevlm.runtimes import devices, system
from edgevlm.runtimes.protocols import DecoderRuntime, Place, Sampling
from edgevlm.vlm import VLM

Result = TypeVar("Result")

QUESTIONS = ("What is in the picture?", "How many things are there?")
TEXT_TOKENS = 16
"""Length of a short prompt without an image."""
DECODED_TOKENS = 32
"""Length of the answers that are measured."""


@dataclass(frozen=True)
class Setting:
    """A combination of files and device to measure."""

    model: str
    """Model, as in `VLM.from_pretrained`."""
    vision: str
    """Precision of the vision graph."""
    decoder: str
    """llama.cpp type of the decoder."""
    device: str
    """Device, as in `VLM.from_pretrained`."""
    threads: int | None
    """Threads of each runtime; None: each runtime chooses."""
    kv: KVType = "f16"
    """Type of the KV cache, as in `VLM.from_pretrained`."""


@dataclass(frozen=True)
class ImageSpeed:
    """Cost of a question about an image; times in milliseconds."""

    vision: str
    """Precision of the vision graph."""
    decoder: str
    """llama.cpp type of the decoder."""
    device: str
    """Devices that the vision graph and the decoder ran on."""
    load_ms: float
    """Time to load the model; its files are in the cache of the operating system."""
    tiles: int
    """Number of tiles of the image."""
    prompt_tokens: int
    """Positions of the prompt, the image included."""
    prepare_ms: float
    """Time to split the image and to tokenize the prompt."""
    encode_ms: float
    """Time to encode all tiles."""
    prefill_ms: float
    """Time to decode the whole prompt."""
    first_token_ms: float
    """Time to the first token for a new image."""
    next_question_ms: float
    """Time to the first token of another question about the same image."""
    peak_memory: int | None
    """Maximum memory of the process in bytes, with Python and the libraries; None: not known."""


@dataclass(frozen=True)
class DecoderSpeed:
    """Speed of a decoder alone."""

    decoder: str
    """llama.cpp type of the decoder."""
    device: str
    """Device that the decoder ran on."""
    prompt_tokens: int
    """Length of the prompt, as long as that of the question about an image."""
    prefill_rate: float
    """Positions of the prompt per second."""
    decode_rate: float
    """Tokens per second after this prompt."""
    decode_text_rate: float
    """Tokens per second after a prompt of `TEXT_TOKENS`."""


@dataclass(frozen=True)
class MachineLimits:
    """Maximum speed of the machine, as measured in this process."""

    read_rate: float
    """Bytes per second read from memory by all cores together."""
    multiply_rate: float
    """Floating-point operations per second of a float32 matrix product in NumPy."""


def camera_frame() -> NDArray[np.uint8]:
    """Return an image of noise, uint8 ``[480, 640, 3]``. The content does not change the time."""
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


def settings(
    bundle: Bundle, model: str, device: str, threads: int | None, kv: KVType = "f16"
) -> list[Setting]:
    """Return each vision precision with the preferred decoder, then each other one that can be loaded.

    Args:
        bundle: the opened bundle of `model`.
        model: as in `VLM.from_pretrained`.
        device: as in `VLM.from_pretrained`, or ``all``: the CPU with each installed runtime, and CUDA if it
            is available.
        threads: as in `VLM.from_pretrained`.
        kv: as in `VLM.from_pretrained`.
    """
    names = devices.usable_devices() if device == "all" else [device]
    files = bundle.usable_decoders
    if kv != KV_TYPES[0]:  # a setting of llama.cpp
        files = {
            name: file for name, file in files.items() if name in bundle.manifest.decoder.files
        }
    best = bundle.decoder_file(None)
    decoders = sorted(files, key=lambda name: files[name] is not best)
    precisions = list(bundle.manifest.vision.files)
    by_vision = [
        Setting(model, precision, decoders[0], name, threads, kv)
        for name in names
        for precision in precisions
    ]
    by_decoder = [
        Setting(model, precisions[-1], name, names[0], threads, kv) for name in decoders[1:]
    ]
    return by_vision + by_decoder


def measure_image(setting: Setting, image: NDArray[np.uint8], rounds: int) -> ImageSpeed:
    """Measure questions about an image in a child process.

    Args:
        setting: the setting.
        image: RGB, uint8 ``[height, width, 3]``.
        rounds: the number of measurements; the result is the median.

    Raises:
        EdgeVLMError: the model cannot be loaded, or the prompt does not fit its context.
    """
    return _run_in_child(_measure_image, setting, image, rounds)


def measure_decoder(setting: Setting, prompt_tokens: int, rounds: int) -> DecoderSpeed:
    """Measure the decoder of a setting in a child process.

    Args:
        setting: the setting.
        prompt_tokens: the length of the prompt.
        rounds: the number of measurements; the result is the median.

    Raises:
        EdgeVLMError: the decoder cannot be loaded.
    """
    return _run_in_child(_measure_decoder, setting, prompt_tokens, rounds)


def _run_in_child(work: Callable[..., Result], *arguments: object) -> Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _measure_image(setting: Setting, image: NDArray[np.uint8], rounds: int) -> ImageSpeed:
    _load(setting).close()  # read the files into the cache of the operating system
    first: list[Stats] = []
    following: list[Stats] = []
    with _load(setting) as vlm:
        device = f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"
        vlm.ask(image[:, ::-1], QUESTIONS[0], max_tokens=1)  # start threads, allocate buffers
        for i in range(rounds):
            shifted = np.roll(image, i + 1, axis=1)  # no tile is in a cache
            first.append(vlm.ask(shifted, QUESTIONS[0], max_tokens=1).stats)
            following.append(vlm.ask(shifted, QUESTIONS[1], max_tokens=1).stats)
    typical = sorted(first, key=lambda stats: stats.first_token_ms)[rounds // 2]
    return ImageSpeed(
        vision=setting.vision,
        decoder=setting.decoder,
        device=device,
        load_ms=typical.load_ms,
        tiles=typical.encoded_tiles,
        prompt_tokens=typical.prompt_tokens,
        prepare_ms=typical.prepare_ms,
        encode_ms=typical.encode_ms,
        prefill_ms=typical.prefill_ms,
        first_token_ms=typical.first_token_ms,
        next_question_ms=statistics.median(stats.first_token_ms for stats in following),
        peak_memory=typical.peak_memory,
    )


def _load(setting: Setting) -> VLM:
    return VLM.from_pretrained(
        setting.model,
        device=setting.device,
        vision=setting.vision,
        decoder=setting.decoder,
        threads=setting.threads,
        kv=setting.kv,
    )


def _measure_decoder(setting: Setting, prompt_tokens: int, rounds: int) -> DecoderSpeed:
    bundle = Bundle.open(setting.model)
    context_length = min(prompt_tokens + DECODED_TOKENS, bundle.manifest.decoder.context_length)
    file = bundle.decoder_file(setting.decoder)
    decoder = load_decoder(
        bundle.manifest,
        bundle.path(file),
        context_length=context_length,
        threads=setting.threads,
        gpu_layers=default_gpu_layers(setting.device, file.name),
        kv=setting.kv,
    )
    prompt_tokens = context_length - DECODED_TOKENS
    prefill_rate, decode_rate = _median_rates(decoder, prompt_tokens, rounds)
    _, text_rate = _median_rates(decoder, min(TEXT_TOKENS, prompt_tokens), rounds)
    device = decoder.device
    decoder.close()
    return DecoderSpeed(
        setting.decoder, device, prompt_tokens, prefill_rate, decode_rate, text_rate
    )


def decoder_rates(decoder: DecoderRuntime, prompt: int, decoded: int) -> tuple[float, float]:
    """Measure a decoder once, with random tokens.

    Args:
        decoder: the decoder; its KV cache is dropped.
        prompt: the number of tokens of the prompt.
        decoded: the number of tokens of the answer.

    Returns:
        Positions of the prompt per second, and tokens of the answer per second.
    """
    tokens = np.random.default_rng(0).integers(0, decoder.vocabulary_size, prompt).tolist()
    positions = np.arange(prompt + decoded, dtype=np.int32)
    decoder.truncate(Place())
    sampler = decoder.sampler(Sampling())
    start = time.perf_counter()
    decoder.decode_tokens(tokens, positions[:prompt], logits=True)
    prefilled = time.perf_counter()
    for at in range(prompt, len(positions)):
        decoder.decode_tokens([sampler.sample()], positions[at : at + 1], logits=True)
    end = time.perf_counter()
    sampler.close()
    return prompt / (prefilled - start), decoded / (end - prefilled)


def _median_rates(decoder: DecoderRuntime, prompt: int, rounds: int) -> tuple[float, float]:
    """Return the medians of `decoder_rates`, after a first round that starts the threads."""
    measured = [decoder_rates(decoder, prompt, DECODED_TOKENS) for _ in range(rounds + 1)][1:]
    prefill, decode = (statistics.median(values) for values in zip(*measured, strict=True))
    return prefill, decode


def measure_limits(rounds: int = 5) -> MachineLimits:
    """Measure the speed of all cores of this machine together, in a second or two."""
    cores = system.physical_cores()
    rows = np.ones((cores, 2**25), np.float32)  # 128 MB for each core, more than its caches
    with ThreadPoolExecutor(cores) as pool:
        reading = min(_seconds(lambda: list(pool.map(np.max, rows))) for _ in range(rounds))
    side = 2048
    matrix = np.ones((side, side), np.float32)
    multiplying = min(_seconds(lambda: matrix @ matrix) for _ in range(rounds))
    return MachineLimits(read_rate=rows.nbytes / reading, multiply_rate=2 * side**3 / multiplying)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
