"""The tab Models: those that are there, what is known of them, and which of them this browser uses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgevlm.demo import markup
from edgevlm.demo.gradio_setup import INTERNAL, LATEST, choices, gr, readable
from edgevlm.demo.language import label, say
from edgevlm.demo.model_pool import Models, Offer
from edgevlm.demo.notes import images_note, photographs_help

SECONDS_BETWEEN_VIEWS = 1.0
"""How often the list is shown anew while files are checked."""


def build(page: gr.Blocks, tab: gr.Tab, models: Models, chosen: gr.State) -> None:
    """Lay out the tab and connect it; `chosen` takes the label of the model that is loaded last."""
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

    def listed(
        choice: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        """The list, again and again until every file in it is checked."""
        offered: list[str] | None = None
        while True:
            offers = models.offers()
            labels = [offer.label for offer in offers if offer.problem is None]
            update, choice = choices(labels, choice, chosen)
            if labels == offered:
                update = gr.skip()  # it would move what the keyboard is at in an open list
            offered = labels
            yield listing(offers, models, chosen, request), update
            if all(offer.checked or offer.problem is not None for offer in offers):
                break
            models.checks.wait(SECONDS_BETWEEN_VIEWS)
        yield gr.skip(), gr.skip()  # Gradio shows the last one again when the event ends

    def shown(chosen: str | None, request: gr.Request) -> str:
        offer = models.loaded_offer(chosen)
        return "" if offer is None else described(offer, models, request)

    def loaded(
        wanted: str | None, chosen: str | None, request: gr.Request
    ) -> Iterator[tuple[str, Any]]:
        if wanted is None:
            yield markup.problem(say(request, "There is no model that could be loaded.")), gr.skip()
            return
        try:
            for share in models.loading(wanted):
                step = step_name(share, request)
                text = say(request, "Loading {model}: {step} …", model=wanted, step=step)
                yield markup.quiet(text), gr.skip()
            with models.lease(wanted) as model:
                text = described(model.offer, models, request)
        except Exception as error:  # whatever it is, the page goes on with the model it has
            text = say(
                request,
                "{model} cannot be loaded, so {chosen} stays in use. {why}",
                model=wanted,
                chosen=chosen,
                why=readable(error),
            )
            yield markup.problem(text), gr.skip()
            return
        yield text, wanted

    page.load(introduced, None, [intro, help_], **INTERNAL)
    listing_event = {"fn": listed, "inputs": [choice, chosen], "outputs": [table, choice]}
    gr.on([tab.select, refresh.click], **listing_event, **INTERNAL)
    gr.on([tab.select, chosen.change], shown, [chosen], [state], **LATEST)
    use.click(loaded, [choice, chosen], [state, chosen], concurrency_limit=None, **INTERNAL).then(
        **listing_event, **INTERNAL
    )


def introduced(request: gr.Request) -> tuple[str, str]:
    """What stands above and below the list, as HTML."""
    text = say(
        request,
        "Models that came with edgevlm, and those that edgevlm export made on this machine. "
        "What you load here is used in this browser alone.",
    )
    return markup.block(f"<p>{markup.escaped(text)}</p>"), photographs_help(request)


def step_name(share: float, request: gr.Request | None = None) -> str:
    """The step of loading that begins after this share."""
    if share < 0.1:
        return say(request, "looking for it")
    if share < 0.4:
        return say(request, "checking its files")
    return say(request, "reading its files")


def listing(
    offers: list[Offer], models: Models, chosen: str | None, request: gr.Request | None = None
) -> str:
    """The models as a table, as HTML."""
    head = (say(request, "model"), say(request, "size"), say(request, "state"))
    names = "".join(f'<th scope="col">{markup.escaped(name)}</th>' for name in head)
    lines = [f"<thead><tr>{names}</tr></thead>"]
    for offer in offers:
        kind, state = state_of(offer, models, chosen, request)
        about = markup.escaped(parts_of(offer, request))
        size = markup.size(sum(entry.size for entry in offer.files), request) if offer.files else ""
        lines.append(
            f'<tr><th scope="row">{markup.escaped(offer.label)}<div class="quiet">{about}</div></th>'
            f'<td class="number">{markup.escaped(size)}</td>'
            f'<td class="state {kind}">{markup.escaped(state)}</td></tr>'
        )
        if offer.problem is not None:
            why = f'<div class="problem">{markup.escaped(readable(offer.problem))}</div>'
            if Path(offer.model).is_dir():
                todo = say(
                    request, "Export it again, or delete its folder: {folder}", folder=offer.model
                )
                why += f"<div>{markup.escaped(todo)}</div>"
            lines.append(f'<tr class="why"><td colspan="3">{why}</td></tr>')
    return markup.block(f'<table class="models">{"".join(lines)}</table>')


def state_of(
    offer: Offer, models: Models, chosen: str | None, request: gr.Request | None = None
) -> tuple[str, str]:
    """How a model stands: a class for its look, and words."""
    if offer.problem is not None:
        return "broken", say(request, "broken")
    if offer.label == chosen:
        return "used", say(request, "in use")
    if models.is_loaded(offer.label):
        return "loaded", say(request, "loaded")
    if not offer.checked:
        return "checking", say(request, "being checked")
    return "ready", say(request, "ready")


def parts_of(offer: Offer, request: gr.Request | None = None) -> str:
    """Precisions and context of a model that can be opened."""
    if offer.bundle is None:
        return ""
    manifest = offer.bundle.manifest
    return say(
        request,
        "vision {vision}; decoder {decoder}; context {context} tokens",
        vision=offer.vision or ", ".join(manifest.vision.files),
        decoder=offer.decoder or ", ".join(manifest.decoder.files),
        context=markup.number(manifest.decoder.context_length, request),
    )


def described(offer: Offer, models: Models, request: gr.Request | None = None) -> str:
    """A model that is loaded, as HTML."""
    with models.lease(offer.label) as model:
        vlm, memory = model.vlm, model.memory
    rows = [
        (say(request, "in use"), offer.label),
        (say(request, "runs on"), f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"),
        (say(request, "memory for loading it"), markup.size(memory, request)),
    ]
    if offer.bundle is not None:
        source = offer.bundle.manifest.source
        rows += [
            (say(request, "made from"), source.repository),
            (say(request, "license"), source.license),
            (say(request, "folder"), str(offer.bundle.folder)),
        ]
    note = images_note(request, offer.usage, pointer=False)
    return markup.block(
        markup.table(rows), f'<p class="note">{markup.escaped(note)}</p>' if note else ""
    )
