"""Reduce the images of a request so that its answer ends before the deadline."""

from __future__ import annotations

import dataclasses

from edgevlm.engine.costs import Costs
from edgevlm.inputs.packing import max_tokens_per_tile
from edgevlm.manifest import CrossPacking, Manifest, OwnSizeTiling
from edgevlm.options import Generation

ANSWER_TOKENS = 16
"""Tokens of the answer for which time is kept free before images get their share, unless it is shorter."""

TEXT_POSITIONS = 64
"""Positions of the prompt beside its images for which time is kept free."""

LEAST_OWN_SIZE = 256
"""Smallest limit of embeddings for models whose tiles differ in size; below it images get detail ``low``."""


def fit_images(
    generation: Generation,
    images: int,
    elapsed: float,
    costs: Costs,
    manifest: Manifest,
    *,
    decodes: bool = True,
) -> Generation:
    """Lower the limits of images so that an answer probably ends before its deadline.

    A model whose costs are not known yet, because it has not answered on this machine, gets the least detail.

    Args:
        generation: settings of the request.
        images: number of images.
        elapsed: seconds since the request came.
        costs: measured costs of the model.
        manifest: manifest of the model.
        decodes: False if the request only scores texts, in one batch after the prompt.

    Returns:
        The settings, perhaps with lower ``detail`` and ``max_image_tokens``.
    """
    if generation.within is None or not images:
        return generation
    if isinstance(manifest.vision.packing, CrossPacking):
        return generation  # all images cost the same
    least = dataclasses.replace(generation, detail="low")
    encode, prefill = costs.bound("encode"), costs.bound("prefill")
    decode = costs.bound("decode") if decodes else 0.0
    if encode is None or prefill is None or decode is None:
        return least
    answer = min(generation.max_tokens or ANSWER_TOKENS, ANSWER_TOKENS)
    left = costs.working_time(generation.within) - elapsed
    left -= decode * answer + prefill * TEXT_POSITIONS
    limit = int(max(0.0, left) / (encode + prefill) / images)
    own_size = isinstance(manifest.image.tiling, OwnSizeTiling)
    if limit < (LEAST_OWN_SIZE if own_size else max_tokens_per_tile(manifest.vision)):
        return least
    own = generation.max_image_tokens
    if own is not None and own <= limit:
        return generation
    return dataclasses.replace(generation, max_image_tokens=limit)
