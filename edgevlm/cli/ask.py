"""``edgevlm ask``: answer one question."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

from edgevlm.cli import images
from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)
from edgevlm.errors import InputError
from edgevlm.results import Stats

HELP = (
    "Answer one question about one image, several images, a video, or none. "
    "The answer is streamed to stdout."
)

EXAMPLES = """\
  edgevlm ask "What is in the picture?" photo.jpg
  edgevlm ask "What differs between the two?" before.png after.png
  edgevlm ask "Describe it." photo.jpg --model ./smolvlm-256m --max-tokens 60
  edgevlm ask "How many shapes are there?" photo.jpg --json | jq .text
  edgevlm ask "What happens?" --video clip.mp4 --model ./smolvlm2-256m --frames 8
  curl -s https://example.com/photo.jpg | edgevlm ask "What is this?" -"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    parser.add_argument(
        "question", metavar="QUESTION", type=_question, help="the text after the images"
    )
    parser.add_argument("images", metavar="IMAGE", nargs="*", help=images.HELP)
    video = parser.add_argument_group("video")
    video.add_argument(
        "--video",
        metavar="FILE",
        help="a video, of which the model sees several frames, in place of images",
    )
    video.add_argument(
        "--frames",
        type=int,
        metavar="N",
        help="number of frames; with --fps, the most (default: as many as --fps asks for)",
    )
    video.add_argument(
        "--fps",
        type=float,
        metavar="RATE",
        help="frames in a second (default: those of the checkpoint)",
    )
    add_model_options(parser)
    add_generation_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object with text, finish_reason, stats and model",
    )
    output.add_argument(
        "--stats", action="store_true", help="print the time of each phase to stderr"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    if arguments.video is None and (arguments.frames, arguments.fps) != (None, None):
        raise InputError("--frames and --fps are about a video; add --video FILE")
    if arguments.video is not None and arguments.images:
        raise InputError("the question is about images or about a video; leave out one of them")
    sources = images.read_image_arguments(arguments.images)
    with load_model(arguments) as vlm:
        options = generation_options(arguments)
        if arguments.video is None:
            chunks = vlm.stream(sources, arguments.question, **options)
        else:
            chunks = vlm.stream_video(
                arguments.video,
                arguments.question,
                frames=arguments.frames,
                fps=arguments.fps,
                **options,
            )
        text = []
        for chunk in chunks:
            text.append(chunk.text)
            if not arguments.json:
                print(chunk.text, end="", flush=True)
        if not arguments.json:
            print(flush=True)
        if chunk.finish_reason == "deadline":
            print("edgevlm: the time was over before the end of the answer", file=sys.stderr)
        if chunk.stats is not None and arguments.json:
            answer = {
                "text": "".join(text),
                "finish_reason": chunk.finish_reason,
                "stats": dataclasses.asdict(chunk.stats)
                | {"tokens_per_second": chunk.stats.tokens_per_second},
                "model": vlm.manifest.name,
            }
            print(json.dumps(answer, ensure_ascii=False))
        if chunk.stats is not None and arguments.stats:
            device = f"vision {vlm.vision_device}, decoder {vlm.decoder_device}"
            print(format_stats(chunk.stats, device), file=sys.stderr)
    return 0


def format_stats(stats: Stats, device: str) -> str:
    """Return a table of the time of each phase.

    Args:
        stats: the statistics of an answer.
        device: the devices of the model, for the last line.
    """
    drafted = f" ({stats.accepted_draft_tokens} from drafts)" if stats.accepted_draft_tokens else ""
    rows = [
        ("load", stats.load_ms, "open the bundle and both runtimes"),
        ("prepare", stats.prepare_ms, "read and split images, render and tokenize the prompt"),
        ("encode", stats.encode_ms, f"vision graph, tiles: {stats.encoded_tiles}"),
        (
            "prefill",
            stats.prefill_ms,
            f"decoder, new positions of the prompt: {stats.prompt_tokens - stats.cached_tokens}",
        ),
        (
            "decode",
            stats.decode_ms,
            f"decoder, tokens of the answer: {stats.answer_tokens}{drafted}, "
            f"per second: {stats.tokens_per_second:.0f}",
        ),
        (
            "total",
            stats.load_ms + stats.total_ms,
            f"first token {stats.first_token_ms:.0f} ms after loading",
        ),
    ]
    lines = [f"{name:8}{ms:9.1f} ms  {what}" for name, ms, what in rows]
    if stats.peak_memory is not None:
        lines.append(f"memory  {stats.peak_memory / 1e6:9.0f} MB  maximum of the process")
    return "\n".join([*lines, f"on      {device}"])


def _question(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text
