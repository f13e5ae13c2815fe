"""`VLM` raises clear errors for invalid requests, settings and bundles, and it works afterwards."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import (
    VLM,
    Bundle,
    BundleError,
    ClosedError,
    ContextError,
    ImageError,
    InputError,
    LoadError,
    PromptError,
)
from edgevlm.bundle import sha256
from tests.conftest import picture
from tests.support.oracle import BUNDLES


def test_prompt_and_answer_must_fit_the_context(fresh: Callable[..., VLM]) -> None:
    vlm = fresh(context_length=256)
    needed = vlm.ask(picture(0), "What?", max_tokens=4).stats.prompt_tokens
    vlm.ask(picture(0), "What?", max_tokens=256 - needed)
    with pytest.raises(ContextError, match=rf"{needed} positions.*{257 - needed}.*257.*has 256"):
        vlm.stream(picture(0), "What?", max_tokens=257 - needed)
    with pytest.raises(ContextError, match="256"):
        vlm.ask(None, "word " * 5000)


def test_a_failed_turn_leaves_the_conversation_as_it_was(fresh: Callable[..., VLM]) -> None:
    chat = fresh(context_length=256).chat()
    chat.send("What?", max_tokens=4)
    before = chat.messages
    for bad in (
        lambda: chat.send(""),
        lambda: chat.send("word " * 5000),
        lambda: chat.send("What?", images=[b"no picture"]),
        lambda: chat.send("What?", max_tokens=-1),
    ):
        with pytest.raises(InputError):
            bad()
        assert chat.messages == before
    chat.send("Still there?", max_tokens=4)
    assert len(chat.messages) == len(before) + 2


@pytest.mark.parametrize(
    ("image", "question", "error"),
    [
        (None, "", PromptError),
        (None, "  \n", PromptError),
        (None, None, PromptError),
        (None, b"bytes", PromptError),
        (None, "\udcff", PromptError),
        (b"", "What?", ImageError),
        ("/no/such.png", "What?", ImageError),
        ([None], "What?", ImageError),
        (np.zeros((3, 3), np.int64), "What?", ImageError),
    ],
    ids=repr,
)
def test_bad_requests_are_clear_errors(
    smolvlm: VLM, image: Any, question: Any, error: type
) -> None:
    with pytest.raises(error):
        smolvlm.ask(image, question)
    smolvlm.ask(None, "Still there?", max_tokens=2)


def test_messages_with_a_picture_missing_are_refused(smolvlm: VLM) -> None:
    with pytest.raises(PromptError, match="under 'image'"):
        smolvlm.stream_generate([{"role": "user", "content": [{"type": "image"}]}])


@pytest.mark.parametrize("messages", [None, [], (), "hi", 5, {"role": "user", "content": "hi"}])
def test_what_is_no_conversation_is_a_clear_error(smolvlm: VLM, messages: Any) -> None:
    for method in (smolvlm.stream_generate, smolvlm.prompt):
        with pytest.raises(PromptError, match="messages"):
            method(messages)


def test_a_closed_model_says_so(fresh: Callable[..., VLM]) -> None:
    vlm = fresh()
    vlm.close()
    with pytest.raises(ClosedError, match="closed"):
        vlm.ask(None, "What?")


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": "two"},
        {"context_length": 0},
        {"context_length": 10**9},
        {"vision": "int4"},
        {"decoder": "q9_9"},
        {"device": "abacus"},
        {"gpu_layers": -7},
    ],
    ids=str,
)
def test_bad_settings_are_clear_errors(fresh: Callable[..., VLM], options: dict[str, Any]) -> None:
    with pytest.raises((InputError, LoadError)) as caught:
        fresh(**options)
    (value,) = options.values()
    assert str(value) in str(caught.value)


def test_a_device_that_is_not_there_raises(fresh: Callable[..., VLM]) -> None:
    with pytest.raises(LoadError, match=r"CUDAExecutionProvider.*edgevlm\[cuda\]"):
        fresh(device="cuda")


@pytest.mark.parametrize("name", ["nothing-of-this-name", "./nowhere", "/no/where", "a/b/c"])
def test_unknown_models_are_clear_errors(name: str) -> None:
    with pytest.raises(BundleError, match="edgevlm export"):
        Bundle.open(name)


def test_a_repository_without_network_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="hub repository 'owner/name'") as caught:
        Bundle.open("owner/name", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


def copy_of(bundle: Path, target: Path) -> Path:
    return Path(shutil.copytree(bundle, target / "copy"))


@pytest.mark.parametrize("name", ["manifest.json", "vision.fp32.onnx", "decoder.f16.gguf"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = copy_of(BUNDLES / "smolvlm", tmp_path)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["vision.fp32.onnx", "decoder.f16.gguf"])
def test_an_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    folder = copy_of(BUNDLES / "smolvlm", tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        VLM.from_pretrained(folder)
    (folder / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        VLM.from_pretrained(folder)


def test_a_file_is_read_again_only_if_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = copy_of(BUNDLES / "smolvlm", tmp_path)
    bundle = Bundle.open(folder)
    entry = bundle.decoder_file("f16")
    read: list[Path] = []

    def counted(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr("edgevlm.bundle.sha256", counted)
    for _ in range(2):
        bundle.check_hashes_once([entry])
    assert read == [bundle.path(entry)]
    path = bundle.path(entry)
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had not been written
    for _ in range(2):
        with pytest.raises(BundleError, match="was altered"):
            bundle.check_hashes_once([entry])
    content[-1] ^= 1
    path.write_bytes(content)
    bundle.check_hashes_once([entry])
    assert len(read) == 4


def test_without_a_cache_folder_files_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = Bundle.open(BUNDLES / "smolvlm")
    for _ in range(2):
        bundle.check_hashes_once([bundle.decoder_file("f16")])


@pytest.mark.parametrize("name", ["vision.fp32.onnx", "decoder.f16.gguf"])
def test_garbage_with_a_true_hash_is_a_clear_error(tmp_path: Path, name: str) -> None:
    """The file was damaged before its hash was computed."""
    import hashlib

    folder = copy_of(BUNDLES / "smolvlm", tmp_path)
    (folder / name).write_bytes(b"GGUF" + b"\x03\0\0\0" + bytes(range(256)) * 4)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    part, precision = ("vision", "fp32") if name.startswith("vision") else ("decoder", "f16")
    entry = manifest[part]["files"][precision]
    entry["size"] = (folder / name).stat().st_size
    entry["sha256"] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(LoadError, match=name):
        VLM.from_pretrained(folder)
