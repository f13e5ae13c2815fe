"""Check by the golden answer of a bundle that every precision answers as the checkpoint did.

The decoder gets the golden answer token by token (teacher forcing), and its most likely token at each
position is compared. This finds damaged files and broken machines. The exporter measures how much the
rounding of a precision changes the answer; see the manifest's parity report.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edgevlm.bundle import Bundle
from edgevlm.engine.engine import Engine
from edgevlm.engine.loading import load_decoder, load_vision
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import user_message

FLOAT_PRECISIONS = ("fp32", "fp16", "f32", "f16", "bf16")
MIN_FLOAT_AGREEMENT = 0.9
"""Fraction of positions that must agree if nothing is quantized. Near ties may differ."""
MIN_QUANTIZED_AGREEMENT = 0.5
"""The same if something is quantized. Rounding can change a word; damage changes most words."""


@dataclass(frozen=True)
class GoldenCheck:
    """The result of one vision graph and one decoder."""

    vision: str
    """Precision of the vision graph."""
    decoder: str
    """llama.cpp type of the decoder."""
    agreeing: int
    """Number of positions whose most likely token is that of the golden answer."""
    positions: int
    """Number of positions; 0 if the bundle has no golden answer, and the files were only loaded."""

    @property
    def passed(self) -> bool:
        """True if enough positions agree."""
        exact = self.vision in FLOAT_PRECISIONS and self.decoder in FLOAT_PRECISIONS
        minimum = MIN_FLOAT_AGREEMENT if exact else MIN_QUANTIZED_AGREEMENT
        return self.agreeing >= minimum * self.positions


def check_golden(bundle: Bundle) -> Iterator[GoldenCheck]:
    """Check each vision graph with the first decoder, then each other decoder with the first graph.

    Everything runs on the CPU. Decoders whose runtime is not installed are left out.

    Yields:
        The result of each pair.

    Raises:
        LoadError: a file cannot be loaded.
    """
    visions, decoders = list(bundle.manifest.vision.files), list(bundle.usable_decoders)
    pairs = [(vision, decoders[0]) for vision in visions]
    pairs += [(visions[0], decoder) for decoder in decoders[1:]]
    for vision, decoder in pairs:
        yield _check_pair(bundle, vision, decoder)


def _check_pair(bundle: Bundle, vision: str, decoder: str) -> GoldenCheck:
    manifest = bundle.manifest
    engine = Engine(
        manifest,
        load_vision(manifest, bundle.path(manifest.vision.files[vision])),
        load_decoder(manifest, bundle.path(manifest.decoder.choices[decoder])),
    )
    try:
        golden = manifest.golden
        if golden is None:
            return GoldenCheck(vision, decoder, 0, 0)
        image = engine.process_image(load_image(base64.b64decode(golden.picture_png)))
        logits = engine.logits([user_message(golden.question, 1)], [image], golden.token_ids)
        agreeing = int(np.sum(logits.argmax(axis=1) == golden.token_ids))
        return GoldenCheck(vision, decoder, agreeing, len(golden.token_ids))
    finally:
        engine.close()
