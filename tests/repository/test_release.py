"""What a release needs: workflows, fragments of the changelog, versions that agree, a tested wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgevlm
from scripts import check_release, check_wheel

REPOSITORY = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))


def read(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def towncrier(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", "9.9.9"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """A copy of the files that a release reads, without fragments."""
    (tmp_path / "edgevlm").mkdir()
    (tmp_path / "changelog.d").mkdir()
    for name in ("pyproject.toml", "CHANGELOG.md", "edgevlm/__init__.py", "changelog.d/README.md"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_there_is(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    called = set(re.findall(r"make PYTHON=python ([a-z-]+)", text))
    assert called and called <= targets
    for script in re.findall(r"python (scripts/\S+\.py)", text):
        assert (REPOSITORY / script).is_file()
    for key in re.findall(r"\$\{\{ matrix\.(\w+) \}\}", text):
        assert re.search(rf"^ +{key}: \[", text, re.MULTILINE), key


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit_and_say_the_version(path: Path) -> None:
    used = re.findall(r"uses: (.*)", path.read_text(encoding="utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}  # v\d+\.\d+\.\d+", action), action


def test_the_checked_pythons_are_the_promised_ones() -> None:
    promised = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', read("pyproject.toml"))
    checked = re.search(r"python: \[(.*)\]", read(".github/workflows/ci.yml"))
    assert checked is not None
    assert re.findall(r'"([\d.]+)"', checked.group(1)) == promised


def test_the_fragments_have_known_types_and_are_put_together(papers: Path) -> None:
    done = towncrier(REPOSITORY)
    assert done.returncode == 0, done.stderr
    (papers / "changelog.d" / "+cache.fixed.md").write_text("The cache is closed.\n")
    done = towncrier(papers)
    assert "## 9.9.9 (" in done.stdout and "### Fixed\n\n- The cache is closed." in done.stdout
    (papers / "changelog.d" / "+cache.repaired.md").write_text("The cache is closed.\n")
    done = towncrier(papers)
    assert done.returncode != 0 and "+cache.repaired.md" in done.stdout + done.stderr


def test_types_are_those_that_the_readme_explains() -> None:
    types = re.findall(r'^directory = "(\w+)"$', read("pyproject.toml"), re.MULTILINE)
    assert re.findall(r"^\| `(\w+)` \|", read("changelog.d/README.md"), re.MULTILINE) == types


def test_a_release_needs_tag_date_and_no_fragments(papers: Path) -> None:
    version = edgevlm.__version__
    changelog = papers / "CHANGELOG.md"
    text = changelog.read_text(encoding="utf-8")
    title = re.compile(rf"^## {re.escape(version)} \(.*\)$", re.MULTILINE)
    changelog.write_text(title.sub(f"## {version} (2030-01-31)", text), encoding="utf-8")
    assert check_release.problems(f"v{version}", papers) == []

    (problem,) = check_release.problems("v9.9.9", papers)
    assert problem == f"the tag is v9.9.9, but edgevlm.__version__ is {version}: tag v{version}"

    changelog.write_text(title.sub(f"## {version} (unreleased)", text), encoding="utf-8")
    (problem,) = check_release.problems(f"v{version}", papers)
    assert "(unreleased)" in problem

    (papers / "changelog.d" / "+cache.fixed.md").write_text("The cache is closed.\n")
    assert "+cache.fixed.md" in check_release.problems(f"v{version}", papers)[1]


def test_tests_of_the_wheel_have_no_sources_beside_them(tmp_path: Path) -> None:
    check_wheel.copy_tests(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tests", "scripts", "pyproject.toml"} <= names
    assert names.isdisjoint({*check_wheel.SOURCES, ".git", ".venv", "build"})
    assert all((tmp_path / "tests" / folder).is_dir() for folder in check_wheel.TESTS)


@pytest.mark.skipif(sys.platform == "win32", reason="a script for Linux")
def test_the_check_on_arm64_says_how_it_is_called() -> None:
    command = ["bash", str(REPOSITORY / "scripts" / "check_arm64.sh"), "one", "two"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "check_arm64: usage: scripts/check_arm64.sh [FOLDER]\n"
