"""The languages of the page: English in the code, Russian in a table.

The browser translates the texts of components (`label`). Results of functions are translated here, into the
language that the browser prefers (`translate`). Both use `edgevlm.demo.russian.RUSSIAN`; a test keeps the
table complete. Errors of the library stay English.
"""

from __future__ import annotations

from gradio.i18n import I18nData

from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.russian import RUSSIAN

TRANSLATIONS = gr.I18n(en={text: text for text in RUSSIAN}, ru=RUSSIAN)
"""For `gr.Blocks.launch`."""


def label(text: str) -> I18nData:
    """Return the text of a component; the browser translates it."""
    return TRANSLATIONS(text)


def translate(request: gr.Request | None, text: str, **values: object) -> str:
    """Return a text in the language of the browser.

    Args:
        request: the page's request; None: English.
        text: English text, a key of `RUSSIAN`, with fields such as ``{name}``.
        values: values of the fields.
    """
    if request is not None and language(request) == "ru":
        text = RUSSIAN[text]
    return text.format(**values) if values else text


def language(request: gr.Request) -> str:
    """Return ``ru`` or ``en``, the language that the browser prefers; Gradio's scripts use the same rule."""
    preferred = request.headers.get("accept-language", "").split(",")[0]
    return "ru" if preferred.strip().lower().startswith("ru") else "en"
