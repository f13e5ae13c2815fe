"""Check that the distributions of ``edgevlm[export]`` are installed."""

from __future__ import annotations

import edgevlm
from edgevlm.errors import MissingDependencyError
from edgevlm.versions import installed_versions

DISTRIBUTIONS = (
    ("torch",),
    ("transformers",),
    ("tokenizers",),
    ("safetensors",),
    ("huggingface_hub",),
    ("onnx",),
    ("onnxscript",),
    ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
    ("gguf",),
    ("llama-cpp-python",),
    ("optimum",),
    ("pyyaml",),
    ("tqdm",),
)
"""Needed distributions; one of each group is enough."""


def check_dependencies() -> None:
    """Check that everything that an export needs is installed.

    Raises:
        MissingDependencyError: a distribution is missing; the message has the command that installs it.
    """
    missing = [group[0] for group in DISTRIBUTIONS if not installed_versions(group)]
    if missing:
        raise MissingDependencyError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'edgevlm[export]'"
        )


def versions() -> dict[str, str]:
    """Return the versions of edgevlm and of the distributions that make a bundle."""
    found = {"edgevlm": edgevlm.__version__}
    for group in DISTRIBUTIONS:
        found |= installed_versions(group)
    return found
