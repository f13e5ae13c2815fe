"""The page: five tabs over one `Models`, and where it is served.

Nothing is fetched from elsewhere: the fonts are the system's, Gradio's scripts come from this process, and
the browser is told to load nothing else, whatever an answer contains.
"""

from __future__ import annotations

from pathlib import Path

from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from edgevlm.demo import chat, compare, inside, live, markup, models_tab
from edgevlm.demo.browsers import CookieMiddleware
from edgevlm.demo.conversation_store import ConversationStore
from edgevlm.demo.gradio_setup import LATEST, gr, session_of
from edgevlm.demo.language import TRANSLATIONS, label, say
from edgevlm.demo.model_pool import Models
from edgevlm.demo.settings import remember
from edgevlm.demo.streaming import Running
from edgevlm.demo.uploads import sweep_regularly
from edgevlm.demo.uploads_only import UploadsOnlyMiddleware
from edgevlm.errors import InputError
from edgevlm.options import GenerationOptions

ASSETS = Path(__file__).parent / "assets"
"""Style sheets and scripts of the page; all that are there are loaded."""


def build(models: Models, options: GenerationOptions) -> gr.Blocks:
    """The page; `options` hold for every answer that no setting in the page changes."""
    running, store = Running(), ConversationStore()
    first = models.offers()[0].label
    page = gr.Blocks(title="edgevlm", analytics_enabled=False)
    with page:
        chosen = gr.State(first)
        record = gr.State(None)
        head = gr.HTML(_title(), elem_id="head")
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab(label("Chat"), id="chat", elem_id="tab-chat"):
                chat.build(page, models, running, store, chosen, record, options)
            with gr.Tab(label("Live"), id="live", elem_id="tab-live"):
                watching = live.build(page, models, chosen, options)
            with gr.Tab(label("Inside"), id="inside", elem_id="tab-inside") as tab:
                inside.build(tab, models, record)
            with gr.Tab(label("Compare"), id="compare", elem_id="tab-compare") as tab:
                compare.build(page, tab, models, running, chosen, options)
            with gr.Tab(label("Models"), id="models", elem_id="tab-models") as tab:
                models_tab.build(page, tab, models, chosen)
        # Not within its tab, which the browser builds when it is opened: too late for what is remembered.
        remember(page, watching, name="live")
        gr.on([page.load, chosen.change], _head, [chosen], [head], **LATEST)

        def left(request: gr.Request) -> None:
            running.stop(session_of(request))
            running.stop("compare " + session_of(request))

        page.unload(left)
    sweep_regularly(Path(gr.utils.get_upload_folder()), store.files)
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
            footer_links=[],
            run_history=False,  # Gradio would keep every question in the browser
            enable_monitoring=False,
            app_kwargs={
                "middleware": [
                    # Another site's name that is made to lead here must not reach the conversations.
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
    """Gradio's default with text that has a contrast of at least 4.5:1 (WCAG AA), light and dark."""
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
    """Style sheets or scripts: those of the page first, since the tabs' build on them."""
    return sorted(ASSETS.glob(f"*.{kind}"), key=lambda path: (path.stem != "page", path.name))


def _head(model: str, request: gr.Request) -> str:
    where = say(request, "with {model}, on this machine", model=model)
    return _title(where)


def _title(where: str = "") -> str:
    return markup.block(f"<h1>edgevlm</h1> {markup.escaped(where)}")
