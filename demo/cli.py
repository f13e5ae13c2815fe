"""``edgevlm demo``: the page of `edgevlm.demo.app` as a subcommand."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    port,
)

HELP = """\
Talk about pictures in the browser, watch a camera, look inside and compare models: a page on this machine,
127.0.0.1, and nowhere else. What is uploaded is deleted when the command ends."""

EXAMPLES = """\
  edgevlm demo
  edgevlm demo --model ./smolvlm-256m --port 8080"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_options(parser)
    add_generation_options(parser)
    parser.add_argument(
        "--port",
        type=port,
        metavar="P",
        help="port of the page (default: the first free one from 7860)",
    )


def run(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="edgevlm-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when the page is built
        from edgevlm.demo.app import build, launch
        from edgevlm.demo.models import Models

        models = Models(
            arguments.model or DEFAULT_MODEL, device=arguments.device, threads=arguments.threads
        )
        with models.lease(None):
            pass  # a model that was asked for by name and cannot be loaded ends the command
        page = build(models, generation_options(arguments))
        address = launch(page, arguments.port)
        print(f"edgevlm: {address} shows the page, Ctrl-C ends it", file=sys.stderr)
        try:
            while True:
                time.sleep(3600)
        finally:
            page.close(verbose=False)
            models.close()
