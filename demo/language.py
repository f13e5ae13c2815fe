"""The page's languages: English in the code, Russian in a table.

A component's own words (labels, placeholders) are translated by the browser: `label`. What a function
answers with is translated here, in the language that the browser asks for: `say`. Both look the English text
up in `edgevlm.demo.russian.RUSSIAN`; a test keeps the table complete. Errors of the library stay English.
"""

from __future__ import annotations

from gradio.i18n import I18nData

from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.russian import RUSSIAN

TRANSLATIONS = gr.I18n(en={text: text for text in RUSSIAN}, ru=RUSSIAN)
"""For `gr.Blocks.launch`."""


def label(text: str) -> I18nData:
    """A component's text, which the browser translates."""
    return TRANSLATIONS(text)


def say(request: gr.Request | None, text: str, **values: object) -> str:
    """A text in the language of the browser that sent this request.

    Args:
        text: English, as it stands in `RUSSIAN`; ``{name}`` stands for one of `values`.
    """
    if request is not None and language(request) == "ru":
        text = RUSSIAN[text]
    return text.format(**values) if values else text


def language(request: gr.Request) -> str:
    """ "ru" or "en", by the language that the browser prefers; Gradio's scripts choose by the same one."""
    preferred = request.headers.get("accept-language", "").split(",")[0]
    return "ru" if preferred.strip().lower().startswith("ru") else "en"
