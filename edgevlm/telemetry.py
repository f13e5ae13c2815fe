"""Keep the libraries beneath from reporting to their makers: nothing opens a socket that nobody asked for.

ONNX Runtime (from 1.29 on), huggingface_hub, Gradio and OpenVINO do so unless they are told otherwise.
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
"""Read by the libraries when they are imported; child processes inherit them."""

OPENVINO_REPORTER = "openvino_telemetry"
"""The package that OpenVINO reports through; without it, it reports nothing."""


def disable() -> None:
    """Set `VARIABLES`. One that the user has set keeps its value."""
    for name, value in VARIABLES.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def without_openvino_reporter() -> Iterator[None]:
    """Hide `OPENVINO_REPORTER` while OpenVINO is imported, unless the user has agreed to its reports.

    It has no variable that turns it off; ``opt_in_out`` of that package writes the user's choice into a file.
    """
    if _agreed() or OPENVINO_REPORTER in sys.modules:
        yield
        return
    sys.modules[OPENVINO_REPORTER] = None  # type: ignore[assignment]  # Python's way to say: not there
    try:
        yield
    finally:
        del sys.modules[OPENVINO_REPORTER]


def _agreed() -> bool:
    """Whether the user has agreed to OpenVINO's reports."""
    choice = os.path.join(os.path.expanduser("~"), "intel", OPENVINO_REPORTER)
    try:
        with open(choice, encoding="utf-8", errors="replace") as file:
            return file.read(8).strip() == "1"
    except OSError:
        return False
