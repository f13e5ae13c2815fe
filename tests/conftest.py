"""What the tests share: no network, and bundles exported once per run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hypothesis
import pytest

hypothesis.settings.register_profile("same examples every time", derandomize=True)
hypothesis.settings.load_profile("same examples every time")


class Exported(NamedTuple):
    """A tiny checkpoint with random weights and the bundle made of it."""

    checkpoint: Path
    bundle: Path


Export = Callable[[str], Exported]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Family's name in `tests.checkpoints` to its checkpoint and bundle (fp32, int8; f16, q8_0)."""
    from edgevlm.export.pipeline import export
    from tests import checkpoints

    made: dict[str, Exported] = {}

    def make(family: str) -> Exported:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            checkpoint = getattr(checkpoints, family)(folder / "checkpoint")
            export(checkpoint, folder / "bundle", vision=("fp32", "int8"), decoder=("f16", "q8_0"))
            made[family] = Exported(checkpoint, folder / "bundle")
        return made[family]

    return make
