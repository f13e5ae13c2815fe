"""``edgevlm bench``: measure the speed of a bundle, and compare it with the limits of the machine."""

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
    from edgevlm.benchmark import DecoderSpeed, ImageSpeed, MachineLimits
    from edgevlm.manifest import FileEntry

HELP = """\
Measure the speed of a bundle on this machine, and compare it with the limits of its memory and cores. Each
vision runtime, precision and decoder is measured in its own process. Stop other programs first."""

EXAMPLES = """\
  edgevlm bench
  edgevlm bench ./smolvlm-256m --image photo.jpg --device openvino
  edgevlm bench ./smolvlm-256m --threads 4 --json > bench.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
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
        help="device that encodes images (default: the CPU with each installed runtime, and CUDA)",
    )
    parser.add_argument(
        "--threads",
        metavar="N",
        type=options.positive_integer,
        help="number of threads of each runtime (default: each runtime chooses)",
    )
    options.add_kv_option(parser)
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=options.positive_integer,
        default=5,
        help="number of measurements, of which the median is shown (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm import benchmark
    from edgevlm.evaluation.report import versions
    from edgevlm.inputs.images import load_image
    from edgevlm.runtimes import system

    bundle = Bundle.open(arguments.bundle)
    image = benchmark.camera_frame()
    if arguments.image is not None:
        (source,) = images.read_image_arguments([arguments.image])
        image = load_image(source)
    limits = benchmark.measure_limits()
    settings = benchmark.settings(
        bundle, arguments.bundle, arguments.device, arguments.threads, arguments.kv
    )
    speeds: list[ImageSpeed] = []
    decoders: dict[str, DecoderSpeed] = {}
    for setting in settings:
        name = f"vision {setting.vision}, decoder {setting.decoder}, device {setting.device}"
        print(f"edgevlm: {name}", file=sys.stderr)
        try:
            speed = benchmark.measure_image(setting, image, arguments.rounds)
            speeds.append(speed)
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
        "kv": arguments.kv,
    }
    size = [image.shape[1], image.shape[0]]
    if arguments.json:
        result = about | {
            "picture": size,
            "versions": versions(),
            "ceilings": dataclasses.asdict(limits),
            "pictures": [dataclasses.asdict(speed) for speed in speeds],
            "decoders": [dataclasses.asdict(speed) for speed in decoders.values()],
        }
        print(json.dumps(result, indent=2))
    else:
        lines = about | {"image": f"{size[0]} x {size[1]} pixels"}
        print("\n".join(f"{name:8} {value}" for name, value in lines.items()))
        print()
        print(
            format_tables(
                speeds, list(decoders.values()), limits, bundle.manifest.decoder.weight_files
            )
        )
    return 0 if speeds else 1


def format_tables(
    speeds: list[ImageSpeed],
    decoders: list[DecoderSpeed],
    limits: MachineLimits,
    files: dict[str, FileEntry],
) -> str:
    """Return tables of the cost of an image and of the speed of the decoders.

    Args:
        speeds: the measurements with an image.
        decoders: the measurements of decoders.
        limits: the limits of the machine.
        files: the files of the decoders.
    """
    lines = [
        "A question about an image, in milliseconds (memory: MB of the whole process)",
        "vision  decoder     load  prepare   encode (tiles)  prefill  first token  next question  memory  on",
    ]
    for speed in speeds:
        memory = "" if speed.peak_memory is None else f"{speed.peak_memory / 1e6:.0f}"
        lines.append(
            f"{speed.vision:7} {speed.decoder:8} {speed.load_ms:7.0f} {speed.prepare_ms:8.1f} "
            f"{speed.encode_ms:8.1f} {f'({speed.tiles})':7} {speed.prefill_ms:8.1f} "
            f"{speed.first_token_ms:12.1f} {speed.next_question_ms:14.1f} {memory:>7}  {speed.device}"
        )
    lines += [
        "",
        f"The decoder; this machine reads {limits.read_rate / 1e9:.1f} GB/s and computes "
        f"{limits.multiply_rate / 1e9:.0f} GFLOPS in float32",
        "decoder   prefill/s  share of GFLOPS   tokens/s  share of GB/s   the same after a text of 16",
    ]
    for decoder in decoders:
        entry = files[decoder.decoder]
        weights = entry.size * 8 / entry.bits_per_weight if entry.bits_per_weight else 0
        computed = 2 * weights * decoder.prefill_rate / limits.multiply_rate
        read_time = entry.size / limits.read_rate  # seconds to read each weight once
        lines.append(
            f"{decoder.decoder:8} {decoder.prefill_rate:10.0f} {computed:15.0%}  "
            f"{decoder.decode_rate:10.1f} {read_time * decoder.decode_rate:13.0%} "
            f"{decoder.decode_text_rate:18.1f} {read_time * decoder.decode_text_rate:10.0%}"
        )
    return "\n".join(lines)
