"""What a person should know of a model before asking it."""

from __future__ import annotations

from edgevlm.demo import markup
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import say
from edgevlm.manifest import Usage

COMMANDS = """\
pip install '.[export]'
edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m"""
"""How a person gets a model for photographs."""


def images_note(request: gr.Request | None, usage: Usage, *, pointer: bool = True) -> str:
    """Plain text about the images that the model sees well; empty if there is nothing to say.

    Args:
        pointer: also tell where in the page help is found.
    """
    if usage.images != "drawings":
        return ""
    note = say(request, "This model sees drawings only; on photographs it guesses.")
    if not pointer:
        return note
    more = say(request, "The tab Models tells how to get a model for photographs.")
    return f"{note} {more}"


def photographs_help(request: gr.Request | None) -> str:
    """Where a model for photographs comes from, as HTML."""
    text = say(
        request,
        "To get a model for photographs, run this in the folder of edgevlm's sources. It downloads "
        "the model, needs no network after that, and puts it into this list:",
    )
    return markup.block(
        f"<p>{markup.escaped(text)}</p><pre tabindex='0'>{markup.escaped(COMMANDS)}</pre>"
    )
