"""Bounds of the difference that each precision may make.

Each precision has one number, an error. In the short form of parity it is the limit of the relative error. In
the report on answers, an error e may cause e² of the divergence that total loss causes, and 2 e of its other
most likely tokens: a small random error of e in the embeddings or in all logits does about so much, on random
weights and on trained ones (docs/exporting.md). Total loss is another image for a vision graph, and the mean
distribution of all positions for a decoder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.errors import ExportError

VISION_BOUNDS = {"fp32": 1e-4, "fp16": 1e-2, "int8": 0.1, "int8-static": 0.1}
"""The error of each vision precision."""
DECODER_BOUNDS = {"f32": 5e-3, "f16": 5e-3, "bf16": 5e-2, "8": 0.1, "6": 0.15, "5": 0.2, "4": 0.35}
DECODER_BOUNDS |= {"3": 0.5, "2": 0.7, "1": 0.7}
"""The error of each decoder type, or of quantized types by the bits in the name.

f32 has the limit of f16, since llama.cpp's KV cache is f16 in both cases.
"""


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
        decoder: llama.cpp type of the decoder.
        image: what another image causes.
        context: what the mean distribution of all positions causes.
        positions: number of positions; two near ties among them may always turn over.
    """
    parts = (VISION_BOUNDS[vision], image), (decoder_bound(decoder), context)
    return Scale(
        sum(error**2 * scale.kl for error, scale in parts),
        max(
            0.0,
            1 - 2 / positions - sum(2 * error * (1 - scale.agreement) for error, scale in parts),
        ),
    )


def decoder_bound(file_type: str) -> float:
    """Return the error of a type, by its name or the bits in it: ``q4_k_m``, ``iq4_nl``, ``mxfp4_moe``.

    Raises:
        ExportError: the type has no limit.
    """
    bits = re.search(r"\d", file_type)
    for key in (file_type, bits[0] if bits else ""):
        if key in DECODER_BOUNDS:
            return DECODER_BOUNDS[key]
    raise ExportError(
        f"a decoder of type {file_type} cannot be compared with its checkpoint: edgevlm knows no bound for "
        f"it; quantize it to another type"
    )
