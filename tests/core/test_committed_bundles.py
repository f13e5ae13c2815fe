"""The bundles of `tests/bundles` answer as transformers does, by what it computed when they were made."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import VLM, Bundle, PromptTile
from edgevlm.manifest import MANIFEST_NAME, Manifest
from tests.support.oracle import (
    BUNDLES,
    CONVERSATIONS,
    FAMILIES,
    Expected,
    load_oracle,
    tile_hash,
)

CASES = [
    pytest.param(family, number, id=f"{family}-{number}")
    for family in FAMILIES
    for number in range(len(CONVERSATIONS[family]))
]


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, VLM]]:
    # On CPUs with AMX the device ``auto`` would compute float32 graphs in bf16.
    loaded = {
        family: VLM.from_pretrained(BUNDLES / family, device="cpu", threads=1)
        for family in FAMILIES
    }
    yield loaded
    for vlm in loaded.values():
        vlm.close()


@pytest.fixture(scope="module")
def oracles() -> dict[str, list[Expected]]:
    return {family: load_oracle(family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_files_are_those_of_the_manifest(family: str) -> None:
    bundle = Bundle.open(BUNDLES / family)
    bundle.check_hashes()
    assert bundle.manifest.source.family == family


def test_int8_static_of_earlier_versions_can_still_be_loaded(tmp_path: Path) -> None:
    """The exporter no longer writes this precision."""
    shutil.copytree(BUNDLES / "smolvlm", tmp_path / "bundle")
    manifest = Manifest.load(tmp_path / "bundle")
    graph = replace(manifest.vision.files["fp32"], name="vision.int8-static.onnx")
    (tmp_path / "bundle" / "vision.fp32.onnx").rename(tmp_path / "bundle" / graph.name)
    vision = replace(manifest.vision, files={"int8-static": graph})
    manifest = replace(manifest, vision=vision)
    (tmp_path / "bundle" / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    for precision in ("int8-static", None):
        with VLM.from_pretrained(tmp_path / "bundle", vision=precision, threads=1) as vlm:
            assert vlm.ask(np.zeros((32, 32, 3), np.uint8), "What is it?", max_tokens=2).text


def test_together_they_stay_small() -> None:
    """Every version of them stays in each clone for ever."""
    assert sum(path.stat().st_size for path in BUNDLES.rglob("*")) < 500_000


@pytest.mark.parametrize(("family", "number"), CASES)
def test_prompts_and_tiles_are_those_of_transformers(
    models: dict[str, VLM], oracles: dict[str, list[Expected]], family: str, number: int
) -> None:
    vlm, expected = models[family], oracles[family][number]
    spec = vlm.manifest.prompt
    (image_id,) = (token.id for token in spec.special_tokens if token.text == spec.image_token)
    ids: list[int] = []
    hashes = []
    for part in vlm.prompt(CONVERSATIONS[family][number].with_images()).parts:
        if isinstance(part, PromptTile):
            ids += [image_id] * part.tokens
            hashes.append(tile_hash(part.pixels))
        else:
            ids += part.token_ids
    assert tuple(ids) == expected.prompt_ids
    assert tuple(hashes) == expected.tile_hashes


@pytest.mark.parametrize(("family", "number"), CASES)
def test_logits_are_those_of_transformers(
    models: dict[str, VLM], oracles: dict[str, list[Expected]], family: str, number: int
) -> None:
    expected = oracles[family][number]
    conversation = CONVERSATIONS[family][number]
    engine = models[family]._engine
    images = [engine.process_image(image) for image in conversation.images()]
    messages: Any = conversation.messages
    found = engine.logits(messages, images, expected.answer_ids)
    wanted = expected.logits[:, : found.shape[1]]
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < 5e-3, f"relative error {error:.1e}"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_conversation_has_logits_of_its_own(
    oracles: dict[str, list[Expected]], family: str
) -> None:
    """An oracle whose conversations agree would prove nothing."""
    first = [one.logits[0] for one in oracles[family]]
    distances = [
        np.linalg.norm(one - other) / np.linalg.norm(one)
        for at, one in enumerate(first)
        for other in first[:at]
    ]
    assert min(distances) > 0.02
