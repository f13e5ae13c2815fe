"""The wheel holds the whole tree, the runtime does not need torch, and imports are light."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgevlm
from edgevlm import cli

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = {
    "edgevlm": "edgevlm",
    "demo": "edgevlm/demo",
    "export": "edgevlm/export",
    "runtimes": "edgevlm/runtimes",
}
"""Installed package by top-level folder."""
OTHER_PROGRAMS = ("dora", "ros2")
"""Folders of demo/ that are no part of the package: ROS 2 and dora start them by themselves."""

EXPORT_ONLY = {"torch", "transformers", "optimum", "onnx", "onnxscript", "gradio"}
HEAVY = {"torch", "onnxruntime", "llama_cpp", "transformers", "numpy", "PIL", "jinja2"}


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of all files below a folder, without caches; links are not followed."""
    found = {}
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        linked = any((folder / parent).is_symlink() for parent in [inside, *inside.parents][:-1])
        other = inside.parts[0] in OTHER_PROGRAMS and folder.name == "demo"
        if path.is_file() and not linked and not other and "__pycache__" not in inside.parts:
            found[inside.as_posix()] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files for packaging, without the links inside edgevlm/, which some clones lack."""
    copy = tmp_path_factory.mktemp("packaging") / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    for folder in PACKAGES:
        for name, content in files_of(REPOSITORY / folder).items():
            target = copy / folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return copy


def build(kind: str, source: Path, target: Path) -> Path:
    """Build a ``wheel`` or an ``sdist`` with the installed setuptools."""
    target.mkdir(exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.build_{kind}({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    (built,) = target.iterdir()
    return built


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {
            name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name
        }


def expected() -> dict[str, bytes]:
    """Return the content of every file of the packages by installed path."""
    found = {
        f"{installed}/{name}": content
        for folder, installed in PACKAGES.items()
        for name, content in files_of(REPOSITORY / folder).items()
    }
    registration = found.pop("edgevlm/export/register/edgevlm.py")
    return found | {"optimum/commands/register/edgevlm.py": registration}


def assert_same_files(found: dict[str, bytes]) -> None:
    assert sorted(found) == sorted(expected())
    assert [name for name, content in expected().items() if found[name] != content] == []


def test_wheel_holds_the_tree(tree: Path, tmp_path: Path) -> None:
    wheel = build("wheel", tree, tmp_path / "wheel")
    assert_same_files(contents(wheel))
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        entry_points = archive.read(f"edgevlm-{edgevlm.__version__}.dist-info/entry_points.txt")
    assert {top for top in tops if not top.endswith(".dist-info")} == {"edgevlm", "optimum"}
    assert b"edgevlm = edgevlm.cli:main" in entry_points


def test_sdist_builds_the_same_wheel(tree: Path, tmp_path: Path) -> None:
    sdist = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / f"edgevlm-{edgevlm.__version__}"
    assert_same_files(contents(build("wheel", unpacked, tmp_path / "wheel")))


def installed_with(requirement: Requirement, seen: set[tuple[str, str]] | None = None) -> set[str]:
    """Return the names of all distributions that pip installs for a requirement."""
    seen = set() if seen is None else seen
    name = canonicalize_name(requirement.name)
    for extra in ["", *requirement.extras]:
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                installed_with(needed, seen)
    return {name for name, _ in seen}


def test_make_ask_installs_no_torch() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "ask", "VENV=elsewhere"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    extras = re.findall(r'install --editable "\.\[(.*?)\]"', dry.stdout)
    assert extras == ["cpu,llama"]
    names = installed_with(Requirement(f"edgevlm[{extras[0]}]"))
    assert {"llama-cpp-python", "onnxruntime", "numpy", "pillow"} <= names
    assert names & EXPORT_ONLY == set()


def test_the_runtime_needs_no_compiler() -> None:
    """`pip install edgevlm[cpu]` installs wheels alone."""
    names = installed_with(Requirement("edgevlm[cpu]"))
    assert {"onnxruntime", "tokenizers"} <= names
    assert names & {"llama-cpp-python", "gguf", *EXPORT_ONLY} == set()


@pytest.mark.slow  # and needs optimum
def test_optimum_cli_knows_the_command() -> None:
    script = Path(sys.executable).with_name("optimum-cli")
    done = subprocess.run(
        [script, "export", "edgevlm", "--help"], capture_output=True, text=True, check=True
    )
    assert "usage: optimum-cli export edgevlm" in done.stdout
    assert "CHECKPOINT OUT" in done.stdout


def test_extras_are_those_that_are_promised() -> None:
    extras = metadata.metadata("edgevlm").get_all("Provides-Extra")
    assert sorted(extras or []) == [
        "all",
        "camera",
        "cpu",
        "cuda",
        "demo",
        "export",
        "heic",
        "llama",
        "openvino",
        "serve",
        "typed",
        "video",
    ]


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that a new interpreter has loaded after some code."""
    code = f"import sys\n{code}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light() -> None:
    assert modules_after("import edgevlm") & HEAVY == set()


def test_help_is_light() -> None:
    code = """
import edgevlm.cli
try:
    edgevlm.cli.main(["--help"])
except SystemExit:
    pass
"""
    assert modules_after(code) & HEAVY == set()


def test_public_names_can_be_imported() -> None:
    for name in edgevlm.__all__:
        assert getattr(edgevlm, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        edgevlm.no_such_name  # noqa: B018  (the access itself raises)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_subcommands_offer_what_the_table_relies_on(name: str) -> None:
    code = f"""
import importlib
module = importlib.import_module({cli.COMMANDS[name].module!r})
assert module.HELP and module.EXAMPLES and module.add_arguments and module.run
"""
    assert modules_after(code) & {"torch", "onnxruntime", "llama_cpp", "transformers"} == set()
