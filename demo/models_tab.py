"""The tab Models: the list of models, their state, and the one that this browser uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.demo import markup
from edgevlm.demo.gradio_setup import INTERNAL, LATEST, error_text, gr, update_choices
from edgevlm.demo.language import label, translate
from edgevlm.demo.model_pool import ModelEntry, ModelPool
from edgevlm.demo.notes import images_note, photographs_help

SECONDS_BETWEEN_VIEWS = 1.0
"""Interval of updates of the list while files are checked."""


def build(page: gr.Blocks, tab: gr.Tab, models: ModelPool, chosen: gr.State) -> None:
    """Lay out the tab and connect its events.

    Args:
        page: the page; its ``load`` is used.
        tab: the tab; the list is updated when it is opened.
        models: the models that the page offers.
        chosen: state with the label of the model that this browser uses.
    """
    intro = gr.HTML(elem_id="models-intro")
    table = gr.HTML(elem_id="models")
    with gr.Row(elem_id="models-choice"):
        choice = gr.Dropdown(
            [],
            label=label("Model"),
            filterable=False,
            scale=3,
            min_width=200,
            elem_id="model-choice",
        )
        use = gr.Button(
            label("Load and use"), variant="primary", scale=1, min_width=250, elem_id="model-use"
        )
        refresh = gr.Button(label("Refresh the list"), scale=1, min_width=250)
    state = gr.HTML(elem_id="model-state", js_on_load=markup.ANNOUNCED)
    help_ = gr.HTML(elem_id="models-help")

    def list_models(
        choice: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        """Yield the list until all files are checked."""
        shown: list[str] | None = None
        while True:
            entries = models.entries()
            labels = [entry.label for entry in entries if entry.problem is None]
            update, choice = update_choices(labels, choice, chosen)
            if labels == shown:
                update = gr.skip()  # an update would move the focus in an open list
            shown = labels
            yield model_table(entries, models, chosen, request), update
            if all(entry.checked or entry.problem is not None for entry in entries):
                break
            models.checks.wait(SECONDS_BETWEEN_VIEWS)
        yield gr.skip(), gr.skip()  # Gradio applies the last update again when the event ends

    def show_loaded(chosen: str | None, request: gr.Request) -> str:
        entry = models.loaded_entry(chosen)
        return "" if entry is None else describe_model(entry, models, request)

    def load(
        wanted: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        if wanted is None:
            yield (
                markup.problem(translate(request, "There is no model that could be loaded.")),
                gr.skip(),
            )
            return
        try:
            for fraction in models.load(wanted):
                step = step_name(fraction, request)
                text = translate(request, "Loading {model}: {step} …", model=wanted, step=step)
                yield markup.quiet(text), gr.skip()
            with models.acquire(wanted) as model:
                text = describe_model(model.entry, models, request)
        except Exception as error:  # the page goes on with the model that it has
            text = translate(
                request,
                "{model} cannot be loaded, so {chosen} stays in use. {why}",
                model=wanted,
                chosen=chosen,
                why=error_text(error),
            )
            yield markup.problem(text), gr.skip()
            return
        yield text, wanted

    page.load(introduction, None, [intro, help_], **INTERNAL)
    listing_event = {"fn": list_models, "inputs": [choice, chosen], "outputs": [table, choice]}
    gr.on([tab.select, refresh.click], **listing_event, **INTERNAL)
    gr.on([tab.select, chosen.change], show_loaded, [chosen], [state], **LATEST)
    use.click(load, [choice, chosen], [state, chosen], concurrency_limit=None, **INTERNAL).then(
        **listing_event, **INTERNAL
    )


def introduction(request: gr.Request) -> tuple[str, str]:
    """Return the texts above and below the list as HTML."""
    text = translate(
        request,
        "Models that came with edgevlm, and those that edgevlm export made on this machine. "
        "What you load here is used in this browser alone.",
    )
    return markup.block(f"<p>{markup.escaped(text)}</p>"), photographs_help(request)


def step_name(fraction: float, request: gr.Request | None = None) -> str:
    """Return the name of the step of loading that begins at this fraction."""
    if fraction < 0.1:
        return translate(request, "looking for it")
    if fraction < 0.4:
        return translate(request, "checking its files")
    return translate(request, "reading its files")


def model_table(
    entries: list[ModelEntry],
    models: ModelPool,
    chosen: str | None,
    request: gr.Request | None = None,
) -> str:
    """Return the models as a table in HTML."""
    head = (translate(request, "model"), translate(request, "size"), translate(request, "state"))
    names = "".join(f'<th scope="col">{markup.escaped(name)}</th>' for name in head)
    lines = [f"<thead><tr>{names}</tr></thead>"]
    for entry in entries:
        kind, state = model_state(entry, models, chosen, request)
        about = markup.escaped(precisions(entry, request))
        size = markup.size(sum(file.size for file in entry.files), request) if entry.files else ""
        lines.append(
            f'<tr><th scope="row">{markup.escaped(entry.label)}<div class="quiet">{about}</div></th>'
            f'<td class="number">{markup.escaped(size)}</td>'
            f'<td class="state {kind}">{markup.escaped(state)}</td></tr>'
        )
        if entry.problem is not None:
            why = f'<div class="problem">{markup.escaped(error_text(entry.problem))}</div>'
            if Path(entry.model).is_dir():
                todo = translate(
                    request, "Export it again, or delete its folder: {folder}", folder=entry.model
                )
                why += f"<div>{markup.escaped(todo)}</div>"
            lines.append(f'<tr class="why"><td colspan="3">{why}</td></tr>')
    return markup.block(f'<table class="models">{"".join(lines)}</table>')


def model_state(
    entry: ModelEntry, models: ModelPool, chosen: str | None, request: gr.Request | None = None
) -> tuple[str, str]:
    """Return the state of a model: a CSS class and words."""
    if entry.problem is not None:
        return "broken", translate(request, "broken")
    if entry.label == chosen:
        return "used", translate(request, "in use")
    if models.is_loaded(entry.label):
        return "loaded", translate(request, "loaded")
    if not entry.checked:
        return "checking", translate(request, "being checked")
    return "ready", translate(request, "ready")


def precisions(entry: ModelEntry, request: gr.Request | None = None) -> str:
    """Return precisions and context of a model in words; empty if its bundle cannot be opened."""
    if entry.bundle is None:
        return ""
    manifest = entry.bundle.manifest
    return translate(
        request,
        "vision {vision}; decoder {decoder}; context {context} tokens",
        vision=entry.vision or ", ".join(manifest.vision.files),
        decoder=entry.decoder or ", ".join(manifest.decoder.choices),
        context=markup.number(manifest.decoder.context_length, request),
    )


def describe_model(entry: ModelEntry, models: ModelPool, request: gr.Request | None = None) -> str:
    """Return facts about a loaded model as HTML."""
    with models.acquire(entry.label) as model:
        vlm, memory = model.vlm, model.memory
    rows = [
        (translate(request, "in use"), entry.label),
        (
            translate(request, "runs on"),
            f"vision {vlm.vision_device}, decoder {vlm.decoder_device}",
        ),
        (translate(request, "memory for loading it"), markup.size(memory, request)),
    ]
    if entry.bundle is not None:
        source = entry.bundle.manifest.source
        rows += [
            (translate(request, "made from"), source.repository),
            (translate(request, "license"), source.license),
            (translate(request, "folder"), str(entry.bundle.folder)),
        ]
    note = images_note(request, entry.usage, pointer=False)
    return markup.block(
        markup.table(rows), f'<p class="note">{markup.escaped(note)}</p>' if note else ""
    )
