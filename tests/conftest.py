"""What the tests share: no network, and bundles exported once per run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import hypothesis
import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from edgevlm import VLM

hypothesis.settings.register_profile("same examples every time", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same examples every time")


class Exported(NamedTuple):
    """A tiny checkpoint with random weights and the bundle made of it."""

    checkpoint: Path
    bundle: Path


Export = Callable[[str], Exported]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Family's name in `tests.support.checkpoints` to its checkpoint and bundle (fp32, int8; f16, q8_0)."""
    from edgevlm.export.pipeline import export
    from tests.support import checkpoints

    made: dict[str, Exported] = {}

    def make(family: str) -> Exported:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            checkpoint = getattr(checkpoints, family)(folder / "checkpoint")
            export(checkpoint, folder / "bundle", vision=("fp32", "int8"), decoder=("f16", "q8_0"))
            made[family] = Exported(checkpoint, folder / "bundle")
        return made[family]

    return make


def picture(seed: int, width: int = 150, height: int = 100) -> Image.Image:
    """Smooth noise."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def fresh(exported: Export) -> Iterator[Callable[..., VLM]]:
    """Makes models that have seen nothing yet."""
    from edgevlm import VLM

    made: list[VLM] = []

    def make(**options: Any) -> VLM:
        arguments = {"vision": "fp32", "decoder": "f16", "threads": 1, **options}
        made.append(VLM.from_pretrained(exported("smolvlm").bundle, **arguments))
        return made[-1]

    yield make
    for vlm in made:
        vlm.close()


@pytest.fixture(scope="module")
def smolvlm(exported: Export) -> Iterator[VLM]:
    """A model that a module's tests share."""
    from edgevlm import VLM

    with VLM.from_pretrained(
        exported("smolvlm").bundle, vision="fp32", decoder="f16", threads=1
    ) as vlm:
        yield vlm


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of `tests.support.tiny_decoder` as a file."""
    from tests.support.tiny_decoder import reference_model, write_decoder

    return write_decoder(tmp_path_factory.mktemp("decoder") / "decoder-f32.gguf", reference_model())
