"""``edgevlm doctor``: describe this machine, and find known problems and their fixes."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field

import edgevlm
from edgevlm.errors import EdgeVLMError
from edgevlm.runtimes import system
from edgevlm.runtimes.llama_cpp import guard, library
from edgevlm.runtimes.llama_cpp.installation import INSTALL_LLAMA
from edgevlm.runtimes.onnx import execution_providers, session

HELP = "Describe this machine. Find problems that slow or break edgevlm, and say how to fix them."

EXAMPLES = """\
  edgevlm doctor
  edgevlm doctor --json | jq .problems"""

FLAGS = (
    "avx",
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_bf16",
    "amx_int8",
    "f16c",
    "fma",
    "asimddp",
    "i8mm",
    "sve",
)
"""Instruction sets of the CPU that the runtimes use, if it has them."""


@dataclass
class Problem:
    """A problem that slows or breaks edgevlm."""

    message: str
    """The problem, and its fix after a semicolon."""
    fatal: bool
    """True if edgevlm does not work; False if it is slower or lacks a feature."""


@dataclass
class Report:
    """A description of the machine. ``--json`` prints these fields."""

    edgevlm: str = edgevlm.__version__
    python: str = f"{platform.python_version()} ({platform.platform()})"
    cpu: str = ""
    cores: str = ""
    memory: str = ""
    gpus: list[str] = field(default_factory=list)
    onnxruntime: str = ""
    providers: list[str] = field(default_factory=list)
    llama_cpp_python: str = ""
    llama_cpp_system: str = ""
    llama_cpp_probe: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    """Installed versions of edgevlm's dependencies, also of its extras; None: not installed."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, message: str, *, fatal: bool = False) -> None:
        """Add a problem."""
        self.problems.append(Problem(message, fatal))

    @property
    def works(self) -> bool:
        """True if no problem is fatal."""
        return not any(problem.fatal for problem in self.problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    report = examine()
    if arguments.json:
        print(json.dumps(dataclasses.asdict(report), indent=2))
    else:
        print(format_report(report))
    return 0 if report.works else 1


def examine() -> Report:
    """Examine the machine. Only the cache of the llama.cpp check is written."""
    report = Report()
    _examine_machine(report)
    _examine_onnxruntime(report)
    _examine_llama_cpp(report)
    report.packages = _dependencies()
    return report


def _examine_machine(report: Report) -> None:
    present = [flag for flag in FLAGS if flag in system.cpu_flags()]
    report.cpu = f"{system.cpu_model()}{f' ({chr(32).join(present)})' if present else ''}"
    report.cores = f"{system.physical_cores()} physical, {system.logical_cores()} logical usable"
    sizes = {"total": system.total_memory(), "available": system.available_memory()}
    report.memory = ", ".join(
        f"{size / 2**30:.1f} GiB {name}" for name, size in sizes.items() if size is not None
    )
    report.gpus = _nvidia_gpus()


def _nvidia_gpus() -> list[str]:
    """Return name, driver and memory of each GPU that ``nvidia-smi`` lists."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def _examine_onnxruntime(report: Report) -> None:
    distributions = session.installed_distributions()
    report.onnxruntime = ", ".join(distributions)
    if len(distributions) > 1:
        names = " ".join(distribution.split()[0] for distribution in distributions)
        report.add(
            f"{' and '.join(distributions)} overwrite each other's files, so execution providers are "
            f"missing; uninstall all: pip uninstall -y {names}; then install the one you need: "
            f"pip install 'edgevlm[cpu]' or 'edgevlm[cuda]'"
        )
    try:
        report.providers = list(session.load_onnxruntime().get_available_providers())
    except EdgeVLMError as error:
        report.add(str(error), fatal=True)
        return
    cuda = execution_providers.ONNX_DEVICES["cuda"]
    if report.gpus and cuda.provider not in report.providers:
        report.add(
            f"images are not encoded on {report.gpus[0]}: no {cuda.provider}; {cuda.install_hint}"
        )


def _examine_llama_cpp(report: Report) -> None:
    if importlib.util.find_spec("llama_cpp") is None:
        report.add(
            f"decoders in GGUF files do not run, since llama-cpp-python is not installed; {INSTALL_LLAMA}"
        )
        return
    try:
        verdict = guard.probe_library()
        report.llama_cpp_probe = " ".join(filter(None, (verdict.outcome, verdict.detail)))
        if verdict.outcome != "ok":
            report.add(verdict.explanation, fatal=verdict.outcome == "crash")
        loaded = library.load_llama_cpp()
    except EdgeVLMError as error:
        report.add(str(error), fatal=True)
        return
    report.llama_cpp_python = loaded.__version__
    report.llama_cpp_system = loaded.llama_print_system_info().decode().strip(" |")
    if report.gpus and (reason := library.no_gpu_reason()):
        report.add(f"answers are not decoded on {report.gpus[0]}: {reason}")


def _dependencies() -> dict[str, str | None]:
    """Return the installed version of each dependency of edgevlm and its extras."""
    try:
        requirements = importlib.metadata.requires("edgevlm") or []
    except importlib.metadata.PackageNotFoundError:
        requirements = []
    versions: dict[str, str | None] = {}
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if name == "edgevlm":
            continue
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return dict(sorted(versions.items()))


def format_report(report: Report) -> str:
    """Return the report as text."""
    lines = {
        "edgevlm": report.edgevlm,
        "Python": report.python,
        "CPU": report.cpu,
        "cores": report.cores,
        "memory": report.memory,
        "GPU": "; ".join(report.gpus) or "none listed by nvidia-smi",
        "ONNX Runtime": report.onnxruntime or "not installed",
        "  providers": ", ".join(report.providers) or "none",
        "llama-cpp-python": report.llama_cpp_python or "not usable",
        "  system": report.llama_cpp_system or "unknown",
        "  probe": report.llama_cpp_probe or "not run",
    }
    lines |= {name: version or "not installed" for name, version in report.packages.items()}
    text = "\n".join(f"{name:<17} {value}" for name, value in lines.items())
    if not report.problems:
        return f"{text}\n\nNo problem found."
    for problem in report.problems:
        kind = "broken" if problem.fatal else "could be better"
        text += f"\n\n{kind}: {problem.message}"
    return text
