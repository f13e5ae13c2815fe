"""Install llama-cpp-python quickly, and so that it cannot crash on this CPU.

PyPI has its sources only, so pip compiles llama.cpp: what edgevlm loads of it, which is the smaller part;
all of it if that fails, or with ``--multimodal``, since the benchmarks compare with llama.cpp's own
multimodal library.

Compiled by gcc 12 for a CPU with AMX, every quantized model dies of SIGSEGV (the compiler drops the stores
that fill the tile configuration). So, unless CC, CXX or CMAKE_ARGS are set already: clang if it is
installed, else gcc 12 and older with AMX left out.

``--check``, once edgevlm itself is installed, decodes with it in a child process. pip reuses a
wheel that it built earlier, whatever the flags and the CPU were then; if what got installed does
not run well here, it is compiled again, without that cache and without AMX.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
WITHOUT_AMX = "-DCMAKE_C_FLAGS=-U__AMX_INT8__ -DCMAKE_CXX_FLAGS=-U__AMX_INT8__"
LIBRARY_ALONE = "-DLLAVA_BUILD=OFF " + shlex.quote(
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={REPOSITORY / 'scripts' / 'llama_cpp_library.cmake'}"
)
OWN_CHOICE = ("CC", "CXX", "CMAKE_ARGS")
AGAIN = ("--no-cache-dir", "--force-reinstall", "--no-deps")
"""Options of pip that compile although it is installed."""


def requirement() -> str:
    """The pinned requirement, from pyproject.toml."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"(llama-cpp-python==[^"]+)"', text)
    if found is None:
        raise SystemExit("pyproject.toml pins no llama-cpp-python==VERSION")
    return found.group(1)


def gcc_version() -> int | None:
    """Major version of the gcc that CMake would take; None if it would take no gcc."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        return None
    macros = subprocess.run(
        [compiler, "-dM", "-E", "-x", "c++", os.devnull],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    found = re.search(r"^#define __GNUC__ (\d+)$", macros, re.MULTILINE)
    return int(found.group(1)) if found and "__clang__" not in macros else None


def build_environment() -> dict[str, str]:
    """The environment to compile in; see the module's docstring."""
    environment = dict(os.environ)
    if any(name in environment for name in OWN_CHOICE):
        return environment
    if shutil.which("clang") and shutil.which("clang++"):
        return environment | {"CC": "clang", "CXX": "clang++"}
    version = gcc_version()
    if version is not None and version < 13:
        return environment | {"CMAKE_ARGS": WITHOUT_AMX}
    return environment


def install(environment: dict[str, str], *options: str, multimodal: bool = False) -> None:
    """Compile and install the pinned version; ends the program if that fails.

    Args:
        environment: as `build_environment` makes it.
        options: of ``pip install``.
        multimodal: compile all of llama.cpp, at once and not only where its library alone does not compile.
    """
    if not multimodal and "CMAKE_ARGS" not in os.environ:
        arguments = f"{environment.get('CMAKE_ARGS', '')} {LIBRARY_ALONE}".strip()
        if pip_install(environment | {"CMAKE_ARGS": arguments}, *options):
            return
        check_compiler()
        print("The library alone was not installed: all of llama.cpp is tried.", file=sys.stderr)
    if not pip_install(environment, *options):
        check_compiler()
        raise SystemExit(f"{requirement()} was not installed; what pip said stands above")


def pip_install(environment: dict[str, str], *options: str) -> bool:
    """Run pip; returns whether it succeeded."""
    settings = " ".join(
        f"{name}='{environment[name]}'" for name in OWN_CHOICE if name in environment
    )
    print(
        f"Installing {requirement()} {settings and f'with {settings} '}"
        "(compiling llama.cpp the first time takes some minutes) ...",
        file=sys.stderr,
        flush=True,
    )
    command = [sys.executable, "-m", "pip", "install", *options, requirement()]
    return subprocess.run(command, env=environment, check=False).returncode == 0


def check_compiler() -> None:
    """End the program if there is no C++ compiler."""
    if shutil.which("c++") is None and shutil.which("clang++") is None:
        raise SystemExit(
            "llama.cpp needs a C++ compiler and there is none: "
            "on Debian and Ubuntu, 'apt-get install build-essential' mends that"
        )


def is_installed() -> bool:
    """Whether the pinned version is there."""
    name, _, version = requirement().partition("==")
    try:
        return importlib.metadata.version(name) == version
    except importlib.metadata.PackageNotFoundError:
        return False


def has_multimodal() -> bool:
    """Whether what is installed has llama.cpp's multimodal library."""
    package = importlib.util.find_spec("llama_cpp")
    folders = package.submodule_search_locations or [] if package else []
    return any(list(Path(folder, "lib").glob("*mtmd*")) for folder in folders)


def check() -> None:
    """Make sure that what is installed runs on this CPU; compiles it again if it does not."""
    from edgevlm.errors import EdgeVLMError
    from edgevlm.runtimes.llama_cpp.guard import check_library, probe_library

    try:
        verdict = probe_library()
        if verdict.outcome != "ok" and not any(name in os.environ for name in OWN_CHOICE):
            print(f"llama.cpp crashes as it is built ({verdict.detail})", file=sys.stderr)
            environment = dict(os.environ) | {"CMAKE_ARGS": WITHOUT_AMX}
            install(environment, *AGAIN, multimodal=has_multimodal())
        check_library()
    except EdgeVLMError as error:
        raise SystemExit(f"llama.cpp is installed but does not run: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Install llama-cpp-python safely for this CPU.")
    parser.add_argument(
        "--check", action="store_true", help="try what is installed; compile it again if it crashes"
    )
    parser.add_argument(
        "--multimodal", action="store_true", help="with llama.cpp's multimodal library"
    )
    arguments = parser.parse_args()
    if arguments.check:
        check()
    elif not is_installed():
        install(build_environment(), multimodal=arguments.multimodal)
    if arguments.multimodal and not has_multimodal():  # pip may have taken a wheel without it
        install(build_environment(), *AGAIN, multimodal=True)


if __name__ == "__main__":
    main()
