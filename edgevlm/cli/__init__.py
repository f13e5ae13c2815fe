"""The command line: a table from subcommand to module, of which only the chosen one is imported.

A subcommand's module offers ``HELP`` and ``EXAMPLES`` (texts), ``add_arguments(parser)`` and
``run(arguments) -> int``. Answers go to stdout, everything else to stderr. Exit codes: 0, 1 for a
failure, 2 for wrong usage, 130 after Ctrl-C, 141 if nobody reads the output any more.
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
    module: str
    summary: str


COMMANDS = {
    "ask": Command("edgevlm.cli.ask", "answer one question about pictures"),
    "chat": Command("edgevlm.cli.chat", "talk about pictures in the terminal"),
    "export": Command("edgevlm.export.cli", "make a bundle from a checkpoint"),
    "inspect": Command("edgevlm.cli.inspect", "show what a bundle holds"),
    "verify": Command("edgevlm.cli.verify", "check a bundle's files and its stored golden answer"),
    "eval": Command("edgevlm.cli.eval", "measure what a bundle sees, and whether it looks"),
    "bench": Command("edgevlm.cli.bench", "measure how fast a bundle is on this machine"),
    "doctor": Command(
        "edgevlm.cli.doctor", "look for what slows or breaks edgevlm on this machine"
    ),
    "serve": Command("edgevlm.cli.serve", "answer programs over HTTP, as OpenAI's API does"),
    "demo": Command("edgevlm.demo.cli", "talk about pictures in the browser"),
}

WRITE_ERRORS = (errno.EBADF, errno.EFBIG, errno.EIO, errno.ENOSPC)
"""Those that only writing to stdout gets here."""

EPILOG = """\
commands:
{commands}

examples:
  edgevlm ask "What is in the picture?" photo.jpg
  edgevlm chat photo.jpg
  edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct smolvlm-256m

'edgevlm COMMAND --help' says more about each.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line (`sys.argv` if None); returns the exit code.

    Raises:
        SystemExit: after ``--help`` or ``--version`` (0), or on wrong usage (2).
    """
    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # An answer may hold characters that the terminal's encoding lacks.
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
    except OSError as error:  # such as a full disk behind stdout
        reason = f"cannot write the output: {error.strerror}"
        print(
            f"edgevlm: error: {reason if error.errno in WRITE_ERRORS else error}", file=sys.stderr
        )
        _discard_output()
        return 1
    return code


def _open_closed_streams() -> None:
    """Give a process that was started with closed streams (``<&-``, ``>&-``) empty ones.

    Else the next file that is opened takes their place. Writing to an output that was closed is an error.
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
    """Let nothing be written to stdout: what is left in its buffer would raise when the interpreter ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        _refuse(arguments)
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


def _refuse(arguments: Sequence[str]) -> NoReturn:
    """Answer a command line without a subcommand: help, version or an error."""
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {entry.summary}" for name, entry in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="edgevlm",
        usage="edgevlm COMMAND ...",
        description="Small vision-language models on the machine in front of you.",
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"edgevlm {edgevlm.__version__}")
    _, unknown = parser.parse_known_args(arguments)
    if not unknown:
        parser.error(f"a command is missing: one of {', '.join(COMMANDS)}")
    parser.error(f"no command {unknown[0]!r}: it is one of {', '.join(COMMANDS)}")
