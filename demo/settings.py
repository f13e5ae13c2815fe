"""Settings and the chosen model as a browser remembers them, in its own storage, over reload and restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgevlm.demo.gradio_setup import INTERNAL, gr, tell
from edgevlm.demo.language import say
from edgevlm.demo.model_pool import Models

SECRET = "edgevlm"
"""Gradio encrypts what a browser stores. Who reads the browser's files may read these settings, too, and
with a secret of each process they would be lost with it."""

MAX_TEXT_LENGTH = 20_000
"""Characters of a text that is remembered."""


def remember(
    page: gr.Blocks,
    controls: Sequence[Any],
    reset: gr.Button | None = None,
    *,
    name: str = "settings",
) -> None:
    """Keep what a person sets, and take it back when the page is opened again.

    Args:
        controls: sliders, radios, check boxes and text boxes, in an order that stays.
        reset: gives all of them the values that they were built with.
        name: of these controls in the browser's storage.
    """
    memory = gr.BrowserState(None, storage_key=f"edgevlm-{name}", secret=SECRET)

    def restored(values: object) -> list[Any]:
        if not isinstance(values, list) or len(values) != len(controls):
            return [
                gr.skip() for _ in controls
            ]  # not the first values: something may be set by now
        return [fitting(control, value) for control, value in zip(controls, values, strict=True)]

    def as_built() -> list[Any]:
        values = [control.value for control in controls]
        return [*values, values]

    page.load(restored, [memory], list(controls), **INTERNAL)
    gr.on(
        # `input` of Gradio's text boxes says nothing of what is pasted, cut or deleted.
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
        reset.click(as_built, None, [*controls, memory], **INTERNAL)


def remember_model(page: gr.Blocks, models: Models, chosen: gr.State) -> None:
    """Keep the chosen model's label. If it can no longer be loaded, that is said, and the first answers."""
    memory = gr.BrowserState(None, storage_key="edgevlm-model", secret=SECRET)

    def restored(label: object, request: gr.Request) -> Any:
        offers = models.offers()
        if label is None or label == offers[0].label:
            return gr.skip()
        if any(offer.label == label and offer.problem is None for offer in offers):
            return label
        tell(
            say(
                request,
                "The model {model} that was chosen here is gone or broken; {first} answers now.",
                model=label,
                first=offers[0].label,
            )
        )
        return gr.skip()

    page.load(restored, [memory], [chosen], **INTERNAL)
    chosen.change(lambda label: label, [chosen], [memory], **INTERNAL)


def fitting(control: Any, value: object) -> Any:
    """A value that a control can show: this one, the nearest number, or else the one it was built with."""
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
