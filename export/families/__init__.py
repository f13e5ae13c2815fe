"""One short file for each ``model_type``, with only its differences from other families.

A family module has one name, ``FAMILY``. Adding a family is adding a file and its name to `MODULES`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from transformers import PretrainedConfig, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.manifest import (
    Normalization,
    Packing,
    Resample,
    Tasks,
    TiledPacking,
    Tiling,
    Usage,
)

MODULES = ("smolvlm", "idefics3", "paligemma")
"""Names of the modules of this package, each equal to a ``model_type``."""
LONGEST_EDGE = 1 << 14
"""Longest side in pixels that a setting may ask for; a larger one is a mistake and would fill the memory."""


CHAT_USAGE = Usage(
    images="photographs",
    tasks={
        "en": Tasks(
            describe="Describe the image.",
            count="How many {thing} are in the image?",
            read="What text is in the image?",
        )
    },
)
"""Chat models, trained on English; they answer in words where something is."""


@dataclass(frozen=True)
class Family:
    """Everything that differs between ``model_type``s."""

    tensors: Mapping[str, str]
    """Regular expression for the start of a tensor name, to its replacement: ``tower.`` and ``connector.``
    for parts of `vision`, ``decoder.`` for the language model, ``head.`` for its output layer. The first
    match counts."""
    vision: Callable[[PretrainedConfig], nn.Module]
    """Vision part as a module with the parts ``tower`` and ``connector``: normalized float32
    ``[n, 3, height, width]`` to ``[n, rows, width]``."""
    image_processors: Mapping[str, type[PilBackend]]
    """transformers' image processors that checkpoints of this family name, as ``image_processor_type``
    without ``Fast`` at its end; the first is for checkpoints that name none."""
    preparation: Callable[[PilBackend], Tiling]
    """Converts the settings of transformers' image processor to ours."""
    processor: Callable[[PilBackend, TokenizersBackend, PretrainedConfig, int], ProcessorMixin]
    """Builds transformers' processor from its parts, the configuration and the tokens of one tile. It adds
    tokens to the tokenizer, and its prompts are the reference for ours."""
    image_template: str | Callable[[PretrainedConfig], str] = "{{ image }}"
    """See `edgevlm.manifest.PromptSpec`."""
    image_token: str = "<image>"
    """See `edgevlm.manifest.PromptSpec`."""
    image_placeholder: str | None = None
    """See `edgevlm.manifest.PromptSpec`; None: `image_token`."""
    packing: Callable[[PretrainedConfig], Packing] = lambda config: TiledPacking()
    """See `edgevlm.manifest.VisionSpec`."""
    attention: Literal["causal", "prefix", "images"] = "causal"
    """See `edgevlm.manifest.DecoderSpec`."""
    embedding_scale: Callable[[PretrainedConfig], float] = lambda config: 1.0
    """See `edgevlm.manifest.DecoderSpec`."""
    text_embedding_scale: float | None = 1.0
    """See `edgevlm.manifest.DecoderSpec`."""
    chat_template: str | None = None
    """Chat template of a family whose prompt transformers writes in code; None: the checkpoint has one."""
    usage: Callable[[str], Usage] = lambda repository: CHAT_USAGE
    """Returns what a checkpoint is made for, by the name of its repository; see `edgevlm.export.usage`."""

    def canonical_name(self, name: str) -> str:
        """Rename a tensor of the checkpoint so that it begins with ``tower.``, ``connector.`` or the others.

        Raises:
            ExportError: the tensor belongs to none of these parts.
        """
        for pattern, replacement in self.tensors.items():
            renamed, found = re.subn(f"^(?:{pattern})", replacement, name)
            if found:
                return renamed
        raise ExportError(
            f"the checkpoint has a tensor {name!r}, which belongs to no part that edgevlm knows of this "
            f"family; it was saved by another architecture or carries an adapter: merge it first"
        )


def find_family(model_type: str) -> Family:
    """Return the family of a ``model_type``.

    Raises:
        ExportError: it is not supported.
    """
    if model_type not in MODULES:
        raise ExportError(
            f"model_type {model_type!r} cannot be exported; edgevlm exports {', '.join(MODULES)}"
        )
    family: Family = importlib.import_module(f"edgevlm.export.families.{model_type}").FAMILY
    return family


def side_length(processor: Any, setting: str, key: str) -> int:
    """Return a length in pixels from the settings of an image processor.

    Raises:
        ValueError: the setting has another form.
    """
    value = getattr(processor, setting, None)
    found = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    if type(found) is not int or not 0 < found <= LONGEST_EDGE:
        given = value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            filled = dataclasses.asdict(value).items()
            given = {name: length for name, length in filled if length is not None}
        raise ValueError(
            f"{setting} is {given!r}, it must have {key} as a whole number of 1 to {LONGEST_EDGE}"
        )
    return found


def normalization(processor: Any) -> Normalization:
    """Return the normalization, neutral if the image processor does not use them.

    Raises:
        ValueError: a setting has another form.
    """
    normalize = processor.do_normalize
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if not isinstance(factor, (int, float)):
        raise ValueError(f"rescale_factor is {factor!r}, it must be a number")
    return Normalization(
        mean=channels(processor, "image_mean") if normalize else (0.0, 0.0, 0.0),
        std=channels(processor, "image_std") if normalize else (1.0, 1.0, 1.0),
        rescale_factor=float(factor),
    )


def channels(processor: Any, setting: str) -> tuple[float, float, float]:
    """Return a number for red, green and blue; the setting may be one number for all three.

    Raises:
        ValueError: it is neither one number nor three, or a standard deviation is 0.
    """
    value: Any = getattr(processor, setting, None)
    found: list[Any] = list(value) if isinstance(value, (list, tuple)) else [value] * 3
    if (
        len(found) != 3
        or not all(isinstance(number, (int, float)) for number in found)
        or (setting == "image_std" and not all(number > 0 for number in found))
    ):
        raise ValueError(f"{setting} is {value!r}, it must be one number or three")
    red, green, blue = found
    return float(red), float(green), float(blue)


def resample(processor: Any) -> Resample:
    """Return the name of the filter of Pillow; transformers would read any name as bilinear.

    Raises:
        ValueError: the setting is not a number, or edgevlm does not support this filter.
    """
    names: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    value = processor.resample
    if not isinstance(value, int) or isinstance(value, bool) or value not in names:
        known = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise ValueError(f"resample is {value!r}, it must be one of the numbers {known}")
    return names[value]
