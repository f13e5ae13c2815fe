"""``edgevlm detect``: the boxes of a thing on an image, or points on it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from edgevlm.boxes import Box, Point
from edgevlm.cli import images
from edgevlm.cli.options import (
    add_generation_options,
    add_model_options,
    generation_options,
    load_model,
)
from edgevlm.errors import InputError

HELP = (
    "Find the boxes of a thing on an image. Each line is a box: left, top, right and bottom in pixels, the "
    "probability, and the name. No line means that the model finds none."
)

EXAMPLES = """\
  edgevlm detect key photo.jpg
  edgevlm detect "red key" photo.jpg --draw found.png
  edgevlm detect key photo.jpg --json | jq .boxes[0].pixels
  edgevlm detect handle photo.jpg --point --model ./qwen3-vl"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the subcommand."""
    from edgevlm.values import LOCATE_MAX_TOKENS

    parser.add_argument("thing", metavar="THING", help="the name of the thing without an article")
    parser.add_argument("image", metavar="IMAGE", help=images.HELP)
    parser.add_argument(
        "--point",
        action="store_true",
        help="find points instead of boxes: each line is column, row, probability and name",
    )
    parser.add_argument(
        "--language",
        metavar="CODE",
        default="en",
        help="language of the name, for models that know several (default: %(default)s)",
    )
    add_model_options(parser)
    add_generation_options(parser)
    parser.set_defaults(max_tokens=LOCATE_MAX_TOKENS)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--json", action="store_true", help="print one JSON object with boxes, points and model"
    )
    output.add_argument(
        "--draw", metavar="FILE", type=Path, help="draw what was found onto a copy of the image"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the subcommand and return the exit code."""
    from edgevlm.inputs.images import load_image

    if arguments.draw is not None:
        _check_image_name(arguments.draw)
    image = load_image(images.read_image_arguments([arguments.image])[0])
    options = generation_options(arguments)
    boxes: list[Box] = []
    points: list[Point] = []
    with load_model(arguments) as vlm:
        if arguments.point:
            points = vlm.point(image, arguments.thing, language=arguments.language, **options)
        else:
            boxes = vlm.detect(image, arguments.thing, language=arguments.language, **options)
        name = vlm.manifest.name
    if arguments.json:
        found = {
            "boxes": [*map(_to_json, boxes)],
            "points": [*map(_to_json, points)],
            "model": name,
        }
        print(json.dumps(found, ensure_ascii=False))
    else:
        locations: list[Box | Point] = [*boxes, *points]
        for location in locations:
            print(*location.pixels(), f"{location.probability:.2f}", location.label)
    if arguments.draw is not None:
        from PIL import Image

        from edgevlm.drawing import draw_locations

        draw_locations(Image.fromarray(image), [*boxes, *points]).save(arguments.draw)
    return 0


def _to_json(location: Box | Point) -> dict[str, object]:
    return dataclasses.asdict(location) | {"pixels": location.pixels()}


def _check_image_name(path: Path) -> None:
    """Check that an image can be saved under a name.

    Raises:
        InputError: Pillow writes no such format.
    """
    from PIL import Image

    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
        raise InputError(f"--draw {path}: no image format has this ending; use .png or .jpg")
