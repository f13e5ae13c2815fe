"""Options that several subcommands share: which model runs where, and how it answers."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from edgevlm.errors import InputError
from edgevlm.options import Generation, GenerationOptions
from edgevlm.runtimes.devices import VISION_DEVICES

if TYPE_CHECKING:
    from edgevlm.vlm import VLM

Number = TypeVar("Number", int, float)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="M",
        help="a built-in name, a bundle's folder or a hub repository (default: the built-in model)",
    )
    group.add_argument(
        "--device",
        metavar="D",
        choices=VISION_DEVICES,
        default="auto",
        help="where pictures are encoded: " + ", ".join(VISION_DEVICES) + " (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=positive,
        help="threads of each runtime (default: it chooses)",
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=_checked("max_tokens", int),
        default=Generation.max_tokens,
        help="longest answer (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=_checked("temperature", float),
        default=Generation.temperature,
        help="0 takes the most likely token each time (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        metavar="S",
        type=_checked("seed", int),
        default=Generation.seed,
        help="of the random choices above temperature 0 (default: %(default)s)",
    )
    group.add_argument(
        "--detail",
        choices=("low", "high", "auto"),
        help="pictures in one tile, split as in training, or split as far as their own pixels go "
        "(default: as the model was made)",
    )
    group.add_argument(
        "--max-image-tokens",
        metavar="N",
        type=_checked("max_image_tokens", int),
        help="positions of a picture at most, for models that split pictures",
    )


def generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    return {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "detail": arguments.detail,
        "max_image_tokens": arguments.max_image_tokens,
    }


def load_model(arguments: argparse.Namespace) -> VLM:
    """The model that was asked for; the default is said on stderr."""
    from edgevlm.bundle import DEFAULT_MODEL
    from edgevlm.vlm import VLM

    model = arguments.model
    if model is None:
        model = DEFAULT_MODEL
        print(f"edgevlm: model {model}, built in; --model takes another", file=sys.stderr)
    return VLM.from_pretrained(model, device=arguments.device, threads=arguments.threads)


def positive(text: str) -> int:
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, is {text}")
    return value


def port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be from 1 to 65535, is {text}")
    return int(text)


def _number(text: str, kind: Callable[[str], Number]) -> Number:
    try:
        return kind(text)
    except ValueError:
        name = "an integer" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {name}, is {text!r}") from None


def _checked(name: str, kind: Callable[[str], Number]) -> Callable[[str], Number]:
    """A converter whose range is that of the field of `Generation`."""

    def convert(text: str) -> Number:
        value = _number(text, kind)
        try:
            Generation(**{name: value})  # type: ignore[arg-type]  # which field, only `name` tells
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return convert
