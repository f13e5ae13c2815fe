"""``optimum-cli export edgevlm``: the command ``edgevlm export`` for users of optimum."""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from edgevlm.errors import EdgeVLMError
from edgevlm.export import cli


class EdgeVLMExportCommand(BaseOptimumCLICommand):
    """The subcommand; ``register/edgevlm.py`` registers it."""

    COMMAND = CommandInfo(
        name="edgevlm", help="Export vision-language models to an edgevlm bundle (ONNX and GGUF)."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        """Add the arguments of ``edgevlm export``."""
        parser.description = cli.HELP
        cli.add_arguments(parser)

    def run(self) -> None:
        """Run the export and exit with its code."""
        try:
            code = cli.run(self.args)
        except EdgeVLMError as error:
            print(f"optimum-cli export edgevlm: error: {error}", file=sys.stderr)
            code = 1
        sys.exit(code)
