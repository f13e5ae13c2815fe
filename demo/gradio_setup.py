"""Import of Gradio without its telemetry, and small helpers for its events."""

from __future__ import annotations

import html
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgevlm.errors import MissingDependencyError

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
# After each event Gradio's queue makes a pandas summary of the last 10,000 events, for a page of statistics
# that the demo does not have. These settings of Gradio avoid this work; it does not accept 0.
os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "1"
os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(2**62)

try:
    import gradio as gr
except ModuleNotFoundError as error:
    raise MissingDependencyError("the demo needs Gradio: pip install 'edgevlm[demo]'") from error

__all__ = [
    "DOWNLOAD",
    "INTERNAL",
    "LATEST",
    "error_text",
    "gr",
    "labelled_html",
    "notify",
    "page_error",
    "session_of",
    "update_choices",
    "write_download",
]

INTERNAL: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden"}
"""Arguments of events that are not part of the public API.

They use Gradio's queue, because the page shows errors of queued events only. They show no progress, because
Gradio would cover the outputs with a red "Error" after an error.
"""

LATEST: dict[str, Any] = {**INTERNAL, "trigger_mode": "always_last"}
"""Like `INTERNAL`, for events with several triggers: a trigger during a run starts another run after it."""

NOTICE_SECONDS = 10
"""Time for which the page shows a notice."""

DOWNLOAD = "(id) => setTimeout(() => document.querySelector('#' + id).click(), 100)"
"""JavaScript: click a hidden download button when the page has the address of the file."""


def labelled_html(label: Any, name: str) -> gr.HTML:
    """Lay out HTML in a frame with a label; `name` is the id of the element."""
    return gr.HTML(
        label=label,
        show_label=True,
        container=True,
        elem_id=name,
        min_width=300,
        elem_classes="labelled",
    )


def page_error(error: Exception | str) -> gr.Error:
    """Return an exception for an event to raise; the page shows it as a notice."""
    return gr.Error(html.escape(error_text(error)), duration=NOTICE_SECONDS, print_exception=False)


def notify(text: str) -> None:
    """Show a notice in the page that triggered the running event."""
    gr.Info(html.escape(text), duration=NOTICE_SECONDS)


def update_choices(
    labels: Sequence[str], current: str | None, preferred: str | None
) -> tuple[Any, str | None]:
    """Return an update of a drop-down list and the label that is chosen after it.

    The update does not contain a choice that stays valid: the person may have changed it meanwhile.

    Args:
        labels: the new list.
        current: the label that is chosen now.
        preferred: the label to choose if `current` is not in the list.
    """
    if current in labels:
        return gr.update(choices=labels), current
    value = preferred if preferred in labels else next(iter(labels), None)
    return gr.update(choices=labels, value=value), value


def error_text(error: Exception | str) -> str:
    """Return the message of an error without the path of Gradio's upload folder."""
    folder = gr.utils.get_upload_folder()
    return re.sub(rf"{re.escape(folder)}[/\\]\w+[/\\]", "", str(error))


def session_of(request: gr.Request) -> str:
    """Return the id of a page in a browser."""
    return str(request.session_hash)


def write_download(name: str, text: str) -> str:
    """Write a text into a new file that Gradio may serve. Return its path."""
    folder = Path(gr.utils.get_upload_folder()) / uuid.uuid4().hex
    folder.mkdir(parents=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
