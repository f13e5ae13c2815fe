"""Streams of frames for a model that remembers: each frame shows one colored shape.

`several_frames.py` trains on them, and `benchmarks/recall.py` measures with others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgevlm.scenes import composition
from edgevlm.scenes.composition import COLORS, Scene

MEMORY = 8
"""Frames that the model sees together."""
CHOICES = tuple(COLORS)
"""The answers. All are equally frequent, so a guess is right in one of eight cases."""
SIDES = (144, 256)
"""Smallest and largest side of a frame, in pixels."""


def recall_question(ago: int) -> str:
    """Return the question about the color of a frame, `ago` frames before the newest."""
    if not ago:
        return "What color is shown now?"
    return f"What color was shown {ago} frame{'s' * (ago > 1)} ago?"


def color_of(scene: Scene) -> str:
    """Return the color of the shape in a frame."""
    color = scene.things[0].color
    assert color is not None
    return color


def stream_scenes(seed: list[int]) -> Iterator[Scene]:
    """Yield endless scenes of one colored shape; the same for the same seed."""
    rng = np.random.default_rng(seed)
    while True:
        yield composition.sample(rng, "single", SIDES, shapes=1.0)
