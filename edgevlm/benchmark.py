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

import numpy as np
from numpy.typing import NDArray

from edgevlm.bundle import Bundle
from edgevlm.results import Stats
from edgevlm.runtimes import cpu, vision
from edgevlm.runtimes.base import Sampling
from edgevlm.runtimes.llama_cpp import LlamaCppDecoder
from edgevlm.vlm import VLM

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
class Speed:
    """What came out; times in milliseconds, rates per second, memory in bytes."""

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
    prefill_rate: float
    """Positions, of a text as long as that prompt."""
    decode_rate: float
    """Tokens, after the picture."""
    decode_text_rate: float
    """Tokens, after a text of `TEXT_TOKENS`."""
    peak_memory: int | None
    """Of the process: Python and the libraries included."""


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
    devices = vision.usable_devices() if device == "all" else [device]
    visions, decoders = list(bundle.manifest.vision.files), list(bundle.manifest.decoder.files)
    best = bundle.decoder_file(None)
    first = next(name for name in decoders if bundle.manifest.decoder.files[name] is best)
    found = [Setting(model, v, first, d, threads) for d in devices for v in visions]
    others = [name for name in decoders if name != first]
    return found + [Setting(model, visions[-1], name, devices[0], threads) for name in others]


def measure(setting: Setting, picture: NDArray[np.uint8], rounds: int) -> Speed:
    """One setting, in a child process.

    Args:
        picture: RGB uint8 ``[height, width, 3]``.

    Raises:
        EdgeVLMError: the model does not load or does not fit.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(_measure, setting, picture, rounds).result()


def _measure(setting: Setting, picture: NDArray[np.uint8], rounds: int) -> Speed:
    _load(setting).close()  # brings the files into the system's cache
    first: list[Stats] = []
    following: list[Stats] = []
    with _load(setting) as vlm:
        device = vlm.device
        vlm.ask(picture[:, ::-1], QUESTIONS[0], max_tokens=1)  # threads started, buffers allocated
        for i in range(rounds):
            shifted = np.roll(picture, i + 1, axis=1)  # every tile is a new one
            first.append(vlm.ask(shifted, QUESTIONS[0], max_tokens=1).stats)
            following.append(vlm.ask(shifted, QUESTIONS[1], max_tokens=1).stats)
    typical = sorted(first, key=lambda stats: stats.first_token_ms)[rounds // 2]
    peak_memory = cpu.peak_memory()  # before a second decoder is opened
    text = _rates(setting, TEXT_TOKENS, rounds)
    deep = _rates(setting, typical.prompt_tokens, rounds)
    return Speed(
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
        prefill_rate=deep[0],
        decode_rate=deep[1],
        decode_text_rate=text[1],
        peak_memory=peak_memory,
    )


def _load(setting: Setting) -> VLM:
    return VLM.from_pretrained(
        setting.model,
        device=setting.device,
        vision=setting.vision,
        decoder=setting.decoder,
        threads=setting.threads,
    )


def _rates(setting: Setting, prompt: int, rounds: int) -> tuple[float, float]:
    """Positions per second of a prefill of so many tokens, and tokens per second after it."""
    bundle = Bundle.open(setting.model)
    manifest = bundle.manifest
    decoder = LlamaCppDecoder(
        bundle.path(bundle.decoder_file(setting.decoder)),
        context_length=min(prompt + DECODED_TOKENS, manifest.decoder.context_length),
        threads=setting.threads,
        bidirectional=manifest.decoder.attention == "prefix",
    )
    count = decoder.context_length - DECODED_TOKENS
    tokens = np.random.default_rng(0).integers(0, decoder.vocabulary_size, count).tolist()
    positions = np.arange(decoder.context_length, dtype=np.int32)
    filled, decoded = [], []
    for _ in range(rounds + 1):  # the first one starts threads
        decoder.truncate(0)
        sampler = decoder.sampler(Sampling())
        start = time.perf_counter()
        decoder.decode_tokens(tokens, positions[:count], logits=True)
        prefilled = time.perf_counter()
        for at in range(count, count + DECODED_TOKENS):
            decoder.decode_tokens([sampler.sample()], positions[at : at + 1], logits=True)
        end = time.perf_counter()
        sampler.close()
        filled.append(count / (prefilled - start))
        decoded.append(DECODED_TOKENS / (end - prefilled))
    decoder.close()
    return statistics.median(filled[1:]), statistics.median(decoded[1:])


def ceilings(rounds: int = 5) -> Ceilings:
    """Measure this machine, all cores together; takes a second or two."""
    cores = cpu.physical_cores()
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
