"""What ``pip install 'edgevlm[export]'`` brings, checked before any work."""

from __future__ import annotations

import importlib.metadata
import importlib.util

from edgevlm.errors import MissingDependencyError

MODULES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "onnx": "onnx",
    "onnxscript": "onnxscript",
    "onnxslim": "onnxslim",
    "onnxruntime": "onnxruntime",
    "gguf": "gguf",
    "llama_cpp": "llama-cpp-python",
    "optimum": "optimum",
    "tqdm": "tqdm",
}
"""Module to the distribution that brings it."""


def check_dependencies() -> None:
    """Raises:
    MissingDependencyError: names what is missing and the command that installs it.
    """
    missing = [name for module, name in MODULES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'edgevlm[export]'"
        )


def versions() -> dict[str, str]:
    """Distribution to version, of edgevlm and all that makes a bundle."""
    found = {"edgevlm": edgevlm_version()}
    for module, distribution in MODULES.items():
        found[distribution] = module_version(module, distribution)
    return found


def edgevlm_version() -> str:
    import edgevlm

    return edgevlm.__version__


def module_version(module: str, distribution: str) -> str:
    """From the installed distribution; several may bring one module (onnxruntime, onnxruntime-gpu)."""
    brought_by = importlib.metadata.packages_distributions().get(module, [distribution])
    return importlib.metadata.version(brought_by[0])
