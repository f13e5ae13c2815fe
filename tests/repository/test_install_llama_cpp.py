"""How set-up decides to compile llama.cpp; nothing is compiled here."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from edgevlm.errors import LoadError
from edgevlm.runtimes.llama_cpp import guard
from edgevlm.runtimes.llama_cpp.guard import ProbeResult
from edgevlm.runtimes.llama_cpp.installation import LLAMA_CPP_PYTHON_VERSION
from scripts import install_llama_cpp
from scripts.install_llama_cpp import (
    AGAIN,
    LIBRARY_ALONE,
    OWN_CHOICE,
    WITHOUT_AMX,
    build_environment,
    requirement,
)


@pytest.fixture(autouse=True)
def no_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OWN_CHOICE:
        monkeypatch.delenv(name, raising=False)


def compilers(monkeypatch: pytest.MonkeyPatch, gcc: int | None, *, clang: bool) -> None:
    """Pretend that these are installed."""
    monkeypatch.setattr(shutil, "which", lambda name: name if clang and "clang" in name else None)
    monkeypatch.setattr(install_llama_cpp, "gcc_version", lambda: gcc)


def choice() -> dict[str, str]:
    environment = build_environment()
    return {name: environment[name] for name in OWN_CHOICE if name in environment}


def test_version_is_the_one_that_the_runtime_wants() -> None:
    assert requirement() == f"llama-cpp-python=={LLAMA_CPP_PYTHON_VERSION}"


def test_clang_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    compilers(monkeypatch, 12, clang=True)
    assert choice() == {"CC": "clang", "CXX": "clang++"}


@pytest.mark.parametrize("version", [9, 12])
def test_old_gcc_compiles_without_amx(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    compilers(monkeypatch, version, clang=False)
    assert choice() == {"CMAKE_ARGS": WITHOUT_AMX}


@pytest.mark.parametrize("version", [13, None])
def test_others_compile_as_they_like(monkeypatch: pytest.MonkeyPatch, version: int | None) -> None:
    compilers(monkeypatch, version, clang=False)
    assert choice() == {}


@pytest.mark.parametrize("name", OWN_CHOICE)
def test_own_choice_wins(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    compilers(monkeypatch, 12, clang=True)
    monkeypatch.setenv(name, "mine")
    assert choice() == {name: "mine"}


class Machine:
    """A library that crashes until it is compiled without AMX, or for ever."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, mends: bool) -> None:
        self.installed: list[tuple[str, tuple[str, ...]]] = []
        self.mends = mends
        self.verdict = ProbeResult("no_extra_bufts", "status -11")
        monkeypatch.setattr(guard, "probe_library", lambda: self.verdict)
        monkeypatch.setattr(guard, "check_library", self.check_library)
        monkeypatch.setattr(install_llama_cpp, "install", self.install)

    def install(self, environment: dict[str, str], *options: str, multimodal: bool) -> None:
        self.installed.append((environment["CMAKE_ARGS"], options))
        self.verdict = ProbeResult("ok" if self.mends else "crash", "status -11")

    def check_library(self) -> ProbeResult:
        if self.verdict.outcome == "crash":
            raise LoadError("llama.cpp crashes")
        return self.verdict


def test_check_compiles_again_what_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, mends=True)
    install_llama_cpp.check()
    assert machine.installed == [(WITHOUT_AMX, AGAIN)]


def test_check_leaves_alone_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, mends=True)
    machine.verdict = ProbeResult("ok")
    install_llama_cpp.check()
    assert machine.installed == []


def test_check_does_not_overrule_own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, mends=True)
    monkeypatch.setenv("CMAKE_ARGS", "mine")
    install_llama_cpp.check()
    assert machine.installed == []


def test_check_fails_when_nothing_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, mends=False)
    with pytest.raises(SystemExit, match=r"does not run: llama\.cpp crashes"):
        install_llama_cpp.check()


def test_missing_compiler_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compilers(monkeypatch, None, clang=False)
    monkeypatch.setattr(sys, "executable", shutil.which("false") or "/bin/false")
    with pytest.raises(SystemExit, match="apt-get install build-essential"):
        install_llama_cpp.install({})
    assert capsys.readouterr().err.count("Installing") == 1


class Pip:
    """Commands that pip got, and whether they succeed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *succeeds: bool) -> None:
        self.arguments: list[str] = []
        self.succeeds = list(succeeds)
        monkeypatch.setattr(install_llama_cpp, "pip_install", self.pip_install)

    def pip_install(self, environment: dict[str, str], *options: str) -> bool:
        self.arguments.append(environment.get("CMAKE_ARGS", ""))
        return self.succeeds.pop(0)


def test_the_library_alone_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch, True, True)
    install_llama_cpp.install({})
    install_llama_cpp.install({"CMAKE_ARGS": WITHOUT_AMX})
    assert pip.arguments == [LIBRARY_ALONE, f"{WITHOUT_AMX} {LIBRARY_ALONE}"]
    file = shlex.split(LIBRARY_ALONE)[-1].partition("=")[2]
    assert Path(file).is_file()


def test_all_is_compiled_where_the_library_alone_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch, False, True)
    install_llama_cpp.install({"CMAKE_ARGS": WITHOUT_AMX})
    assert pip.arguments == [f"{WITHOUT_AMX} {LIBRARY_ALONE}", WITHOUT_AMX]


def test_all_is_compiled_for_the_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    pip = Pip(monkeypatch, True)
    install_llama_cpp.install({}, multimodal=True)
    assert pip.arguments == [""]


def test_own_arguments_of_cmake_stay_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CMAKE_ARGS", "mine")
    pip = Pip(monkeypatch, True)
    install_llama_cpp.install({"CMAKE_ARGS": "mine"})
    assert pip.arguments == ["mine"]
