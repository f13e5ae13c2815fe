"""``edgevlm export``: a checkpoint becomes a bundle."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgevlm.export.dependencies import check_dependencies
from edgevlm.export.sizes import parse_image_size, parse_size
from edgevlm.local_bundles import remember
from edgevlm.manifest import Manifest

HELP = """\
Export a checkpoint, which is a folder or a repository on the Hugging Face hub, to a bundle. Code of the
checkpoint is never run, and pickle files are never opened. The last step compares the bundle with
transformers and refuses a bundle that gives other answers."""

EXAMPLES = """\
  edgevlm export HuggingFaceTB/SmolVLM-256M-Instruct ./smolvlm-256m
  edgevlm export ./my-finetune ./my-bundle --vision fp32,fp16,int8 --decoder f16,q8_0,q4_k_m
  edgevlm export ./my-finetune ./my-bundle --budget 150MB
  edgevlm export ./my-qwen3-vl ./my-bundle --image-size 640x480
  edgevlm export ./my-finetune ./my-bundle --decoder-gguf my-finetune.Q4_K_M.gguf"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder or a hub repository")
    parser.add_argument("out", metavar="OUT", help="the output folder; it must not exist")
    parser.add_argument(
        "--vision",
        type=names,
        metavar="LIST",
        help="precisions of the vision graph: fp32, fp16, int8, int4 (default: fp32,int8; --budget and "
        "--best choose one of all)",
    )
    decoder = parser.add_mutually_exclusive_group()
    decoder.add_argument(
        "--decoder",
        type=names,
        metavar="LIST",
        help="types of the language model: llama.cpp's f16, q8_0, q4_0, q4_k_m, ..., and ONNX graphs in "
        "fp32, fp16, int8, int4 (default: q8_0)",
    )
    decoder.add_argument(
        "--decoder-gguf", metavar="FILE", help="an existing GGUF file of the language model"
    )
    decoder.add_argument(
        "--budget",
        type=size,
        metavar="SIZE",
        help="the best vision graph and decoder that have this size together, such as 150MB: a precision of "
        "--vision, and a type for each matrix of the decoder",
    )
    decoder.add_argument(
        "--best",
        dest="goal",
        action="store_const",
        const="best",
        help="the smallest files that, by their divergence, are right as often as the exact ones",
    )
    decoder.add_argument(
        "--fast",
        dest="goal",
        action="store_const",
        const="fast",
        help="the files that answer first on this machine, among those that are right nearly as often",
    )
    parser.add_argument(
        "--decoder-runtime",
        choices=("llama.cpp", "onnx"),
        help="the runtime that --decoder is for if it is left out: onnx takes int8 (default: llama.cpp, if "
        "it has the language model)",
    )
    parser.add_argument(
        "--image-size",
        type=image_size,
        metavar="WIDTHxHEIGHT",
        help="resize all images to this size in pixels, such as 640x480, so that the vision graph has fixed "
        "shapes, as many NPUs need; for checkpoints that take images of any size",
    )
    parser.add_argument(
        "--calibration",
        metavar="FOLDER",
        help="images like those that the model will see; quantization of the vision graph and of decoders "
        "below 8 bits is fitted to them (default: photographs that come with edgevlm)",
    )
    parser.add_argument("--name", help="name of the bundle (default: the checkpoint's)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument(
        "--local-files-only", action="store_true", help="use the hub's cache, never the network"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="measure the short form of parity: relative errors on two drawings, no answers about "
        "photographs",
    )
    parser.add_argument(
        "--allow-drift",
        action="store_true",
        help="accept and record a bundle that gives other answers than its checkpoint",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    check_dependencies()
    from edgevlm.export.pipeline import export

    manifest = export(
        arguments.checkpoint,
        arguments.out,
        vision=arguments.vision,
        decoder=arguments.decoder,
        decoder_runtime=arguments.decoder_runtime,
        decoder_gguf=arguments.decoder_gguf,
        goal=arguments.budget or arguments.goal,
        image_size=arguments.image_size,
        calibration=arguments.calibration,
        name=arguments.name,
        revision=arguments.revision,
        local_files_only=arguments.local_files_only,
        quick=arguments.quick,
        allow_drift=arguments.allow_drift,
        progress=not arguments.quiet,
    )
    remember(Path(arguments.out))
    for line in summary(manifest):
        print(line, file=sys.stderr)
    print(arguments.out)
    return 0


def size(text: str) -> int:
    """Return the bytes of a size."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def image_size(text: str) -> tuple[int, int]:
    """Return width and height of a size of images."""
    try:
        return parse_image_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def names(text: str) -> tuple[str, ...]:
    """Return the names of a comma-separated list."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def summary(manifest: Manifest) -> list[str]:
    """Return a summary of the bundle: a line for each file, and for each pair of files."""
    parity = manifest.parity
    assert parity is not None
    lines = []
    for precision, entry in manifest.vision.weight_files.items():
        error = parity.vision[precision].relative_error
        lines.append(f"{entry.name:24} {entry.size / 1e6:9.1f} MB   relative error {error:.1e}")
    for file_type, entry in manifest.decoder.weight_files.items():
        drift = parity.decoder[file_type]
        lines.append(
            f"{entry.name:24} {entry.size / 1e6:9.1f} MB   relative error {drift.relative_error:.1e}   "
            f"{entry.bits_per_weight:.2f} bits per weight, same top token {drift.top1_agreement:.0%}"
        )
    if parity.answers is None:
        return [*lines, "short form of parity: answers about photographs were not measured"]
    for pair in parity.answers.pairs:
        lines.append(
            f"answers, {pair.vision} with {pair.decoder}: KL {pair.kl:.2g} nats (another image causes "
            f"{parity.answers.image_kl:.2g}), same top token {pair.top1_agreement:.0%}"
            + (", loaded on a CPU" if parity.answers.is_automatic(pair) else "")
        )
    return lines
