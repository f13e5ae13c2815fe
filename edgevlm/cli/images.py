"""Images as a command line or a line of a conversation names them."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from edgevlm.errors import InputError
from edgevlm.inputs.data_uri import is_data_uri
from edgevlm.inputs.image_sources import path_exists, read_all

HELP = "a file, a file:// URL, a data URI, or - for standard input"


def argument_images(arguments: Sequence[str]) -> list[str | bytes]:
    """Images for `VLM.ask`; ``-`` becomes the bytes of standard input.

    Raises:
        InputError: ``-`` is there twice, or standard input holds nothing or too much.
    """
    if arguments.count("-") > 1:
        raise InputError(
            "'-' names standard input, which can be read once; save it as a file first"
        )
    return [_standard_input() if argument == "-" else argument for argument in arguments]


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        raise InputError(
            "'-' names standard input, which is a terminal; pipe an image into it: cat a.png | ..."
        )
    data = read_all(sys.stdin.buffer, "standard input")
    if not data:
        raise InputError("'-' names standard input, which is empty")
    return data


def named_images(text: str) -> list[str]:
    """The paths and URIs in a text, written as for a shell or as a terminal writes dropped files.

    A text that names a file as it stands, blanks and quotes included, is one path. Otherwise blanks
    separate paths; quotes and, but for Windows, backslashes keep them together. A data URI is never split.

    Raises:
        InputError: no path, or ``-``.
    """
    text = text.strip()
    if not text:
        raise InputError("/image needs the path of an image: /image photo.png")
    if is_data_uri(text) or path_exists(text):
        return [text]
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if os.name == "nt":
        lexer.escape = ""
    try:
        names = list(lexer)
    except ValueError:  # a quote without its partner is part of a name
        names = [text]
    return file_images(names)


def file_images(names: list[str]) -> list[str]:
    """The names themselves; raises InputError for ``-`` where standard input has the questions."""
    if "-" in names:
        raise InputError(
            "'-' cannot be an image here: the conversation comes from standard input; pass a file"
        )
    return names
