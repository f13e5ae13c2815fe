"""Bounds of the difference that each precision may make.

Each precision has one number, an error e. In the report on answers, it may cause e² of the divergence that a
total loss causes, and 2 e of the other most likely tokens. A random error of the size e in the embeddings or
logits causes about that, on random weights and on trained ones (docs/exporting.md has the measurement). A
total loss is another image for a vision graph, and the mean distribution of all positions for a decoder.

In the short form of parity and for the exact pair, e is the limit of the relative error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.errors import ExportError

VISION_BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.07, "int4": 0.4}
"""The error of each vision precision."""
DECODER_BOUNDS = {"f32": 1e-2, "f16": 1e-2, "bf16": 5e-2, "8": 0.1, "6": 0.2, "5": 0.35, "4": 0.7}
DECODER_BOUNDS |= {"3": 0.9, "2": 1.0, "1": 1.0, "fp32": 1e-2, "fp16": 1e-2}
"""The error of each decoder type, or of quantized types by the bits in the name.

Measured for f16: up to 3e-3 on tiny checkpoints, and 6e-3 on InternVL3 1B's shape after a prompt of 3,300
positions, both with random weights. f32 has the limit of f16, since llama.cpp's KV cache is f16 in both.
Gated delta nets with random weights exceed the limit of q8_0, trained ones do not
(`benchmarks/precision/hybrids.py`).
"""

MIN_CONTEXT_KL = 0.1
"""Smallest scale for decoders, in nats. Some models give nearly the same distribution whatever they read;
rounding then changes it more than the context does, and still changes no answer."""


@dataclass(frozen=True)
class Scale:
    """What total loss causes, or how much of it is allowed."""

    kl: float
    """Mean divergence in nats."""
    agreement: float
    """Fraction of positions with the same most likely token, 0 to 1."""


def answer_bounds(vision: str, decoder: str, image: Scale, context: Scale, positions: int) -> Scale:
    """Return the limits of a pair of files: the largest divergence and the smallest agreement.

    Args:
        vision: precision of the vision graph.
        decoder: type of the decoder.
        image: what another image causes.
        context: what the mean distribution of all positions causes.
        positions: number of positions; two near ties among them may always turn over.
    """
    seen, read = VISION_BOUNDS[vision], decoder_bound(decoder)
    kl = seen**2 * image.kl + read**2 * max(context.kl, MIN_CONTEXT_KL)
    other = 2 * seen * (1 - image.agreement) + 2 * read * (1 - context.agreement)
    return Scale(kl, max(0.0, 1 - 2 / positions - other))


def decoder_bound(file_type: str) -> float:
    """Return the error of a type, by its name or the bits in it: ``q4_k_m``, ``iq4_nl``, ``mixed4``.

    Raises:
        ExportError: the type has no limit.
    """
    bits = re.search(r"\d+", file_type)
    # A mixed type of more than 8 bits has matrices of 8 bits beside those of 16.
    for key in (file_type, str(min(8, int(bits[0]))) if bits else ""):
        if key in DECODER_BOUNDS:
            return DECODER_BOUNDS[key]
    raise ExportError(
        f"a decoder of type {file_type} cannot be compared with its checkpoint: edgevlm knows no bound for "
        f"it; quantize it to another type"
    )
