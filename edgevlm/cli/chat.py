"""``edgevlm chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)
from edgevlm.errors import EdgeVLMError, InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgevlm.chat import Chat
    from edgevlm.generation import GenerationOptions

HELP = """\
Talk about pictures. Each line is a turn, and its answer streams to stdout; lines may also come
from a pipe.

  /image PATH  show a picture with the next turn
  /new         forget the conversation
  /quit        leave (as does the end of input)

Ctrl-C stops an answer."""

EXAMPLES = """\
  edgevlm chat photo.jpg
  edgevlm chat --model ./smolvlm-256m --temperature 0.7
  printf '/image a.png\\nWhat is this?\\nAnd its color?\\n' | edgevlm chat"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="pictures of the first turn")
    add_model_options(parser)
    add_generation_options(parser)


def run(arguments: argparse.Namespace) -> int:
    from edgevlm.images import load_image

    pictures = [load_image(path) for path in arguments.images]
    options = generation_options(arguments)
    interactive = sys.stdin.isatty()
    failed = False
    with load_model(arguments) as vlm:
        if interactive:
            print("/image PATH shows a picture, /new starts again, /quit leaves", file=sys.stderr)
        chat = vlm.chat()
        for line in _lines(interactive):
            command, _, rest = line.partition(" ")
            try:
                if command == "/quit":
                    break
                if command == "/new":
                    chat, pictures = vlm.chat(), []
                elif command == "/image":
                    pictures.append(load_image(rest.strip()))
                elif command.startswith("/"):
                    raise InputError(f"no command {command}: it is one of /image PATH, /new, /quit")
                else:
                    _take_turn(chat, line, pictures, options)
                    pictures = []
            except EdgeVLMError as error:
                print(f"edgevlm: error: {error}", file=sys.stderr)
                failed = True
    return int(failed and not interactive)


def _take_turn(
    chat: Chat, line: str, pictures: list[NDArray[np.uint8]], options: GenerationOptions
) -> None:
    """Stream one answer; Ctrl-C stops it, and the conversation goes on."""
    with closing(chat.stream(line, images=pictures, **options)) as chunks:
        try:
            for chunk in chunks:
                print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr, flush=True)
    print(flush=True)


def _lines(interactive: bool) -> Iterator[str]:
    """What is typed or piped in, without blank lines."""
    if interactive:
        import readline  # noqa: F401  (gives input() line editing and history)
    while True:
        try:
            # input() writes its prompt to stdout, which is for answers alone if it is no terminal.
            prompt = "> " if interactive and sys.stdout.isatty() else ""
            line = input(prompt).strip()
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        if line:
            yield line
