"""The list of models in the tab Chat, a note about the chosen one, and buttons for its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgevlm.demo import markup
from edgevlm.demo.gradio_setup import INTERNAL, LATEST, gr, page_error
from edgevlm.demo.language import label, language, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.notes import images_note
from edgevlm.errors import EdgeVLMError
from edgevlm.manifest import Usage


class ModelChooser:
    """The list and the note; `connect` adds their events.

    Args:
        chosen: state with the label of the model that this browser uses.
    """

    def __init__(self, models: ModelPool, chosen: gr.State) -> None:
        self._models = models
        self._chosen = chosen
        with gr.Row(elem_id="chat-head"):
            self._list = gr.Dropdown(
                [],
                label=label("Model"),
                filterable=False,
                scale=1,
                min_width=220,
                elem_id="chat-model",
            )
            self._note = gr.HTML(elem_id="chat-about")

    def connect(self, page: gr.Blocks, tasks: gr.HTML) -> None:
        """Connect the events.

        Args:
            page: the page; its ``load`` is used.
            tasks: takes the buttons.
        """
        outputs = [self._list, self._note, tasks]
        gr.on([page.load, self._chosen.change], self._update, [self._chosen], outputs, **LATEST)
        self._list.input(
            self._load,
            [self._list, self._chosen],
            [self._note, self._list, self._chosen],
            concurrency_limit=None,
            **INTERNAL,
        )

    def _update(self, label: str | None, request: gr.Request) -> tuple[Any, str, str]:
        labels = [entry.label for entry in self._models.entries() if entry.problem is None]
        usage = self._models.usage(label)
        return (
            gr.update(choices=labels, value=label if label in labels else None),
            _note(usage, request),
            _tasks(usage.questions(language(request)), request),
        )

    def _load(
        self, label: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[Any, Any, Any]]:
        try:
            for fraction in self._models.load(label):
                percent = f"{fraction:.0%}"
                text = translate(
                    request, "Loading {model}: {percent}", model=label, percent=percent
                )
                yield (
                    markup.block(f'<p role="status">{markup.escaped(text)}</p>'),
                    gr.skip(),
                    chosen,
                )
        except EdgeVLMError as error:
            yield _note(self._models.usage(chosen), request), chosen, chosen
            raise page_error(error) from error
        yield _note(self._models.usage(label), request), label, label


def _note(usage: Usage, request: gr.Request) -> str:
    """Return one line about the images that a model is made for, or nothing."""
    note = images_note(request, usage)
    return markup.block(f'<p class="quiet">{markup.escaped(note)}</p>') if note else ""


def _tasks(questions: Mapping[str, str], request: gr.Request) -> str:
    """Return buttons that write a question into the box; `assets/chat.js` makes them work."""
    names = {
        "describe": translate(request, "Describe"),
        "detect": translate(request, "Find"),
        "point": translate(request, "Point"),
        "count": translate(request, "Count"),
        "read": translate(request, "Read"),
    }
    shown = questions or {"describe": translate(request, "Describe the picture.")}
    buttons = (
        f'<button type="button" data-question="{markup.escaped(question)}">'
        f"{markup.escaped(names[task])}</button>"
        for task, question in shown.items()
    )
    return f'<div class="tasks">{"".join(buttons)}</div>'
