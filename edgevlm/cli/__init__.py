"""The command line: a table of subcommands and their modules. Only the chosen module is imported.

The module of a subcommand has the texts ``HELP`` and ``EXAMPLES``, and the functions
``add_arguments(parser)`` and ``run(arguments) -> int``. Answers go to stdout, everything else to stderr. Exit
codes: 0 for success, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C, 141 for a closed output pipe.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import edgevlm
from edgevlm.errors import EdgeVLMError


class Command(NamedTuple):
    """A subcommand."""

    module: str
    """Name of its module."""
    summary: str
    """Summary in ``edgevlm --help``."""


COMMANDS = {
    "ask": Command("edgevlm.cli.ask", "answer a question about images"),
    "detect": Command("edgevlm.cli.detect", "find a thing on an image"),
    "chat": Command("edgevlm.cli.chat", "talk about images in the terminal"),
    "watch": Command(
        "edgevlm.cli.watch", "ask about the newest frame of a camera, again and again"
    ),
    "export": Command("edgevlm.export.cli", "make a bundle from a checkpoint"),
    "inspect": Command("edgevlm.cli.inspect", "show the content of a bundle"),
    "verify": Command("edgevlm.cli.verify", "check the files and the golden answer of a bundle"),
    "eval": Command("edgevlm.cli.eval", "measure how well a bundle answers"),
    "calibrate": Command(
        "edgevlm.cli.calibrate", "make the probabilities of a bundle's choices fit"
    ),
    "bench": Command("edgevlm.cli.bench", "measure how fast a bundle is on this machine"),
    "doctor": Command("edgevlm.cli.doctor", "find problems of edgevlm on this machine"),
    "serve": Command("edgevlm.cli.serve", "serve a model over HTTP with OpenAI's API"),
    "demo": Command("edgevlm.demo.cli", "talk about images in the browser"),
}

WRITE_ERRORS = (errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC)
"""Numbers of the errors that only come from writing to stdout."""

EPILOG = """\
commands:
{commands}

examples:
  edgevlm ask "What is in the picture?" photo.jpg
  edgevlm chat photo.jpg
  edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m

'edgevlm COMMAND --help' shows the options of a command.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: the arguments; None: those of the process.

    Returns:
        The exit code.

    Raises:
        SystemExit: after ``--help`` or ``--version`` (0), or on wrong usage (2).
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may have characters that the encoding of the terminal does not have.
        sys.stdout.reconfigure(errors="replace")
    try:
        code = _run(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except EdgeVLMError as error:
        print(f"edgevlm: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _discard_output()
        return 141
    except OSError as error:  # such as a full disk
        reason = f"cannot write the output: {error.strerror}"
        print(
            f"edgevlm: error: {reason if error.errno in WRITE_ERRORS else error}", file=sys.stderr
        )
        _discard_output()
        return 1
    return code


def _open_closed_streams() -> None:
    """Open empty streams if the process was started with closed ones (``<&-``, ``>&-``).

    Otherwise the next opened file would get the number of the closed stream. Writing to a closed stdout is
    still an error.
    """
    for name, flags in (
        ("stdin", os.O_RDONLY),
        ("stdout", os.O_RDONLY),
        ("stderr", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))


def _discard_output() -> None:
    """Discard the buffer of stdout, since writing it at exit would raise an error again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        _show_help(arguments)
    name, *rest = arguments
    module = importlib.import_module(COMMANDS[name].module)
    code: int = module.run(command_parser(name).parse_args(rest))
    return code


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a subcommand, one of `COMMANDS`."""
    module = importlib.import_module(COMMANDS[name].module)
    parser = argparse.ArgumentParser(
        prog=f"edgevlm {name}",
        description=module.HELP,
        epilog=f"examples:\n{module.EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    return parser


def _show_help(arguments: Sequence[str]) -> NoReturn:
    """Show help, version or an error for a command line without a known subcommand."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="edgevlm",
        usage="edgevlm COMMAND ...",
        description="Run small vision-language models on this machine.",
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgevlm {edgevlm.__version__}")
    _, unknown = parser.parse_known_args(arguments)
    if not unknown:
        parser.error(f"a command is missing; use one of {', '.join(COMMANDS)}")
    parser.error(f"no command {unknown[0]!r}; use one of {', '.join(COMMANDS)}")
