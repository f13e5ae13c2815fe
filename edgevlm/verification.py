"""Verify that a bundle still answers as its checkpoint did, by its golden answer, in every precision.

The answer is forced on the decoder token by token, and at each position the decoder's own most
likely token is compared. What is measured is whether files and machine are sound; how far rounding
moves a precision from the checkpoint was measured at export, see the manifest's parity report.
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

FLOAT = ("fp32", "fp16", "f32", "f16", "bf16")
FLOAT_BOUND = 0.9
"""Share of positions that must agree if nothing is quantized: all but near ties."""
QUANTIZED_BOUND = 0.5
"""The same if something is: rounding may change a word, damage changes most of them."""


@dataclass(frozen=True)
class GoldenCheck:
    """The golden answer through one vision graph and one decoder."""

    vision: str
    """Precision."""
    decoder: str
    """llama.cpp type."""
    agreeing: int
    """Positions whose most likely token is the golden one."""
    positions: int
    """0 if the bundle stores no golden answer: both files were only loaded."""

    @property
    def passed(self) -> bool:
        exact = self.vision in FLOAT and self.decoder in FLOAT
        bound = FLOAT_BOUND if exact else QUANTIZED_BOUND
        return self.agreeing >= bound * self.positions


def check_golden(bundle: Bundle) -> Iterator[GoldenCheck]:
    """Every vision graph with the first decoder, then every other decoder with the first graph.

    All of it on the CPU.

    Raises:
        LoadError: a file that does not load.
    """
    visions, decoders = list(bundle.manifest.vision.files), list(bundle.manifest.decoder.files)
    pairs = [(vision, decoders[0]) for vision in visions]
    pairs += [(visions[0], decoder) for decoder in decoders[1:]]
    for vision, decoder in pairs:
        yield _check_pair(bundle, vision, decoder)


def _check_pair(bundle: Bundle, vision: str, decoder: str) -> GoldenCheck:
    manifest = bundle.manifest
    engine = Engine(
        manifest,
        load_vision(manifest, bundle.path(manifest.vision.files[vision])),
        load_decoder(manifest, bundle.path(manifest.decoder.files[decoder])),
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
