"""The whole road, through real runtimes, against transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgevlm import VLM
from edgevlm.inputs.images import load_image
from edgevlm.inputs.prompt import user_message
from edgevlm.inputs.tiling import ImageBudget
from tests.conftest import Export, picture
from tests.support.reference import Reference


@pytest.mark.parametrize("family", ["smolvlm", "idefics3", "paligemma", "paligemma2"])
def test_logits_as_transformers(exported: Export, family: str) -> None:
    """Picture, prompt and answer through both: every family, the whole road at once."""
    made = exported(family)
    reference = Reference(made.checkpoint, family)
    with VLM.from_pretrained(made.bundle, vision="fp32", decoder="f16", threads=1) as vlm:
        for seed, question in enumerate(["What is this?", "Say 3 things.\nNow."]):
            image = picture(seed, width=90 + 70 * seed)
            ids, expected = reference.answer_and_logits(reference.question(image, question), 6)
            prepared = vlm._engine.process_image(load_image(image))
            found = vlm._engine.logits([user_message(question, 1)], [prepared], ids)
            expected = expected[:, : found.shape[1]]
            error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
            assert error < 5e-3, f"{family}: relative error {error:.1e}"


def test_low_detail_as_transformers_with_a_shorter_edge(exported: Export) -> None:
    made = exported("smolvlm")
    reference = Reference(made.checkpoint, "smolvlm")
    reference.processor.image_processor.size = {"longest_edge": 64}  # one tile
    image, question = picture(5, 300, 200), "What is this?"
    ids, expected = reference.answer_and_logits(reference.question(image, question), 6)
    with VLM.from_pretrained(made.bundle, vision="fp32", decoder="f16", threads=1) as vlm:
        prepared = vlm._engine.process_image(load_image(image), ImageBudget("low"))
        found = vlm._engine.logits([user_message(question, 1)], [prepared], ids)
    expected = expected[:, : found.shape[1]]
    assert np.linalg.norm(found - expected) < 5e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("family", ["smolvlm", "paligemma"])
def test_encode_as_transformers(exported: Export, family: str) -> None:
    made = exported(family)
    reference = Reference(made.checkpoint, family)
    image = picture(3, 200, 130)
    inputs = reference.question(image, "x")
    with torch.no_grad():
        pooled = reference.model.get_image_features(
            pixel_values=inputs["pixel_values"]
        ).pooler_output
    expected = torch.cat(list(pooled)).reshape(-1, pooled[0].shape[-1]).numpy()
    with VLM.from_pretrained(made.bundle, vision="fp32", decoder="f16") as vlm:
        found = vlm.encode_image(image) / vlm.manifest.decoder.embedding_scale
    assert found.dtype == np.float32
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4
