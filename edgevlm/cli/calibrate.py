"""``edgevlm calibrate``: measure the temperature that makes the probabilities of `VLM.choose` fit."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from edgevlm.bundle import BUILT_IN, Bundle, sha256
from edgevlm.choice_calibration import FILE_NAME, MeasuredTemperature
from edgevlm.cli.progress import print_progress
from edgevlm.errors import InputError

HELP = """\
Calibrate the probabilities of VLM.choose: of the choices with probability 0.8, 80 % shall be right. The
bundle scores the choices of questions whose right choice is known. One temperature is fitted to them, and
stored in the bundle, in choice_calibration.json. From then on VLM.choose divides the log-probabilities by
it. The report compares the probabilities before and after. For "after", each question is scored with a
temperature that was fitted to other questions."""

EXAMPLES = """\
  edgevlm calibrate ./smolvlm-256m mine/questions.jsonl
  edgevlm calibrate edgevlm-nano test-set/questions.jsonl --dry-run --json > result.json

A line of a question file; paths are relative to the file, lines without "choices" are left out:
  {"images": ["a.png"], "turns": ["Which way is free?"], "answers": ["left"], "choices": ["left", "right"]}

'edgevlm eval --write test-set' writes a question file about drawings."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a built-in name, a folder or a hub repository"
    )
    parser.add_argument(
        "questions",
        metavar="QUESTIONS",
        help="question file (JSON Lines) as for 'edgevlm eval', with choices",
    )
    parser.add_argument(
        "--vision",
        metavar="P",
        help="precision of the vision graph (default: chosen by the device)",
    )
    parser.add_argument(
        "--decoder",
        metavar="T",
        help="type of the decoder (default: the preferred one of the bundle)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the report, and store no temperature"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm.evaluation import calibration, calibration_report, dataset, report
    from edgevlm.vlm import VLM

    bundle = Bundle.open(arguments.bundle)
    if not arguments.dry_run:
        _check_folder(bundle, arguments.questions)
    items = dataset.read(arguments.questions)
    questions_file = sha256(Path(arguments.questions))
    chosen = [item for item in items if item.choices]
    if len(chosen) < len(items):
        print(
            f"edgevlm: {len(chosen)} of {len(items)} questions have choices; the others are left out",
            file=sys.stderr,
        )
    with VLM.from_pretrained(
        bundle.folder, vision=arguments.vision, decoder=arguments.decoder
    ) as vlm:
        progress = print_progress(vlm.manifest.name, len(chosen))
        result = calibration.calibrate(calibration.score_choices(vlm, chosen, progress))
        device = f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"
        files = vlm.vision_file, vlm.decoder_file
    measured = MeasuredTemperature(
        vision=files[0].sha256,
        decoder=files[1].sha256,
        temperature=result.temperature,
        questions=result.questions,
        questions_file=questions_file,
        error_before=result.before.calibration_error.mean,
        error_after=result.after.calibration_error.mean,
        device=device,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    if arguments.json:
        about = {
            "model": bundle.manifest.name,
            "files": [entry.name for entry in files],
            "device": device,
            "date": measured.date,
            "versions": report.versions(),
            "question_file": arguments.questions,
        }
        print(json.dumps(about | calibration_report.as_dict(result), indent=2), flush=True)
    else:
        print(calibration_report.markdown(result), flush=True)
    if not arguments.dry_run:
        bundle.choice_calibration.with_temperature(measured).save(bundle.folder)
        print(
            f"edgevlm: temperature {result.temperature:.2f} of {files[0].name} with {files[1].name} stored "
            f"in {bundle.folder / FILE_NAME}",
            file=sys.stderr,
        )
    return 0


def _check_folder(bundle: Bundle, questions: str) -> None:
    """Check before the measurement that its result can be stored.

    Raises:
        InputError: the bundle is part of the package, or its folder is read-only.
    """
    copy = f"./{bundle.folder.name}"
    remedy = (
        f"copy it and calibrate the copy: cp -rL {shlex.quote(str(bundle.folder))} {shlex.quote(copy)} && "
        f"edgevlm calibrate {shlex.quote(copy)} {shlex.quote(questions)}; or only measure with --dry-run"
    )
    if bundle.folder.parent == BUILT_IN:
        raise InputError(
            f"{bundle.folder.name} is part of the edgevlm package, which an update overwrites; {remedy}"
        )
    if not os.access(bundle.folder, os.W_OK):
        raise InputError(f"the bundle folder {bundle.folder} cannot be written to; {remedy}")
