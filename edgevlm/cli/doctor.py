"""``edgevlm doctor``: what this machine has, and the known traps with the mend for each."""

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
from edgevlm.runtimes import openvino, system
from edgevlm.runtimes.llama_cpp import guard, library
from edgevlm.runtimes.onnx import execution_providers, session

HELP = "Look for what slows or breaks edgevlm on this machine, and say how to mend it."

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
"""Instruction sets that make a difference to the runtimes, where the CPU has them."""


@dataclass
class Problem:
    """Something that slows or breaks edgevlm."""

    message: str
    """What is wrong, and after a semicolon the mend."""
    fatal: bool
    """False: it works, with something lost."""


@dataclass
class Report:
    """What was found; the fields are what ``--json`` prints."""

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
    """edgevlm's dependencies, those of extras included, to installed version."""
    problems: list[Problem] = field(default_factory=list)

    def add(self, message: str, *, fatal: bool = False) -> None:
        self.problems.append(Problem(message, fatal))

    @property
    def works(self) -> bool:
        return not any(problem.fatal for problem in self.problems)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> int:
    report = examine()
    print(json.dumps(dataclasses.asdict(report), indent=2) if arguments.json else describe(report))
    return 0 if report.works else 1


def examine() -> Report:
    """Look at everything; changes nothing but the guard's cache."""
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
    """Name, driver and memory of each GPU that NVIDIA's tool lists."""
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
            f"{' and '.join(distributions)} overwrite each other's files, so that providers are lost; "
            f"pip uninstall -y {names}, then install the one you need: pip install 'edgevlm[cpu]' or "
            "'edgevlm[cuda]'"
        )
    try:
        report.providers = list(session.load_onnxruntime().get_available_providers())
    except EdgeVLMError as error:
        report.add(str(error), fatal=True)
        return
    if system.has_amx_bf16() and importlib.util.find_spec("openvino") is None:
        report.add(
            "this CPU multiplies bf16 matrices, which OpenVINO uses for pictures and ONNX Runtime does not; "
            f"{openvino.INSTALL_OPENVINO}"
        )
    cuda = execution_providers.ONNX_DEVICES["cuda"]
    if report.gpus and cuda.provider not in report.providers:
        report.add(
            f"pictures are not encoded on {report.gpus[0]}: no {cuda.provider}; {cuda.install_hint}"
        )


def _examine_llama_cpp(report: Report) -> None:
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
    """Package to installed version, for every dependency of edgevlm and its extras."""
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


def describe(report: Report) -> str:
    """The report as text."""
    lines = {
        "edgevlm": report.edgevlm,
        "Python": report.python,
        "CPU": report.cpu,
        "cores": report.cores,
        "memory": report.memory,
        "GPU": "; ".join(report.gpus) or "none that nvidia-smi lists",
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
        kind = "broken" if problem.fatal else "slower than it could be"
        text += f"\n\n{kind}: {problem.message}"
    return text
