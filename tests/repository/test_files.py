"""The repository: sizes of its files, and agreement of its documents."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

import edgevlm

REPOSITORY = Path(__file__).resolve().parents[2]

MAX_BYTES = 500_000
"""Largest size of a file in bytes. Every version of a file stays in each clone."""

LARGE_FILES = {
    "edgevlm/scenes/data/drawings/emojione.zip",
    "edgevlm/scenes/data/drawings/fluent-emoji-flat.zip",
    "edgevlm/scenes/data/drawings/fluent-emoji.zip",
    "edgevlm/scenes/data/drawings/noto-v1.zip",
    "edgevlm/scenes/data/drawings/noto.zip",
    "edgevlm/scenes/data/drawings/openmoji.zip",
    "edgevlm/scenes/data/drawings/twemoji.zip",
    "edgevlm/models/edgevlm-nano/decoder.q8_0.gguf",
    "edgevlm/models/edgevlm-nano/vision.int8.onnx",
    "training/nano/model.safetensors",
}
"""Exceptions."""


def git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a clone")
def test_large_files_are_the_known_ones() -> None:
    large = set()
    for line in git("ls-files", "--stage", "-z").split("\0")[:-1]:
        mode, _, rest = line.partition(" ")
        path = rest.partition("\t")[2]
        file = REPOSITORY / path
        if mode != "120000" and file.is_file() and file.stat().st_size > MAX_BYTES:
            large.add(path)
    assert large == LARGE_FILES


def test_the_papers_name_one_version() -> None:
    citation = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {edgevlm.__version__}\n" in citation
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    if released:  # nothing was released yet
        assert released[0] == edgevlm.__version__
