"""What ``pip install 'edgevlm[export]'`` brings, checked before any work."""

from __future__ import annotations

import edgevlm
from edgevlm.errors import MissingDependencyError
from edgevlm.versions import installed

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
"""Each is needed, in any of its forms."""


def check_dependencies() -> None:
    """Raises:
    MissingDependencyError: names what is missing and the command that installs it.
    """
    missing = [forms[0] for forms in DISTRIBUTIONS if not installed(forms)]
    if missing:
        raise MissingDependencyError(
            f"export needs {', '.join(missing)}, not installed here: pip install 'edgevlm[export]'"
        )


def versions() -> dict[str, str]:
    """Distribution to version, of edgevlm and all that makes a bundle."""
    found = {"edgevlm": edgevlm.__version__}
    for forms in DISTRIBUTIONS:
        found |= installed(forms)
    return found
