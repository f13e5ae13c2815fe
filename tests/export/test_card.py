"""The model card says how many embeddings an image takes."""

from __future__ import annotations

import dataclasses

import pytest

from edgevlm.export.card import describe_tiles
from tests.core.test_manifest import manifest_with


@pytest.mark.parametrize(
    ("kind", "default", "said"),
    [
        ("own-size-grid", None, "An image takes up to 2816 unless"),
        ("slices", None, "An image takes up to 1280 unless"),
        ("longest-edge", None, "An image takes up to 3025 unless"),
        ("longest-edge", 1024, "An image takes up to 1024 unless"),
    ],
)
def test_tiles_of_their_own_size(kind: str, default: int | None, said: str) -> None:
    _, manifest = manifest_with(kind)
    image = dataclasses.replace(manifest.image, default_max_tokens=default)
    assert said in describe_tiles(dataclasses.replace(manifest, image=image))
