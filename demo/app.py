"""The page: five tabs over one `Models`, and where it is served.

Nothing is fetched from elsewhere: the fonts are the system's, and Gradio's scripts come from this process.
"""

from __future__ import annotations

from edgevlm.demo import chat, compare, inside, live, markup, shelf
from edgevlm.demo.answers import Running
from edgevlm.demo.models import Models
from edgevlm.demo.toolkit import INTERNAL, gr, session_of
from edgevlm.errors import InputError
from edgevlm.generation import GenerationOptions

OLDEST_FILE = 24 * 3600
"""Seconds after which a picture that somebody uploaded is deleted."""

LARGEST_FILE = "64mb"


def build(models: Models, options: GenerationOptions) -> gr.Blocks:
    """The page; `options` hold for every answer that no setting in the page changes."""
    running = Running()
    first = models.offers()[0].label
    page = gr.Blocks(title="edgevlm", analytics_enabled=False, delete_cache=(3600, OLDEST_FILE))
    with page:
        chosen = gr.State(first)
        record = gr.State(None)
        head = gr.HTML(_head(first), elem_id="head")
        with gr.Tabs():
            with gr.Tab("Chat", id="chat"):
                chat.build(page, models, running, chosen, record, options)
            with gr.Tab("Live", id="live"):
                live.build(page, models, chosen, options)
            with gr.Tab("Inside", id="inside") as tab:
                inside.build(tab, models, record)
            with gr.Tab("Compare", id="compare") as tab:
                compare.build(tab, models, running, chosen, options)
            with gr.Tab("Models", id="models") as tab:
                shelf.build(page, tab, models, chosen)
        chosen.change(_head, [chosen], [head], queue=False, show_progress="hidden", **INTERNAL)

        def left(request: gr.Request) -> None:
            running.stop(session_of(request))
            running.stop("compare " + session_of(request))

        page.unload(left)
    return page


def launch(page: gr.Blocks, port: int | None = None) -> str:
    """Serve the page on 127.0.0.1 from another thread.

    Args:
        port: None for the first free one from 7860.

    Returns:
        The page's address.

    Raises:
        InputError: the port is not free.
    """
    page.queue(default_concurrency_limit=None)
    try:
        _, address, _ = page.launch(
            server_name="127.0.0.1",
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            ssr_mode=False,
            max_file_size=LARGEST_FILE,
            footer_links=["settings"],
            theme=gr.themes.Default(
                primary_hue="indigo",
                font=["ui-sans-serif", "system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            css=markup.STYLE,
        )
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error}; name another") from error
    return str(address)


def _head(label: str) -> str:
    return markup.block(f"<b>edgevlm</b> with {markup.escaped(label)}, on this machine")
