"""``edgevlm eval``: measure how well a bundle answers questions about images that training never used."""

from __future__ import annotations

import argparse
import contextlib
import sys
from datetime import datetime, timezone
from pathlib import Path

from edgevlm.bundle import DEFAULT_MODEL
from edgevlm.cli import options
from edgevlm.cli.progress import print_progress
from edgevlm.errors import InputError

HELP = """\
Ask a bundle questions with known answers: those of the built-in test set, whose images are drawn from a seed
that training never uses, or those of your own file. The first 100 questions of each task are asked again with
the image of another question and with a grey image. A model that uses its images is then right only by
chance. With a reference, its next-token distributions are compared with those of the bundle, at each position
of the reference's own answers."""

EXAMPLES = """\
  edgevlm eval edgevlm-nano
  edgevlm eval edgevlm-nano --reference training/nano --json result.json
  edgevlm eval ./smolvlm-256m --questions mine/questions.jsonl
  edgevlm eval ./smolvlm-256m --vision int8 --reference ./smolvlm-256m --questions mine/questions.jsonl
  edgevlm eval --write test-set --items 20

A line of a question file; paths are relative to the file:
  {"task": "colors", "images": ["a.png"], "turns": ["What color is it?"], "answers": ["red"]}"""

ITEMS_PER_TASK = 300
COMPARED_ITEMS_PER_TASK = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a built-in name, a folder or a hub repository (default: %(default)s)",
    )
    parser.add_argument(
        "--items",
        metavar="N",
        type=options.positive_integer,
        help=f"limit of questions for each task (default: {ITEMS_PER_TASK}, with a reference "
        f"{COMPARED_ITEMS_PER_TASK}; for a file: no limit)",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--questions",
        metavar="FILE",
        help="ask the questions of this file (JSON Lines) instead of the built-in test set",
    )
    source.add_argument(
        "--write",
        metavar="FOLDER",
        help="write the built-in test set to this folder, with PNG images, and ask nothing",
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
    options.add_kv_option(parser)
    parser.add_argument(
        "--reference",
        metavar="MODEL",
        help="compare with this model: the folder of a checkpoint, which runs in transformers in float32 "
        "(needs edgevlm[export]), or a bundle",
    )
    parser.add_argument(
        "--reference-vision",
        metavar="P",
        help="precision of the vision graph of a reference that is a bundle (default: the most exact one)",
    )
    parser.add_argument(
        "--reference-decoder",
        metavar="T",
        help="type of the decoder of a reference that is a bundle (default: the most exact one)",
    )
    parser.add_argument(
        "--json", metavar="FILE", type=Path, help="write all figures and answers to this file"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm.evaluation import dataset, report, runner, test_set
    from edgevlm.evaluation.comparison import compare
    from edgevlm.evaluation.references import open_reference
    from edgevlm.vlm import VLM

    if arguments.write:
        if arguments.reference or arguments.json:
            raise InputError("--write asks nothing; leave out --reference and --json")
        count = dataset.write(arguments.write, test_set.items(arguments.items or ITEMS_PER_TASK))
        print(f"edgevlm: {count} questions in {arguments.write}", file=sys.stderr)
        return 0
    if arguments.json and not arguments.json.absolute().parent.is_dir():
        raise InputError(f"--json: the folder {str(arguments.json.parent)!r} does not exist")
    if not arguments.reference and (arguments.reference_vision or arguments.reference_decoder):
        raise InputError("there is no reference to choose precisions of; add --reference MODEL")
    if arguments.questions:
        items = dataset.read(arguments.questions)
        if arguments.items:
            items = list(runner.first_per_task(items, arguments.items).values())
    else:
        per_task = COMPARED_ITEMS_PER_TASK if arguments.reference else ITEMS_PER_TASK
        items = list(test_set.items(arguments.items or per_task))
    with contextlib.ExitStack() as stack:
        vlm = stack.enter_context(
            VLM.from_pretrained(
                arguments.bundle,
                vision=arguments.vision,
                decoder=arguments.decoder,
                kv=arguments.kv,
            )
        )
        reference = None
        if arguments.reference:
            reference = open_reference(
                arguments.reference,
                vision=arguments.reference_vision,
                decoder=arguments.reference_decoder,
            )
            stack.callback(reference.close)
        name = vlm.manifest.name
        about = {
            "model": name,
            "files": [vlm.vision_file.name, vlm.decoder_file.name],
            "kv": arguments.kv,
            "device": f"vision {vlm.vision_device}, decoder {vlm.decoder_device}",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": report.versions(),
            "reference": reference.description if reference else None,
            "questions": arguments.questions,
            "seed": None if arguments.questions else test_set.SEED,
        }
        bundle = runner.BundleAnswerer(vlm)
        answered = runner.run(bundle, items, progress=print_progress(name, len(items)))
        compared = None
        if reference is not None:
            progress = print_progress(f"reference {reference.description}", len(items))
            compared = compare(vlm, reference, items, progress=progress)
    print(report.markdown(answered, compared), flush=True)
    if arguments.json:
        report.write_json(arguments.json, about | report.as_dict(answered, compared))
    return 0
