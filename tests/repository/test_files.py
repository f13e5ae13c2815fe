"""The repository: sizes of its files, and agreement of its documents."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
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
    "edgevlm/models/edgevlm-nano/decoder.embeddings.npy",
    "edgevlm/models/edgevlm-nano/decoder.int8.onnx.data",
    "edgevlm/models/edgevlm-nano/vision.int8.onnx",
    "training/nano/model.safetensors",
}
"""Exceptions."""


FAMILIES = REPOSITORY / "export" / "families"
FAMILY_NAMES = {path.stem for path in FAMILIES.glob("*.py")} - {"__init__"}
"""Families of models, each a ``model_type``."""
MAX_FAMILY_LINES = 80
RUN_TIME = [
    path
    for folder in ("edgevlm", "runtimes")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
    # export/ and demo/ are linked into edgevlm/; examples of the command line name models
    if not {"export", "demo", "cli"} & set(path.relative_to(REPOSITORY).parts)
]


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


@pytest.mark.parametrize("name", sorted(FAMILY_NAMES))
def test_a_family_is_a_short_file(name: str) -> None:
    lines = (FAMILIES / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_FAMILY_LINES


def code_words(tree: ast.AST) -> Iterator[str]:
    """Return names and words of texts, without comments and docstrings."""
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield from str(node.value).split()
        for field in ("id", "attr", "name", "arg"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def test_the_runtime_names_no_family() -> None:
    assert len(RUN_TIME) > 60
    plain = {name.replace("_", "") for name in FAMILY_NAMES}
    found = {
        f"{path.relative_to(REPOSITORY)}: {word}"
        for path in RUN_TIME
        for word in code_words(ast.parse(path.read_text(encoding="utf-8")))
        for name in plain
        if name in re.sub("[-_. ]", "", word.lower())
    }
    assert not found


def test_the_exporter_decides_nothing_by_the_name_of_a_family() -> None:
    for path in sorted((REPOSITORY / "export").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare | ast.Match):
                named = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                assert not FAMILY_NAMES & named, f"{path.name}:{node.lineno}"
