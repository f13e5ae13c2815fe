"""The settings of answers in the tab Chat: their controls, and the options that follow from them."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any, cast

from edgevlm import Detail
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import label, translate
from edgevlm.demo.settings import remember
from edgevlm.options import DEFAULT_MAX_TOKENS, Generation, GenerationOptions

ALTERNATIVES = 5
"""Number of alternatives for each token that the tab Inside shows."""

MAX_ANSWER_TOKENS = 1024
"""Upper end of the slider."""

MODEL_DEFAULT = "usual"
"""Value of the control for the detail that the model's manifest names."""


@dataclass(frozen=True)
class AnswerSettings:
    """Values of the model chooser and of `SettingsPanel.controls`, in this order."""

    model: str | None
    """Label of the model."""
    temperature: float
    max_tokens: float
    detail: str
    logprobs: bool
    """True to keep the probability of each token for the tab Inside."""
    system: str

    def options(self, defaults: GenerationOptions) -> GenerationOptions:
        """Return the options of one answer.

        Args:
            defaults: options that no control changes.
        """
        options: GenerationOptions = {
            **defaults,
            "temperature": float(self.temperature),
            "max_tokens": int(self.max_tokens),
            "detail": parse_detail(self.detail),
            "top_logprobs": ALTERNATIVES if self.logprobs else None,
        }
        if self.temperature > 0 and not defaults.get("seed"):
            options["seed"] = secrets.randbelow(2**31)  # so that another try gives another answer
        return options


class SettingsPanel:
    """The controls of `AnswerSettings` without the model, in a closed accordion.

    Args:
        defaults: options whose values the controls have at first.
    """

    def __init__(self, defaults: GenerationOptions) -> None:
        with gr.Accordion(label("Settings"), open=False):
            self._temperature = gr.Slider(
                0,
                2,
                defaults.get("temperature", Generation.temperature),
                step=0.05,
                label=label("Temperature"),
                info=label("0 takes the most likely token each time"),
            )
            self._max_tokens = gr.Slider(
                1,
                max(MAX_ANSWER_TOKENS, defaults.get("max_tokens") or 1),
                defaults.get("max_tokens") or DEFAULT_MAX_TOKENS,
                step=1,
                label=label("Longest answer"),
                info=label("tokens"),
            )
            self.detail = gr.Radio(
                [MODEL_DEFAULT, "low", "high", "auto"],
                value=defaults.get("detail") or MODEL_DEFAULT,
                label=label("Detail of pictures"),
                info=label("for models that split pictures into tiles"),
            )
            self._system = gr.Textbox(
                "", label=label("System prompt"), placeholder=label("none"), lines=2
            )
            self._logprobs = gr.Checkbox(
                True,
                label=label("Keep how likely each token was, for Inside"),
                info=label("without it, answers that repeat come faster"),
            )
            self._reset = gr.Button(label("Reset the settings"), size="md")

    @property
    def controls(self) -> list[Any]:
        """Inputs of an event, in the order of `AnswerSettings` after the model."""
        return [self._temperature, self._max_tokens, self.detail, self._logprobs, self._system]

    def remember(self, page: gr.Blocks) -> None:
        """Keep the settings in the browser. The order of the controls is part of what is stored."""
        controls = [self._temperature, self._max_tokens, self.detail, self._system, self._logprobs]
        remember(page, controls, self._reset)


def detail_choices(request: gr.Request) -> list[tuple[str, str]]:
    """Return names and values of a list of details."""
    details: tuple[Detail, ...] = ("low", "high", "auto")
    named = [(detail_name(detail, request), str(detail)) for detail in details]
    return [(detail_name(None, request), MODEL_DEFAULT), *named]


def detail_name(detail: Detail | None, request: gr.Request | None = None) -> str:
    """Return a detail in words."""
    if detail is None:
        return translate(request, "the model's usual")
    return {
        "low": translate(request, "low"),
        "high": translate(request, "high"),
        "auto": translate(request, "automatic"),
    }[detail]


def parse_detail(value: str | None) -> Detail | None:
    """Return the detail for a value of `detail_choices`."""
    return None if value in (None, MODEL_DEFAULT) else cast("Detail", value)
