"""One short file for each ``model_type``, saying only what is particular to it.

A family module has one name, ``FAMILY``. Adding a family is adding a file and its name to `MODULES`.
"""

from __future__ import annotations

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
from edgevlm.manifest import ImagePreparation, ImageSpelling, Resample

MODULES = ("smolvlm", "idefics3", "paligemma")
"""Names of the modules here, equal to ``model_type``."""


@dataclass(frozen=True)
class Family:
    """What the exporter must know of a ``model_type``."""

    tensors: Mapping[str, str]
    """Regular expression at the start of a checkpoint's tensor name to what it becomes: ``tower.`` and
    ``connector.`` for parts of `vision`, ``decoder.`` for the language model, ``head.`` for its output
    layer. The first match counts."""
    vision: Callable[[PretrainedConfig], nn.Module]
    """Tower and connector as a module with these two parts: normalised float32 ``[n, 3, height, width]``
    to ``[n, tokens, width]``."""
    image_processor: type[PilBackend]
    preparation: Callable[[PilBackend], ImagePreparation]
    """transformers' image processor to ours."""
    tokens_per_tile: Callable[[PretrainedConfig], int]
    spelling: Callable[[PretrainedConfig], ImageSpelling]
    image_token: str
    chat_template: str | None
    """For families whose prompts transformers writes in code; None where the checkpoint brings it."""
    attention: Literal["causal", "prefix"]
    """See `edgevlm.manifest.DecoderSpec`."""
    embedding_scale: Callable[[PretrainedConfig], float]
    processor: Callable[[PilBackend, TokenizersBackend, int], ProcessorMixin]
    """transformers' processor from its parts and the tokens of one tile; the tokens it adds count, and
    its prompts are what ours are compared with."""

    def canonical_name(self, name: str) -> str:
        """A checkpoint's tensor name to ``tower.``, ``connector.``, ``decoder.`` or ``head.``

        Raises:
            ExportError: a tensor of none of these parts.
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
    """Raises:
    ExportError: a ``model_type`` that no file here is named after.
    """
    if model_type not in MODULES:
        raise ExportError(
            f"model_type {model_type!r} cannot be exported; edgevlm exports {', '.join(MODULES)}"
        )
    family: Family = importlib.import_module(f"edgevlm.export.families.{model_type}").FAMILY
    return family


def normalisation(processor: Any) -> dict[str, Any]:
    """``mean``, ``std`` and ``rescale_factor`` of an image processor, neutral where it does neither."""
    red, green, blue = processor.image_mean if processor.do_normalize else (0.0, 0.0, 0.0)
    mean = (float(red), float(green), float(blue))
    red, green, blue = processor.image_std if processor.do_normalize else (1.0, 1.0, 1.0)
    return {
        "mean": mean,
        "std": (float(red), float(green), float(blue)),
        "rescale_factor": float(processor.rescale_factor) if processor.do_rescale else 1.0,
    }


def resample(processor: Any) -> Resample:
    """The filter's name of Pillow's number.

    Raises:
        ExportError: a filter that edgevlm does not compute.
    """
    names: dict[int, Resample] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    number = int(processor.resample)
    if number not in names:
        raise ExportError(f"the image processor's resample is {number}, edgevlm knows {names}")
    return names[number]
