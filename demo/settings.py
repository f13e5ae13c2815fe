"""Settings and the chosen model in the storage of the browser. They survive a reload and a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgevlm.demo.gradio_setup import INTERNAL, gr, notify
from edgevlm.demo.language import translate
from edgevlm.demo.model_pool import ModelPool

SECRET = "edgevlm"
"""Key of Gradio's encryption of the storage. It need not be secret: who can read the files of the browser may
read these settings. With a random key they would be lost when the process ends."""

MAX_TEXT_LENGTH = 20_000
"""Limit of characters of a stored text."""


def remember(
    page: gr.Blocks,
    controls: Sequence[Any],
    reset: gr.Button | None = None,
    *,
    name: str = "settings",
) -> None:
    """Store the values of controls in the browser, and restore them when the page is loaded.

    Args:
        page: the page; its ``load`` is used.
        controls: sliders, radio buttons, check boxes and text boxes; their order must not change.
        reset: button that restores the initial values.
        name: key in the storage.
    """
    memory = gr.BrowserState(None, storage_key=f"edgevlm-{name}", secret=SECRET)

    def restored(values: object) -> list[Any]:
        if not isinstance(values, list) or len(values) != len(controls):
            return [gr.skip() for _ in controls]  # a person may have changed values meanwhile
        return [fit_value(control, value) for control, value in zip(controls, values, strict=True)]

    def initial_values() -> list[Any]:
        values = [control.value for control in controls]
        return [*values, values]

    page.load(restored, [memory], list(controls), **INTERNAL)
    gr.on(
        # Gradio's text boxes do not send `input` when text is pasted, cut or deleted.
        [
            control.change if isinstance(control, gr.Textbox) else control.input
            for control in controls
        ],
        None,
        list(controls),
        [memory],
        js="(...values) => [values]",
        **INTERNAL,
    )
    if reset is not None:
        reset.click(initial_values, None, [*controls, memory], **INTERNAL)


def remember_model(page: gr.Blocks, models: ModelPool, chosen: gr.State) -> None:
    """Store the label of the chosen model. If it is gone or broken, use the first model and tell so."""
    memory = gr.BrowserState(None, storage_key="edgevlm-model", secret=SECRET)

    def restored(label: object, request: gr.Request) -> Any:
        entries = models.entries()
        if label is None or label == entries[0].label:
            return gr.skip()
        if any(entry.label == label and entry.problem is None for entry in entries):
            return label
        notify(
            translate(
                request,
                "The model {model} that was chosen here is gone or broken; {first} answers now.",
                model=label,
                first=entries[0].label,
            )
        )
        return gr.skip()

    page.load(restored, [memory], [chosen], **INTERNAL)
    chosen.change(lambda label: label, [chosen], [memory], **INTERNAL)


def fit_value(control: Any, value: object) -> Any:
    """Return a valid value for a control: this value, the nearest number, or the initial value."""
    if isinstance(control, gr.Slider):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            return control.value
        return min(max(value, control.minimum), control.maximum)
    if isinstance(control, gr.Radio):
        return value if value in [choice for _, choice in control.choices] else control.value
    if isinstance(control, gr.Checkbox):
        return value if isinstance(value, bool) else control.value
    return value[:MAX_TEXT_LENGTH] if isinstance(value, str) else control.value
