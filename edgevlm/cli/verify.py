"""``edgevlm verify``: check the files of a bundle and its answers on this machine."""

from __future__ import annotations

import argparse
import sys

from edgevlm.bundle import Bundle

HELP = """\
Check a bundle: the size and SHA-256 of each file, that each precision loads on this machine, and that it
gives the stored golden answer of the checkpoint. The exit code is 1 if a check fails."""

EXAMPLES = """\
  edgevlm verify edgevlm-nano
  edgevlm verify ./smolvlm-256m"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a built-in name, a folder or a hub repository"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm.verification import check_golden

    bundle = Bundle.open(arguments.bundle)
    bundle.check_hashes()
    print(f"files   {len(bundle.manifest.files())} as exported")
    if bundle.manifest.golden is None:
        print("edgevlm: the bundle has no golden answer; it is only loaded", file=sys.stderr)
    for name in bundle.manifest.decoder.choices.keys() - bundle.usable_decoders.keys():
        print(
            f"edgevlm: the decoder {name} is not checked, since llama-cpp-python is not installed",
            file=sys.stderr,
        )
    failed = False
    for check in check_golden(bundle):
        failed |= not check.passed
        result = (
            f"golden tokens {check.agreeing} of {check.positions}" if check.positions else "loads"
        )
        failure = "" if check.passed else "  WRONG"
        print(f"vision {check.vision:6}  decoder {check.decoder:8}  {result}{failure}", flush=True)
    if failed:
        print(
            "edgevlm: error: this bundle does not answer as its checkpoint does; copy or export it again, "
            "and if this does not help, run 'edgevlm doctor'",
            file=sys.stderr,
        )
    return int(failed)
