"""``edgevlm demo``: the chat of `edgevlm.demo.app` as a subcommand."""

from __future__ import annotations

import argparse
import sys
import time

from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)

HELP = "Talk about pictures in the browser: a page on this machine, 127.0.0.1, and nowhere else."

EXAMPLES = """\
  edgevlm demo
  edgevlm demo --model ./smolvlm-256m --port 8080"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--port",
        type=_port,
        metavar="P",
        help="port of the page (default: the first free one from 7860)",
    )


def run(arguments: argparse.Namespace) -> int:
    from edgevlm.demo.app import build, launch

    with load_model(arguments) as vlm:
        page = build(vlm, generation_options(arguments))
        address = launch(page, arguments.port)
        print(f"edgevlm: {address} shows the page, Ctrl-C ends it", file=sys.stderr)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, is {text}")
    return int(text)
