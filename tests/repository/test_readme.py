"""The README's commands and code run as they are written, and its tree is the tree.

A fenced block of ``bash`` or ``python`` runs at the top of a copy of the repository; a ``text`` block
right after it is its whole stdout. A block stays out only below a comment that says why.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
ENVIRONMENT = Path(sys.prefix)
NOT_RUN = "<!-- not run by the tests: "


class Block(NamedTuple):
    line: int
    language: str
    source: str
    output: str | None
    runs: bool


def blocks() -> list[Block]:
    found: list[Block] = []
    end = 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL):
        before = README[end : match.start()].strip()
        end = match.end()
        language, source = match.groups()
        if language == "text" and found and not before:
            found[-1] = found[-1]._replace(output=source)
            continue
        line = README.count("\n", 0, match.start()) + 1
        runs = language in ("bash", "python") and NOT_RUN not in before.splitlines()[-1]
        found.append(Block(line, language, source, None, runs))
    return found


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, where the README may leave files."""
    folder = tmp_path_factory.mktemp("readme")
    for path in REPOSITORY.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    "block", [block for block in blocks() if block.runs], ids=lambda block: f"line-{block.line}"
)
def test_block_runs(block: Block, checkout: Path) -> None:
    makes = "make " in block.source
    if makes and ENVIRONMENT != REPOSITORY / ".venv":
        pytest.skip("make works in .venv, and the tests run in another environment")
    command = (
        ["bash", "-euo", "pipefail", "-c", block.source]
        if block.language == "bash"
        else [sys.executable, "-c", block.source]
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    path = f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        # make may install what stands in the folder that it runs in.
        cwd=REPOSITORY if makes else checkout,
        env=environment | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    if block.output is not None:
        assert done.stdout == block.output


def test_blocks_are_found() -> None:
    assert {block.language for block in blocks()} == {"bash", "python", "text"}
    assert sum(block.runs for block in blocks()) >= 5


def test_linked_files_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_tree_names_what_is_there() -> None:
    tree = README.split("## The tree")[1].split("```")[1]
    named: set[Path] = set()
    folder = REPOSITORY
    for indent, name in re.findall(r"^( *)([\w./]+)  ", tree, re.MULTILINE):
        folder = REPOSITORY if not indent else folder
        path = folder / name
        assert path.exists(), f"the README's tree names {path.relative_to(REPOSITORY)}"
        named.add(path)
        if not indent:
            folder = path
    modules = {
        path
        for package in ("edgevlm", "runtimes", "export", "demo")
        for path in (REPOSITORY / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(str(path.relative_to(REPOSITORY)) for path in modules - named) == []
