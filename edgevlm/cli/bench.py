"""``edgevlm bench``: how fast a bundle is on this machine, beside what the machine can do."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.cli import images, options
from edgevlm.errors import EdgeVLMError

if TYPE_CHECKING:
    from edgevlm.benchmark import Ceilings, DecoderSpeed, PictureSpeed
    from edgevlm.manifest import FileEntry

HELP = """\
Measure a bundle on this machine: every vision runtime and precision, every decoder, each in a process of
its own, beside what the machine's memory and cores can do. Let nothing else run meanwhile."""

EXAMPLES = """\
  edgevlm bench
  edgevlm bench ./smolvlm-256m --image photo.jpg --device openvino
  edgevlm bench ./smolvlm-256m --threads 4 --json > bench.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from edgevlm.runtimes.devices import VISION_DEVICES

    parser.add_argument(
        "bundle",
        metavar="MODEL",
        nargs="?",
        default=DEFAULT_MODEL,
        help="a built-in name, a folder or a hub repository (default: %(default)s)",
    )
    parser.add_argument(
        "--image",
        metavar="IMAGE",
        help=f"{images.HELP} (default: a camera frame of noise, 640 x 480)",
    )
    parser.add_argument(
        "--device",
        choices=("all", *VISION_DEVICES),
        default="all",
        help="where pictures are encoded (default: every one that is installed)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=options.positive,
        help="of each runtime (default: it chooses)",
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=options.positive,
        default=5,
        help="of each measurement, of which the median counts (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print everything as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    from edgevlm import benchmark
    from edgevlm.evaluation.report import versions
    from edgevlm.inputs.images import load_image
    from edgevlm.runtimes import system

    bundle = Bundle.open(arguments.bundle)
    picture = benchmark.camera_frame()
    if arguments.image is not None:
        (source,) = images.argument_images([arguments.image])
        picture = load_image(source)
    ceilings = benchmark.ceilings()
    wanted = benchmark.settings(bundle, arguments.bundle, arguments.device, arguments.threads)
    pictures: list[PictureSpeed] = []
    decoders: dict[str, DecoderSpeed] = {}
    for setting in wanted:
        name = f"vision {setting.vision}, decoder {setting.decoder}, device {setting.device}"
        print(f"edgevlm: {name}", file=sys.stderr)
        try:
            speed = benchmark.measure_picture(setting, picture, arguments.rounds)
            pictures.append(speed)
            if setting.decoder not in decoders:
                decoders[setting.decoder] = benchmark.measure_decoder(
                    setting, speed.prompt_tokens, arguments.rounds
                )
        except EdgeVLMError as error:
            print(f"edgevlm: {name}: not measured: {error}", file=sys.stderr)
    about = {
        "model": bundle.manifest.name,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": system.cpu_model(),
        "threads": arguments.threads or system.physical_cores(),
        "picture": [picture.shape[1], picture.shape[0]],
    }
    if arguments.json:
        result = about | {
            "versions": versions(),
            "ceilings": dataclasses.asdict(ceilings),
            "pictures": [dataclasses.asdict(speed) for speed in pictures],
            "decoders": [dataclasses.asdict(speed) for speed in decoders.values()],
        }
        print(json.dumps(result, indent=2))
    else:
        print("\n".join(f"{name:8} {value}" for name, value in about.items()))
        print()
        print(describe(pictures, list(decoders.values()), ceilings, bundle.manifest.decoder.files))
    return 0 if pictures else 1


def describe(
    pictures: list[PictureSpeed],
    decoders: list[DecoderSpeed],
    ceilings: Ceilings,
    files: dict[str, FileEntry],
) -> str:
    """Tables of what a picture and what the decoder costs, with the share of the machine's ceilings."""
    lines = [
        "A picture, milliseconds (memory: MB of the whole process)",
        "vision  decoder     load  prepare   encode (tiles)  prefill  first token  next question  memory  on",
    ]
    for one in pictures:
        memory = "" if one.peak_memory is None else f"{one.peak_memory / 1e6:.0f}"
        lines.append(
            f"{one.vision:7} {one.decoder:8} {one.load_ms:7.0f} {one.prepare_ms:8.1f} "
            f"{one.encode_ms:8.1f} {f'({one.tiles})':7} {one.prefill_ms:8.1f} "
            f"{one.first_token_ms:12.1f} {one.next_question_ms:14.1f} {memory:>7}  {one.device}"
        )
    lines += [
        "",
        f"The decoder; this machine reads {ceilings.read_rate / 1e9:.1f} GB/s and multiplies "
        f"{ceilings.multiply_rate / 1e9:.0f} GFLOPS in float32",
        "decoder   prefill/s  share of GFLOPS   tokens/s  share of GB/s   the same after a text of 16",
    ]
    for each in decoders:
        entry = files[each.decoder]
        weights = entry.size * 8 / entry.bits_per_weight if entry.bits_per_weight else 0
        multiplied = 2 * weights * each.prefill_rate / ceilings.multiply_rate
        read = entry.size / ceilings.read_rate  # seconds to read every weight once
        lines.append(
            f"{each.decoder:8} {each.prefill_rate:10.0f} {multiplied:15.0%}  {each.decode_rate:10.1f} "
            f"{read * each.decode_rate:13.0%} {each.decode_text_rate:18.1f} "
            f"{read * each.decode_text_rate:10.0%}"
        )
    return "\n".join(lines)
