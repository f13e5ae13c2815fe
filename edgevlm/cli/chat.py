"""``edgevlm chat``: talk with the model in the terminal."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from edgevlm.cli.images import check_image_names, split_image_names
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
Talk about images. Each line of the terminal or of a pipe is a turn; its answer is streamed to stdout.

  /image PATH ...  add images to the next turn. A path can be in quotes, begin with ~, or be a
                   file:// URL or a data URI, as terminals write them for a dropped file
  /new             start a new conversation
  /save FILE       write the conversation into a file, for --resume
  /quit            leave (the end of the input does the same)

Ctrl-C stops an answer. In a pipe, questions after a failed /image are not answered until another /image
works, or /new starts a new conversation."""

EXAMPLES = """\
  edgevlm chat photo.jpg
  edgevlm chat --model ./smolvlm-256m --temperature 0.7
  edgevlm chat --resume kitchen.zip
  printf '/image a.png\\nWhat is this?\\nAnd its color?\\n' | edgevlm chat"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="images of the first turn")
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--overflow",
        choices=("error", "drop_images", "drop_turns"),
        default="error",
        help="if a turn does not fit the context: refuse it, drop the images of the oldest turns, or drop "
        "the oldest turns (default: %(default)s)",
    )
    parser.add_argument(
        "--resume",
        metavar="FILE",
        help="continue a conversation that /save wrote with the same bundle; its --overflow stays",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm.inputs.images import load_images

    images = load_images(check_image_names(arguments.images))
    options = generation_options(arguments)
    interactive = sys.stdin.isatty()
    failed = False
    lacks_image = False
    with load_model(arguments) as vlm:
        if interactive:
            print(
                "/image PATH adds an image, /new starts again, /save FILE saves, /quit leaves",
                file=sys.stderr,
            )
        if arguments.resume is None:
            chat = vlm.chat(overflow=arguments.overflow)
        else:
            chat = vlm.load_chat(arguments.resume)
        for line in _lines(interactive):
            command, rest, *_ = [*line.split(maxsplit=1), ""]
            try:
                if command == "/quit":
                    break
                if command == "/new":
                    chat = vlm.chat(overflow=arguments.overflow)
                    images, lacks_image = [], False
                elif command == "/image":
                    lacks_image = not interactive  # a person sees the error and decides
                    images += load_images(split_image_names(rest))
                    lacks_image = False
                elif command == "/save":
                    if not rest:
                        raise InputError("/save needs the name of a file: /save FILE")
                    chat.save(Path(rest).expanduser())
                elif command.startswith("/"):
                    raise InputError(
                        f"no command {command[:60]}; use /image PATH, /new, /save FILE or /quit"
                    )
                elif lacks_image:
                    images = []  # the other images of this turn are not for the next one
                    raise InputError(f"{shorten(line)} is not answered: its /image failed")
                else:
                    _stream_turn(chat, line, images, options)
                    images = []
            except EdgeVLMError as error:
                print(f"edgevlm: error: {error}", file=sys.stderr)
                failed = True
    return int(failed and not interactive)


def _stream_turn(
    chat: Chat, line: str, images: list[NDArray[np.uint8]], options: GenerationOptions
) -> None:
    """Stream one answer. Ctrl-C stops the answer, not the conversation."""
    with closing(chat.stream(line, images=images, **options)) as chunks:
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
                    print(f"\nedgevlm: dropped the oldest: {dropped}", file=sys.stderr, end="")
        except KeyboardInterrupt:
            print(" [stopped]", end="", file=sys.stderr, flush=True)
    print(flush=True)


def _lines(interactive: bool) -> Iterator[str]:
    """Yield the lines of standard input that are not blank."""
    if interactive:
        import readline  # noqa: F401  (gives input() line editing and history)
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # file names may have another encoding
    while True:
        try:
            # input() writes its prompt to stdout, which is for answers only unless it is a terminal.
            prompt = "> " if interactive and sys.stdout.isatty() else ""
            line = input(prompt).strip()
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        if line:
            yield line
