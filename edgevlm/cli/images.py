"""Names of images in the arguments of a command or in a line of a conversation."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence

from edgevlm.errors import InputError
from edgevlm.inputs.data_uri import is_data_uri
from edgevlm.inputs.image_sources import path_exists, read_all

HELP = "a file, a file:// URL, a data URI, or - for standard input"


def read_image_arguments(arguments: Sequence[str]) -> list[str | bytes]:
    """Return images for `VLM.ask`; ``-`` is replaced with the bytes of standard input.

    Raises:
        InputError: ``-`` is there twice, or standard input is a terminal, or is empty or too large.
    """
    if arguments.count("-") > 1:
        raise InputError(
            "'-' means standard input, which can only be read once; save it as a file first"
        )
    return [_standard_input() if argument == "-" else argument for argument in arguments]


def _standard_input() -> bytes:
    if sys.stdin.isatty():
        raise InputError(
            "'-' means standard input, which is a terminal; pipe an image into it: cat a.png | ..."
        )
    data = read_all(sys.stdin.buffer, "standard input")
    if not data:
        raise InputError("'-' means standard input, which is empty; pipe an image into it")
    return data


def split_image_names(text: str) -> list[str]:
    """Split a text into paths and URIs, written as for a shell or as a terminal writes dropped files.

    A text that is the exact name of a file, also with blanks and quotes, is one path. Otherwise blanks
    separate paths, except inside quotes or, but not on Windows, after a backslash. A data URI is never split.

    Raises:
        InputError: the text has no path, or has ``-``.
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
    except ValueError:  # a quote that is not closed is a part of the name
        names = [text]
    return check_image_names(names)


def check_image_names(names: list[str]) -> list[str]:
    """Return the names of images unchanged.

    Raises:
        InputError: a name is ``-``, but standard input has the questions.
    """
    if "-" in names:
        raise InputError(
            "'-' cannot be an image here: the conversation comes from standard input; pass a file"
        )
    return names
