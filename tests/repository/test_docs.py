"""The README and the documentation: commands and code run as they are written, and links lead somewhere.

A fenced block of ``bash`` or ``python`` runs at the top of a copy of the repository. A ``text`` block right
after it is its whole stdout. A comment before a block says that it continues the one above, or why it is
not run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from _pytest.mark import ParameterSet

import edgevlm
from edgevlm import cli

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "examples" / "README.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
]
ENVIRONMENT = Path(sys.prefix)
SOURCE = "https://github.com/edgevlm/edgevlm/blob/main/"
RAW = "https://raw.githubusercontent.com/edgevlm/edgevlm/main/"
NOT_RUN = "<!-- not run by the tests"
CONTINUES = "<!-- continues the block above -->"
BETWEEN = "-- next block --"
MAX_README_LINES = 200
SLOW = ("edgevlm export", "edgevlm.export", "edgevlm bench", "edgevlm eval")


class Block(NamedTuple):
    place: str
    language: str
    source: str
    output: str | None


def blocks_of(document: Path) -> Iterator[tuple[str, Block]]:
    """Yield each block of a document with the line of text before it."""
    text = document.read_text(encoding="utf-8")
    fences = list(re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    ends = [0, *(fence.end() for fence in fences)]
    for number, fence in enumerate(fences):
        before = text[ends[number] : fence.start()].strip()
        following = fences[number + 1] if number + 1 < len(fences) else None
        expects = (
            following is not None
            and following[1] == "text"
            and not text[fence.end() : following.start()].strip()
        )
        line = text.count("\n", 0, fence.start()) + 1
        place = f"{document.relative_to(REPOSITORY)}:{line}"
        output = following[2] if following is not None and expects else None
        yield before.rpartition("\n")[2], Block(place, fence[1], fence[2], output)


def programs() -> list[list[Block]]:
    """Return the blocks that run, those that continue one another together, and none twice."""
    found: dict[tuple[str, ...], list[Block]] = {}
    for document in DOCUMENTS:
        program: list[Block] = []
        for comment, block in blocks_of(document):
            if block.language not in ("bash", "python") or comment.startswith(NOT_RUN):
                continue
            if comment == CONTINUES:
                program.append(block)
            else:
                program = [block]
            found[tuple(part.source for part in program)] = program
            found.pop(tuple(part.source for part in program[:-1]), None)
    return list(found.values())


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the repository, where the blocks may leave files."""
    folder = tmp_path_factory.mktemp("docs")
    for path in REPOSITORY.iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def parameters() -> list[ParameterSet]:
    """Return the programs; those that export or measure a model are slow."""
    found = []
    for program in programs():
        source = "".join(block.source for block in program)
        slow = [pytest.mark.slow] if any(word in source for word in SLOW) else []
        found.append(pytest.param(program, id=program[0].place, marks=slow))
    return found


@pytest.mark.parametrize("program", parameters())
def test_blocks_run(program: list[Block], checkout: Path) -> None:
    first = program[0]
    makes = first.language == "bash" and "make " in first.source
    if makes and ENVIRONMENT != REPOSITORY / ".venv":
        pytest.skip("make works in .venv, and the tests run in another environment")
    source = f"\nprint({BETWEEN!r})\n".join(block.source for block in program)
    command = (
        ["bash", "-euo", "pipefail", "-c", source]
        if first.language == "bash"
        else [sys.executable, "-c", source]
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
    outputs = done.stdout.split(f"{BETWEEN}\n")
    expected = [
        output if block.output is None else block.output
        for block, output in zip(program, outputs, strict=True)
    ]
    assert outputs == expected


EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(example: Path) -> None:
    done = subprocess.run(
        [sys.executable, example], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_examples_are_listed() -> None:
    text = (REPOSITORY / "examples" / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in EXAMPLES if f"[{path.name}]" not in text] == []


def test_blocks_are_found() -> None:
    found = programs()
    assert {program[0].language for program in found} == {"bash", "python"}
    places = {program[0].place.partition(":")[0] for program in found}
    assert {"README.md", "docs/tutorial.md", "docs/camera.md", "docs/exporting.md"} <= places
    assert max(map(len, found)) > 5  # the tutorial is one program


def test_readme_is_short() -> None:
    lines = DOCUMENTS[0].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MAX_README_LINES


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_linked_files_exist(document: Path) -> None:
    """Links to files of the repository, by path or by address; PyPI shows the README, so all of its are."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    missing = []
    for link in re.findall(r"\]\(([^)#\s]+)", text):
        if link.startswith((SOURCE, RAW)):
            target = REPOSITORY / link.removeprefix(SOURCE).removeprefix(RAW)
        elif "://" in link:
            continue
        else:
            assert document != DOCUMENTS[0], f"{link} does not work on PyPI"
            target = document.parent / link
        if not target.exists():
            missing.append(link)
    assert missing == []


def test_reference_has_every_public_name() -> None:
    pages = (REPOSITORY / "docs" / "reference").glob("*.md")
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = re.findall(r"^::: edgevlm\.(\w+)$", text, re.MULTILINE)
    assert sorted(named) == sorted(set(edgevlm.__all__) - {"__version__"})


def test_options_exist() -> None:
    """Options in the text are those of a subcommand, so that a rename is not forgotten here."""
    known = {
        option
        for name in cli.COMMANDS
        for action in cli.command_parser(name)._actions
        for option in action.option_strings
    }
    for document in DOCUMENTS:
        named = re.findall(r"`(--[a-z][a-z-]*)", document.read_text(encoding="utf-8"))
        assert set(named) <= known, document


def test_messages_of_troubleshooting_are_those_of_the_code() -> None:
    """What a heading quotes is in the code; an ellipsis stands for a value."""
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    folders = (REPOSITORY / name for name in ("edgevlm", "runtimes", "export"))
    code = "\n".join(
        path.read_text(encoding="utf-8") for folder in folders for path in folder.rglob("*.py")
    )
    code = re.sub(r"\"\s*f?\"", "", code)  # parts of one string
    quoted = re.findall(r'^###.*"(.+)"', text, re.MULTILINE)
    parts = [part.strip() for quote in quoted for part in quote.split("…") if part.strip()]
    assert len(parts) > 10
    assert [part for part in parts if part not in code] == []
