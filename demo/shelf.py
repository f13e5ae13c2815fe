"""The tab Models: those that are there, and which of them this browser uses."""

from __future__ import annotations

from typing import Any

from edgevlm.demo import markup
from edgevlm.demo.models import Models, Offer
from edgevlm.demo.toolkit import INTERNAL, gr
from edgevlm.errors import EdgeVLMError

HEADERS = ["model", "vision", "decoder", "size on disk", "context", "state"]


def build(page: gr.Blocks, tab: gr.Tab, models: Models, chosen: gr.State) -> None:
    """Lay out the tab and connect it; `chosen` takes the label of the model that is loaded last."""
    gr.Markdown(
        "Built-in models and those that `edgevlm export` made on this machine. "
        "What is chosen here holds for this browser alone."
    )
    table = gr.Dataframe(
        headers=HEADERS,
        datatype="str",
        interactive=False,
        show_label=False,
        wrap=True,
        elem_id="models",
    )
    with gr.Row():
        choice = gr.Dropdown(
            [], label="Model", filterable=False, scale=3, min_width=200, elem_id="model-choice"
        )
        use = gr.Button("Load and use", variant="primary", scale=1, min_width=120)
    state = gr.HTML(elem_id="model-state", min_height=90)

    def listed(chosen: str | None) -> tuple[Any, Any]:
        offers = models.offers()
        labels = [offer.label for offer in offers]
        return (
            [row(offer, models.is_loaded(offer.label)) for offer in offers],
            gr.update(choices=labels, value=chosen if chosen in labels else labels[0]),
        )

    def loaded(
        label: str | None,
        chosen: str | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  (Gradio looks for it here)
    ) -> tuple[str, Any]:
        try:
            with models.lease(label, lambda share, what: progress(share, desc=what)) as model:
                return described(model.offer, model.vlm.device, model.memory), model.offer.label
        except EdgeVLMError as error:
            return markup.problem(f"{label} cannot be loaded: {error}"), chosen

    gr.on(
        [page.load, tab.select],
        listed,
        [chosen],
        [table, choice],
        **INTERNAL,
    )
    use.click(
        loaded,
        [choice, chosen],
        [state, chosen],
        concurrency_limit=None,
        **{**INTERNAL, "show_progress": "full"},
    ).then(listed, [chosen], [table, choice], **INTERNAL)


def row(offer: Offer, is_loaded: bool) -> list[str]:
    """One line of the table."""
    if offer.bundle is None:
        return [offer.label, "", "", "", "", f"broken: {offer.problem}"]
    manifest = offer.bundle.manifest
    vision, decoder = manifest.vision.files, manifest.decoder.files
    sizes = [
        entry.size
        for files, chosen in ((vision, offer.vision), (decoder, offer.decoder))
        for name, entry in files.items()
        if chosen in (None, name)
    ]
    return [
        offer.label,
        offer.vision or ", ".join(vision),
        offer.decoder or ", ".join(decoder),
        markup.size(sum(sizes)),
        str(manifest.decoder.context_length),
        "loaded" if is_loaded else "there",
    ]


def described(offer: Offer, device: str, memory: int | None) -> str:
    """A model that was loaded, as HTML."""
    rows = [
        ("in use", offer.label),
        ("runs on", device),
        ("memory that loading took", markup.size(memory)),
    ]
    if offer.bundle is not None:
        source = offer.bundle.manifest.source
        rows += [("made of", source.repository), ("license", source.license)]
        rows.append(("folder", str(offer.bundle.folder)))
    return markup.block(markup.table(rows))
