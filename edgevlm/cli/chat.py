"""``edgevlm chat``: a conversation in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from edgevlm.cli.images import file_images, named_images
from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)
from edgevlm.errors import EdgeVLMError, InputError
from edgevlm.inputs.data_uri import shorten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgevlm.chat import Chat
    from edgevlm.options import GenerationOptions

HELP = """\
Talk about pictures. Each line is a turn, and its answer streams to stdout; lines may also come
from a pipe.

  /image PATH  show a picture with the next turn; several paths show several. A path may be
               quoted, begin with ~, be a file:// URL or a data URI: what a terminal writes
               when a file is dropped on it
  /new         forget the conversation
  /quit        leave (as does the end of input)

Ctrl-C stops an answer. In a pipe, questions after an /image that failed are not answered until
another /image works or /new begins a conversation without it."""

EXAMPLES = """\
  edgevlm chat photo.jpg
  edgevlm chat --model ./smolvlm-256m --temperature 0.7
  printf '/image a.png\\nWhat is this?\\nAnd its color?\\n' | edgevlm chat"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="images of the first turn")
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--overflow",
        choices=("error", "drop_images", "drop_turns"),
        default="error",
        help="once a turn no longer fits the context: refuse it, or drop the oldest turns, their "
        "pictures first or at once (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    from edgevlm.inputs.images import load_images

    pictures = load_images(file_images(arguments.images))
    options = generation_options(arguments)
    interactive = sys.stdin.isatty()
    failed = False
    lacks_image = False
    with load_model(arguments) as vlm:
        if interactive:
            print("/image PATH shows a picture, /new starts again, /quit leaves", file=sys.stderr)
        chat = vlm.chat(overflow=arguments.overflow)
        for line in _lines(interactive):
            command, rest, *_ = [*line.split(maxsplit=1), ""]
            try:
                if command == "/quit":
                    break
                if command == "/new":
                    chat = vlm.chat(overflow=arguments.overflow)
                    pictures, lacks_image = [], False
                elif command == "/image":
                    lacks_image = not interactive  # until it is loaded; who sees the error decides
                    pictures += load_images(named_images(rest))
                    lacks_image = False
                elif command.startswith("/"):
                    raise InputError(
                        f"no command {command[:60]}: it is one of /image PATH, /new, /quit"
                    )
                elif lacks_image:
                    pictures = []  # what was shown with this question is not the next one's
                    raise InputError(f"{shorten(line)} is not answered: its /image failed")
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
                if (
                    chunk.stats is not None
                    and chunk.stats.dropped_turns + chunk.stats.dropped_images
                ):
                    dropped = (
                        f"{chunk.stats.dropped_turns} turns, {chunk.stats.dropped_images} images"
                    )
                    print(f"\nedgevlm: dropped of the oldest: {dropped}", file=sys.stderr, end="")
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr, flush=True)
    print(flush=True)


def _lines(interactive: bool) -> Iterator[str]:
    """What is typed or piped in, without blank lines."""
    if interactive:
        import readline  # noqa: F401  (gives input() line editing and history)
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a file's name may be in another encoding
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
