"""Checkpoints as references of the bundles that were exported from them: distributions agree."""

from __future__ import annotations

import pytest

from edgevlm import VLM
from edgevlm.evaluation.comparison import compare, divergence_result
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.evaluation.references import open_reference
from tests.conftest import Export, picture


def item(seeds: tuple[int, ...], *turns: str) -> Item:
    images = tuple(LazyImage(str(seed), lambda seed=seed: picture(seed)) for seed in seeds)  # type: ignore[misc]
    return Item("all", images, turns, ("x",), "exact", "all")


ITEMS = {
    "smolvlm": [
        item((0,), "What is this?"),
        item((), "What is 1 + 1?"),
        item((1, 2), "What differs?", "And now?", "Why?"),
    ],
    "paligemma": [item((0,), "What is this?"), item((1,), "describe en")],
}


@pytest.mark.parametrize("family", ITEMS)
def test_a_bundle_has_the_distributions_of_its_checkpoint(exported: Export, family: str) -> None:
    made = exported(family)
    reference = open_reference(str(made.checkpoint), vision=None, decoder=None)
    with VLM.from_pretrained(made.bundle, device="cpu", vision="fp32", decoder="f16") as vlm:
        exact = divergence_result(compare(vlm, reference, ITEMS[family]))
    with VLM.from_pretrained(made.bundle, device="cpu", vision="int8", decoder="q8_0") as vlm:
        quantized = divergence_result(compare(vlm, reference, ITEMS[family]))
    reference.close()
    assert exact.max_kl < 1e-3
    assert exact.positions == quantized.positions > 3
    assert quantized.kl.mean > 2 * exact.kl.mean
