"""Gradio, imported in one place: told to send nothing anywhere, or said to be missing."""

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
# Gradio's queue keeps its last 10,000 events and makes a pandas summary of them after each one, for a page
# of statistics that the demo does not have. These are its own settings for both; 0 is not taken.
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
    "choices",
    "downloadable",
    "framed",
    "gr",
    "readable",
    "refusal",
    "session_of",
    "tell",
]

INTERNAL: dict[str, Any] = {"api_visibility": "undocumented", "show_progress": "hidden"}
"""Arguments of events that serve the page alone.

They go through Gradio's queue: only there does the page show what a function refuses. And without progress:
with it, what is refused lays a red "Error" over the outputs.
"""

LATEST: dict[str, Any] = {**INTERNAL, "trigger_mode": "always_last"}
"""As `INTERNAL`, of events with several triggers: what comes while one runs is not dropped but follows it."""

NOTICE_SECONDS = 10
"""How long the page shows a notice, unless a person closes it before."""

DOWNLOAD = "(id) => setTimeout(() => document.querySelector('#' + id).click(), 100)"
"""JavaScript: click a hidden download button, once the page has the file's address."""


def framed(label: Any, name: str) -> gr.HTML:
    """HTML in a frame with a label; `name` finds it in the page."""
    return gr.HTML(
        label=label,
        show_label=True,
        container=True,
        elem_id=name,
        min_width=300,
        elem_classes="labelled",
    )


def refusal(error: Exception | str) -> gr.Error:
    """An error to raise from an event: a notice in the page that goes away by itself."""
    return gr.Error(html.escape(readable(error)), duration=NOTICE_SECONDS, print_exception=False)


def tell(text: str) -> None:
    """Show a notice in the page that called the running event, and go on."""
    gr.Info(html.escape(text), duration=NOTICE_SECONDS)


def choices(
    labels: Sequence[str], current: str | None, preferred: str | None
) -> tuple[Any, str | None]:
    """An update of a list to choose from, and what is chosen in it then.

    What a person has chosen is not sent back: by then it may be something else.
    """
    if current in labels:
        return gr.update(choices=labels), current
    value = preferred if preferred in labels else next(iter(labels), None)
    return gr.update(choices=labels, value=value), value


def readable(error: Exception | str) -> str:
    """An error's text without the folder where Gradio keeps what was uploaded."""
    folder = gr.utils.get_upload_folder()
    return re.sub(rf"{re.escape(folder)}[/\\]\w+[/\\]", "", str(error))


def session_of(request: gr.Request) -> str:
    """What tells one browser's page from another's."""
    return str(request.session_hash)


def downloadable(name: str, text: str) -> str:
    """A new file with this text, where Gradio may serve it from; returns its path."""
    folder = Path(gr.utils.get_upload_folder()) / uuid.uuid4().hex
    folder.mkdir(parents=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)
