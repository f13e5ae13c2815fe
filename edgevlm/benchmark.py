"""How fast a bundle is on this machine, and how fast the machine itself is.

Every setting is measured in a process of its own, so that its memory is its own and no other one warms
its caches. Rounds use pictures of equal size that no cache knows; figures are medians.
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
from edgevlm.results import Stats
from edgevlm.runtimes import devices, system
from edgevlm.runtimes.protocols import DecoderRuntime, Sampling
from edgevlm.vlm import VLM

Result = TypeVar("Result")

QUESTIONS = ("What is in the picture?", "How many things are there?")
TEXT_TOKENS = 16
DECODED_TOKENS = 32


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    model: str
    vision: str
    """Precision of the vision graph."""
    decoder: str
    """llama.cpp type."""
    device: str
    threads: int | None


@dataclass(frozen=True)
class PictureSpeed:
    """What a question about a picture costs; times in milliseconds, memory in bytes."""

    vision: str
    decoder: str
    device: str
    """What both halves really ran on."""
    load_ms: float
    """With the files in the system's cache."""
    tiles: int
    """Of the picture."""
    prompt_tokens: int
    prepare_ms: float
    encode_ms: float
    """All tiles."""
    prefill_ms: float
    """The whole prompt."""
    first_token_ms: float
    """Of a picture that was never seen."""
    next_question_ms: float
    """First token of another question about it."""
    peak_memory: int | None
    """Of the process: Python and the libraries included."""


@dataclass(frozen=True)
class DecoderSpeed:
    """What a decoder does by itself, per second."""

    decoder: str
    device: str
    prompt_tokens: int
    """Length of the prompt, which is that of the picture's."""
    prefill_rate: float
    """Positions of the prompt."""
    decode_rate: float
    """Tokens after it."""
    decode_text_rate: float
    """Tokens after a text of `TEXT_TOKENS`."""


@dataclass(frozen=True)
class Ceilings:
    """What the machine can do at most, in this process and this moment."""

    read_rate: float
    """Bytes per second from memory, all cores together."""
    multiply_rate: float
    """Floating-point operations per second of a float32 matrix product, as NumPy's library does it."""


def camera_frame() -> NDArray[np.uint8]:
    """A picture of 640 x 480 to measure with; what it shows makes no difference to the time."""
    return np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)


def settings(bundle: Bundle, model: str, device: str, threads: int | None) -> list[Setting]:
    """Every vision precision with the preferred decoder, then every other decoder.

    Args:
        device: as in `VLM.from_pretrained`; ``all`` is the CPU with each runtime that is installed, and
            CUDA where it is there.
    """
    names = devices.usable_devices() if device == "all" else [device]
    files = bundle.manifest.decoder.files
    best = bundle.decoder_file(None)
    decoders = sorted(files, key=lambda name: files[name] is not best)
    visions = list(bundle.manifest.vision.files)
    found = [
        Setting(model, precision, decoders[0], place, threads)
        for place in names
        for precision in visions
    ]
    return found + [Setting(model, visions[-1], name, names[0], threads) for name in decoders[1:]]


def measure_picture(setting: Setting, picture: NDArray[np.uint8], rounds: int) -> PictureSpeed:
    """One setting, in a child process.

    Args:
        picture: RGB uint8 ``[height, width, 3]``.

    Raises:
        EdgeVLMError: the model does not load or does not fit.
    """
    return _in_child(_measure_picture, setting, picture, rounds)


def measure_decoder(setting: Setting, prompt_tokens: int, rounds: int) -> DecoderSpeed:
    """A setting's decoder alone, in a child process; arguments and errors as `measure_picture`."""
    return _in_child(_measure_decoder, setting, prompt_tokens, rounds)


def _in_child(work: Callable[..., Result], *arguments: object) -> Result:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(work, *arguments).result()


def _measure_picture(setting: Setting, picture: NDArray[np.uint8], rounds: int) -> PictureSpeed:
    _load(setting).close()  # brings the files into the system's cache
    first: list[Stats] = []
    following: list[Stats] = []
    with _load(setting) as vlm:
        device = f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"
        vlm.ask(picture[:, ::-1], QUESTIONS[0], max_tokens=1)  # threads started, buffers allocated
        for i in range(rounds):
            shifted = np.roll(picture, i + 1, axis=1)  # every tile is a new one
            first.append(vlm.ask(shifted, QUESTIONS[0], max_tokens=1).stats)
            following.append(vlm.ask(shifted, QUESTIONS[1], max_tokens=1).stats)
    typical = sorted(first, key=lambda stats: stats.first_token_ms)[rounds // 2]
    return PictureSpeed(
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
    )


def _measure_decoder(setting: Setting, prompt_tokens: int, rounds: int) -> DecoderSpeed:
    bundle = Bundle.open(setting.model)
    context_length = min(prompt_tokens + DECODED_TOKENS, bundle.manifest.decoder.context_length)
    decoder = load_decoder(
        bundle.manifest,
        bundle.path(bundle.decoder_file(setting.decoder)),
        context_length=context_length,
        threads=setting.threads,
        gpu_layers=default_gpu_layers(setting.device),
    )
    prompt_tokens = context_length - DECODED_TOKENS
    prefill_rate, decode_rate = _median_rates(decoder, prompt_tokens, rounds)
    _, text_rate = _median_rates(decoder, min(TEXT_TOKENS, prompt_tokens), rounds)
    device = decoder.device
    decoder.close()
    return DecoderSpeed(
        setting.decoder, device, prompt_tokens, prefill_rate, decode_rate, text_rate
    )


def rates(decoder: DecoderRuntime, prompt: int, decoded: int) -> tuple[float, float]:
    """Positions per second of a prefill of so many tokens, and tokens per second of so many after it."""
    tokens = np.random.default_rng(0).integers(0, decoder.vocabulary_size, prompt).tolist()
    positions = np.arange(prompt + decoded, dtype=np.int32)
    decoder.truncate(0)
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
    """Of as many rounds, after one that starts threads."""
    measured = [rates(decoder, prompt, DECODED_TOKENS) for _ in range(rounds + 1)][1:]
    prefill, decode = (statistics.median(values) for values in zip(*measured, strict=True))
    return prefill, decode


def ceilings(rounds: int = 5) -> Ceilings:
    """Measure this machine, all cores together; takes a second or two."""
    cores = system.physical_cores()
    rows = np.ones((cores, 2**25), np.float32)  # 128 MB for each core: more than its caches hold
    with ThreadPoolExecutor(cores) as pool:
        reading = min(_seconds(lambda: list(pool.map(np.max, rows))) for _ in range(rounds))
    side = 2048
    matrix = np.ones((side, side), np.float32)
    multiplying = min(_seconds(lambda: matrix @ matrix) for _ in range(rounds))
    return Ceilings(read_rate=rows.nbytes / reading, multiply_rate=2 * side**3 / multiplying)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
