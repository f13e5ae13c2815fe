"""``optimum-cli export edgevlm``: the same command as ``edgevlm export``, where optimum's users look."""

from __future__ import annotations

import argparse
import sys

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from edgevlm.errors import EdgeVLMError
from edgevlm.export import cli


class EdgeVLMExportCommand(BaseOptimumCLICommand):
    """Registered by ``register/edgevlm.py``."""

    COMMAND = CommandInfo(
        name="edgevlm", help="Export vision-language models to an edgevlm bundle (ONNX and GGUF)."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.description = cli.HELP
        cli.add_arguments(parser)

    def run(self) -> None:
        try:
            code = cli.run(self.args)
        except EdgeVLMError as error:
            print(f"optimum-cli export edgevlm: error: {error}", file=sys.stderr)
            code = 1
        sys.exit(code)
