"""What a person should know of a model before asking it."""

from __future__ import annotations

from edgevlm.demo import markup
from edgevlm.demo.language import say
from edgevlm.demo.toolkit import gr
from edgevlm.manifest import Usage

COMMANDS = """\
pip install '.[export]'
edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m
edgevlm demo --model ./smolvlm-256m"""
"""How a person gets a model for photographs."""


def images_note(request: gr.Request, usage: Usage) -> str:
    """One line of plain text about the images that the model sees well; empty if there is nothing to say."""
    if usage.images != "drawings":
        return ""
    return say(
        request,
        "This model sees drawings only. In a photograph it guesses: see Models for one that sees photographs.",
    )


def photographs_help(request: gr.Request) -> str:
    """Where a model for photographs comes from, as HTML."""
    text = say(
        request,
        "A model for photographs comes from a checkpoint, with one command in the folder of edgevlm. "
        "It downloads about 500 MB; after that the network is not needed.",
    )
    return markup.block(
        f"<p>{markup.escaped(text)}</p><pre tabindex='0'>{markup.escaped(COMMANDS)}</pre>"
    )
