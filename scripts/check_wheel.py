"""Run the core tests against the built wheel: python scripts/check_wheel.py [ARGUMENTS OF PYTEST]

The wheel is installed with its extras into a new environment, and the tests run in a folder without the
package's sources, so only the installed package can be imported. Needs pip and a C++ compiler, but no make.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent

SOURCES = {"edgevlm", "demo", "export", "runtimes"}
"""Folders at the top of the repository that the wheel replaces."""

EXTRAS = "cpu,llama,serve"

TESTS = ("core", "inputs", "engine", "runtimes", "cli", "server")
"""Folders of tests that look at the package and not at the repository."""

FROM_WHEEL = """
import pathlib, sys, edgevlm, edgevlm.runtimes
for module in (edgevlm, edgevlm.runtimes):
    if pathlib.Path(sys.prefix).resolve() not in pathlib.Path(module.__file__).resolve().parents:
        sys.exit(f"{module.__name__} is {module.__file__}, which is not in the new environment")
"""


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this repository into `folder`; returns its path."""
    pip(sys.executable, "wheel", "--no-deps", "--wheel-dir", str(folder), str(REPOSITORY))
    (wheel,) = folder.glob("edgevlm-*.whl")
    return wheel


def pip(python: str, *arguments: str) -> None:
    """Run pip; raises CalledProcessError if it fails."""
    subprocess.run([python, "-m", "pip", "--quiet", *arguments], check=True)


def create_environment(folder: Path) -> str:
    """Create a virtual environment with a pip that knows dependency groups; returns its Python."""
    venv.create(folder, with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    pip(str(python), "install", "--upgrade", "pip>=25.1")
    return str(python)


def copy_tests(folder: Path) -> None:
    """Copy the repository without the package's sources and without what git ignores at its top."""
    hidden = {path.name for path in REPOSITORY.iterdir() if path.name.startswith(".")}
    left_out = {*SOURCES, *hidden, "build", "dist"}
    for path in REPOSITORY.iterdir():
        if path.name in left_out or path.name.endswith(".egg-info"):
            continue
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder)


def run_tests(python: str, wheel: Path, folder: Path, arguments: list[str]) -> int:
    """Install the wheel and what the tests need, and run the tests; returns pytest's exit code."""
    scripts = REPOSITORY / "scripts"
    subprocess.run([python, str(scripts / "install_llama_cpp.py")], check=True)
    pip(python, "install", f"edgevlm[{EXTRAS}] @ {wheel.resolve().as_uri()}")
    pip(python, "install", "--group", f"{REPOSITORY / 'pyproject.toml'}:check")
    copy_tests(folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([python, "-c", FROM_WHEEL], cwd=folder, env=environment, check=True)
    tests = [f"tests/{name}" for name in TESTS]
    command = [python, "-m", "pytest", "--core", *(arguments or tests)]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the core tests against the built wheel.",
        epilog="All other arguments are pytest's, such as tests/core -x.",
    )
    parser.add_argument("--wheel", metavar="FILE", type=Path, help="default: build it")
    arguments, pytest_arguments = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="edgevlm-wheel-") as temporary:
        work = Path(temporary)
        wheel = arguments.wheel or build_wheel(work / "dist")
        python = create_environment(work / "environment")
        (work / "tests").mkdir()
        return run_tests(python, wheel, work / "tests", pytest_arguments)


if __name__ == "__main__":
    sys.exit(main())
