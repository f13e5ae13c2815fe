"""The page: five tabs that share one `ModelPool`, and its server.

The page loads nothing from other hosts: it uses the fonts of the system, Gradio's scripts come from this
process, and a content security policy forbids everything else, whatever an answer contains.
"""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from edgevlm.demo import chat, compare, inside, live, markup, models_tab
from edgevlm.demo.browsers import CookieMiddleware
from edgevlm.demo.conversation_store import ConversationStore
from edgevlm.demo.gradio_setup import LATEST, gr, session_of
from edgevlm.demo.language import TRANSLATIONS, label, translate
from edgevlm.demo.model_pool import ModelPool
from edgevlm.demo.settings import remember
from edgevlm.demo.streaming import ActiveStreams
from edgevlm.demo.uploads import sweep_regularly
from edgevlm.demo.uploads_only import UploadsOnlyMiddleware
from edgevlm.errors import InputError
from edgevlm.options import GenerationOptions

ASSETS = Path(__file__).parent / "assets"
"""Folder of style sheets and scripts; the page loads all of them."""


def build(models: ModelPool, options: GenerationOptions) -> gr.Blocks:
    """Build the page.

    Args:
        models: the models that the page offers.
        options: options of every answer that no setting in the page changes.
    """
    streams, store = ActiveStreams(), ConversationStore()
    first = models.entries()[0].label
    page = gr.Blocks(title="edgevlm", analytics_enabled=False)
    with page:
        chosen = gr.State(first)
        record = gr.State(None)
        head = gr.HTML(_title(), elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(label("Chat"), id="chat", elem_id="tab-chat"):
                chat.build(page, models, streams, store, chosen, record, options)
            with gr.Tab(label("Live"), id="live", elem_id="tab-live"):
                live_controls = live.build(page, models, chosen, options)
            with gr.Tab(label("Inside"), id="inside", elem_id="tab-inside") as tab:
                inside.build(tab, models, record)
            with gr.Tab(label("Compare"), id="compare", elem_id="tab-compare") as tab:
                compare.build(page, tab, models, streams, chosen, options)
            with gr.Tab(label("Models"), id="models", elem_id="tab-models") as tab:
                models_tab.build(page, tab, models, chosen)
        # Outside of its tab: the browser builds a tab when it is opened, too late for stored settings.
        remember(page, live_controls, name="live")
        gr.on([page.load, chosen.change], _head, [chosen], [head], **LATEST)

        def unload(request: gr.Request) -> None:
            streams.stop(session_of(request))
            streams.stop("compare " + session_of(request))

        page.unload(unload)
    sweep_regularly(Path(gr.utils.get_upload_folder()), store.files)
    return page


def launch(page: gr.Blocks, port: int | None = None) -> str:
    """Serve the page on 127.0.0.1 from another thread.

    Args:
        page: the page that `build` returned.
        port: None: the first free port from 7860.

    Returns:
        The address of the page.

    Raises:
        InputError: the port is in use.
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
            footer_links=[],
            run_history=False,  # otherwise Gradio keeps every question in the browser
            enable_monitoring=False,
            app_kwargs={
                "middleware": [
                    # Against DNS rebinding: a foreign host name must not reach the conversations.
                    Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
                    Middleware(CookieMiddleware),
                    Middleware(UploadsOnlyMiddleware, Path(gr.utils.get_upload_folder())),
                ]
            },
            i18n=TRANSLATIONS,
            theme=_theme(),
            css_paths=_assets("css"),
            js="\n".join(path.read_text(encoding="utf-8") for path in _assets("js")),
        )
    except OSError as error:
        raise InputError(f"port {port} cannot be used: {error}; name another") from error
    return str(address)


def _theme() -> gr.themes.Base:
    """Return Gradio's default theme with a text contrast of at least 4.5:1 (WCAG AA), light and dark."""
    theme = gr.themes.Default(
        primary_hue="indigo",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    return theme.set(
        body_text_color_subdued="*neutral_600",
        block_title_text_color="*neutral_600",
        block_label_text_color="*neutral_600",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        color_accent="*primary_600",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_700",
    )


def _assets(kind: str) -> list[Path]:
    """Return style sheets or scripts, those of the page first: those of the tabs use them."""
    return sorted(ASSETS.glob(f"*.{kind}"), key=lambda path: (path.stem != "page", path.name))


def _head(model: str, request: gr.Request) -> str:
    where = translate(request, "with {model}, on this machine", model=model)
    return _title(where)


def _title(where: str = "") -> str:
    return markup.block(f"<h1>edgevlm</h1> {markup.escaped(where)}")
