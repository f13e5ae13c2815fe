"""Notes about the images that a model is made for."""

from __future__ import annotations

from edgevlm.demo import markup
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import translate
from edgevlm.manifest import Usage

COMMANDS = """\
pip install '.[export]'
edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m"""
"""Commands that make a bundle of a model for photographs."""


def images_note(request: gr.Request | None, usage: Usage, *, pointer: bool = True) -> str:
    """Return a note for models that see drawings only; empty for others.

    Args:
        request: the page's request, for its language.
        usage: the intended use of the model.
        pointer: also tell where the page has help.
    """
    if usage.images != "drawings":
        return ""
    note = translate(request, "This model sees drawings only; on photographs it guesses.")
    if not pointer:
        return note
    more = translate(request, "The tab Models tells how to get a model for photographs.")
    return f"{note} {more}"


def photographs_help(request: gr.Request | None) -> str:
    """Return help on how to get a model for photographs, as HTML."""
    text = translate(
        request,
        "To get a model for photographs, run this in the folder of edgevlm's sources. It downloads "
        "the model, needs no network after that, and puts it into this list:",
    )
    return markup.block(
        f"<p>{markup.escaped(text)}</p><pre tabindex='0'>{markup.escaped(COMMANDS)}</pre>"
    )
