"""Turn off the telemetry of the libraries that edgevlm uses, so that no library opens a socket unasked.

ONNX Runtime (from 1.29 on), huggingface_hub, Gradio and OpenVINO send reports by default.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

VARIABLES = {
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
}
"""Environment variables that turn telemetry off. The libraries read them at import; child processes inherit
them."""

OPENVINO_REPORTER = "openvino_telemetry"
"""The package that sends OpenVINO's reports. Without it, OpenVINO sends none."""


def disable() -> None:
    """Set `VARIABLES`, except those that the user has set."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def without_openvino_reporter() -> Iterator[None]:
    """Hide `OPENVINO_REPORTER` during the import of OpenVINO, unless the user has opted in.

    No environment variable turns OpenVINO's telemetry off. The package's command ``opt_in_out`` writes the
    user's choice to a file.
    """
    if _opted_in() or OPENVINO_REPORTER in sys.modules:
        yield
        return
    sys.modules[OPENVINO_REPORTER] = None  # type: ignore[assignment]  # an import of it fails
    try:
        yield
    finally:
        del sys.modules[OPENVINO_REPORTER]


def _opted_in() -> bool:
    """Return True if the user has opted in to OpenVINO's telemetry."""
    choice = os.path.join(os.path.expanduser("~"), "intel", OPENVINO_REPORTER)
    try:
        with open(choice, encoding="utf-8", errors="replace") as file:
            return file.read(8).strip() == "1"
    except OSError:
        return False
