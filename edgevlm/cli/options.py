"""Options of several subcommands: the model, its device, and the settings of an answer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from edgevlm.errors import InputError
from edgevlm.options import KV_TYPES, Generation, GenerationOptions
from edgevlm.runtimes.devices import VISION_DEVICES

if TYPE_CHECKING:
    from edgevlm.vlm import VLM

Number = TypeVar("Number", int, float)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        metavar="M",
        help="a built-in name, the folder of a bundle, or a hub repository (default: the built-in model)",
    )
    group.add_argument(
        "--device",
        metavar="D",
        choices=VISION_DEVICES,
        default="auto",
        help="device that encodes images: " + ", ".join(VISION_DEVICES) + " (default: %(default)s)",
    )
    group.add_argument(
        "--threads",
        metavar="N",
        type=positive_integer,
        help="number of threads of each runtime (default: each runtime chooses)",
    )
    add_kv_option(group)


def add_kv_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add the option for the type of the KV cache."""
    parser.add_argument(
        "--kv",
        choices=KV_TYPES,
        default=KV_TYPES[0],
        help="type of the decoder's KV cache; q8_0 takes about half of the memory (default: %(default)s)",
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the settings of an answer."""
    group = parser.add_argument_group("answer")
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=_checked("max_tokens", int),
        default=Generation.max_tokens,
        help="limit of the answer in tokens (default: %(default)s)",
    )
    group.add_argument(
        "--temperature",
        metavar="T",
        type=_checked("temperature", float),
        default=Generation.temperature,
        help="randomness of the answer; 0: always the most likely token (default: %(default)s)",
    )
    group.add_argument(
        "--seed",
        metavar="S",
        type=_checked("seed", int),
        default=Generation.seed,
        help="seed of the random choices if the temperature is not 0 (default: %(default)s)",
    )
    group.add_argument(
        "--detail",
        choices=("low", "high", "auto"),
        help="splitting of images: one tile, as in training, or as many tiles as their pixels fill "
        "(default: as in training)",
    )
    group.add_argument(
        "--max-image-tokens",
        metavar="N",
        type=_checked("max_image_tokens", int),
        help="limit of positions for one image, for models that split images",
    )
    group.add_argument(
        "--within",
        metavar="SECONDS",
        type=_checked("within", float),
        help="time for an answer: images get the detail that fits it, and it is cut when the time is over",
    )


def generation_options(arguments: argparse.Namespace) -> GenerationOptions:
    """Return the settings of an answer as keyword arguments of `VLM.ask`."""
    return {
        "max_tokens": arguments.max_tokens,
        "temperature": arguments.temperature,
        "seed": arguments.seed,
        "detail": arguments.detail,
        "max_image_tokens": arguments.max_image_tokens,
        "within": arguments.within,
    }


def load_model(arguments: argparse.Namespace) -> VLM:
    """Load the model of the arguments; print to stderr that it is the default one."""
    from edgevlm.bundle import DEFAULT_MODEL
    from edgevlm.vlm import VLM

    model = arguments.model
    if model is None:
        model = DEFAULT_MODEL
        print(f"edgevlm: built-in model {model}; choose another with --model", file=sys.stderr)
    return VLM.from_pretrained(
        model, device=arguments.device, threads=arguments.threads, kv=arguments.kv
    )


def positive_integer(text: str) -> int:
    """Convert an argument to a positive integer.

    Raises:
        argparse.ArgumentTypeError: the text is not a positive integer.
    """
    value = _number(text, int)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, is {text}")
    return value


def port_number(text: str) -> int:
    """Convert an argument to the number of a port.

    Raises:
        argparse.ArgumentTypeError: the text is not an integer from 1 to 65535.
    """
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
    """Return a converter that checks the range of a field of `Generation`."""

    def convert(text: str) -> Number:
        value = _number(text, kind)
        try:
            Generation(**{name: value})  # type: ignore[arg-type]  # `name` selects the field
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return value

    return convert
