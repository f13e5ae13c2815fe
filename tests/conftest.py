"""What the tests share: no network, cores, bundles exported once per process, and ``--core``.

`pytest --core` runs the quick tests that need neither PyTorch, transformers nor Gradio. It refuses those
modules, so that it proves the same where they are installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Give each process of pytest-xdist its own cores. PyTorch, ONNX Runtime and llama.cpp start a thread per core
# and wait actively for all of them: two processes on the same cores mostly wait.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    number = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw"))
    count = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[number::count] or [cores[number % len(cores)]])

import hypothesis
import numpy as np
import pytest
from hypothesis.internal.conjecture import providers
from PIL import Image

from tests.support.oracle import BUNDLES

if TYPE_CHECKING:
    from edgevlm import VLM

hypothesis.settings.register_profile("same examples every time", derandomize=True, deadline=None)
hypothesis.settings.load_profile("same examples every time")
# Hypothesis also tries constants of the modules that are loaded, which depend on the selected tests.
providers._get_local_constants = lambda: providers._local_constants


NOT_CORE = (
    "demo",
    "export",
    "families",
    "reference",
    "training",
    "repository/test_benchmarks.py",
    "repository/test_docs.py",
    "support",
)
"""What `--core` leaves out, from this folder."""
HEAVY = ("gradio", "optimum", "torch", "transformers")
"""Modules that core tests must not import."""


class HeavyImports(MetaPathFinder):
    """Refuse heavy modules as if they were not installed."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        if fullname.partition(".")[0] in HEAVY:
            raise ModuleNotFoundError(f"pytest --core refuses {fullname}", name=fullname)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--core",
        action="store_true",
        help="run the quick tests that need neither PyTorch, transformers nor Gradio",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("core"):
        sys.meta_path.insert(0, HeavyImports())
        config.option.markexpr = config.option.markexpr or "not slow"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if not config.getoption("core"):
        return None
    path = collection_path.relative_to(Path(__file__).parent).as_posix()
    return True if path in NOT_CORE else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take minutes, so that no process waits for the other at the end."""
    items.sort(key=lambda item: "tests/training/" not in item.nodeid)


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
            export(
                checkpoint,
                folder / "bundle",
                vision=("fp32", "int8"),
                decoder=("f16", "q8_0"),
                quick=True,
            )
            made[family] = Exported(checkpoint, folder / "bundle")
        return made[family]

    return make


def picture(seed: int, width: int = 150, height: int = 100) -> Image.Image:
    """Smooth noise."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def fresh() -> Iterator[Callable[..., VLM]]:
    """Load the committed SmolVLM bundle anew; nothing is in its caches yet."""
    from edgevlm import VLM

    made: list[VLM] = []

    def load(**options: Any) -> VLM:
        made.append(VLM.from_pretrained(BUNDLES / "smolvlm", **{"threads": 1, **options}))
        return made[-1]

    yield load
    for vlm in made:
        vlm.close()


@pytest.fixture(scope="module")
def smolvlm() -> Iterator[VLM]:
    """The committed SmolVLM bundle, shared by the tests of a module."""
    from edgevlm import VLM

    with VLM.from_pretrained(BUNDLES / "smolvlm", threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder of `tests.support.tiny_decoder` as a file."""
    from tests.support.tiny_decoder import reference_model, write_decoder

    return write_decoder(tmp_path_factory.mktemp("decoder") / "decoder-f32.gguf", reference_model())
