"""``edgevlm verify``: is a bundle sound, and does it answer here as it should?"""

from __future__ import annotations

import argparse
import sys

from edgevlm.bundle import Bundle

HELP = """\
Check a bundle: every file's size and SHA-256, that every precision loads on this machine, and that
the stored golden answer of the checkpoint comes out. Exit code 1 if anything is wrong."""

EXAMPLES = """\
  edgevlm verify edgevlm-nano
  edgevlm verify ./smolvlm-256m"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a built-in name, a folder or a hub repository"
    )


def run(arguments: argparse.Namespace) -> int:
    from edgevlm.verification import check_golden

    bundle = Bundle.open(arguments.bundle)
    bundle.check_hashes()
    print(f"files   {len(bundle.manifest.files())} as exported")
    if bundle.manifest.golden is None:
        print("edgevlm: the bundle stores no golden answer; it is only loaded", file=sys.stderr)
    failed = False
    for check in check_golden(bundle):
        failed |= not check.passed
        found = (
            f"golden tokens {check.agreeing} of {check.positions}" if check.positions else "loads"
        )
        verdict = "" if check.passed else "  WRONG"
        print(f"vision {check.vision:6}  decoder {check.decoder:8}  {found}{verdict}", flush=True)
    if failed:
        print(
            "edgevlm: error: this bundle does not answer as its checkpoint did; get it again, and "
            "if that does not help see 'edgevlm doctor'",
            file=sys.stderr,
        )
    return int(failed)
