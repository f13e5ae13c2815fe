"""The demo's models, its page in Chromium, and the built-in model."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgevlm import VLM, Bundle
from edgevlm.local_bundles import remember
from edgevlm.runtimes.llama_cpp.library import load_llama_cpp
from tests.support import browser

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

    from edgevlm.demo.model_pool import ModelPool


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave files and sockets that Gradio does not close to the garbage collector."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::ResourceWarning"))


@pytest.fixture(autouse=True, scope="module")
def garbage() -> Iterator[None]:
    """Collect what Gradio left, so that no test of another folder is blamed for it."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def add_q4_0(folder: Path) -> None:
    """Add a second precision of the decoder to a bundle."""
    llama = load_llama_cpp()
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    files = manifest["decoder"]["files"]
    made = folder / "decoder.q4_0.gguf"
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype, parameters.allow_requantize = llama.LLAMA_FTYPE_MOSTLY_Q4_0, True
    source = folder / files["q8_0"]["name"]
    assert llama.llama_model_quantize(str(source).encode(), str(made).encode(), parameters) == 0
    files["q4_0"] = {
        "name": made.name,
        "size": made.stat().st_size,
        "sha256": hashlib.sha256(made.read_bytes()).hexdigest(),
        "bits_per_weight": None,
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelPool]:
    """The built-in model, and two local exports: a copy with two precisions, and a broken one."""
    from edgevlm.demo.model_pool import ModelPool

    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio"))
        for name in ("copied", "broken"):
            shutil.copytree(Bundle.open("edgevlm-nano").folder, folder / name)
            remember(folder / name)
        add_q4_0(folder / "copied")
        entry = Bundle.open(folder / "broken").decoder_file(None)
        content = bytearray((folder / "broken" / entry.name).read_bytes())
        content[-1] ^= 1
        (folder / "broken" / entry.name).write_bytes(content)
        models = ModelPool(threads=1)
        yield models
        models.close()


@pytest.fixture(scope="module")
def address(models: ModelPool) -> Iterator[str]:
    with browser.served(models) as address:
        yield address


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as chromium:
        yield chromium


@pytest.fixture
def page(chromium: Browser, address: str) -> Iterator[Page]:
    with browser.visit(chromium, address) as page:
        yield page


@pytest.fixture(scope="module")
def nano() -> Iterator[VLM]:
    """The built-in model without the demo, for comparison."""
    with VLM.from_pretrained("edgevlm-nano", threads=1) as vlm:
        yield vlm
