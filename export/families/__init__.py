"""One short file for each ``model_type``, with only its differences from other families.

A family module has one name, ``FAMILY``. Adding a family is adding a file and its name to `MODULES`.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export.model_types import find_alternative
from edgevlm.export.videos import FamilyVideo
from edgevlm.manifest import LocationFormat, Packing, Tasks, TiledPacking, Usage

MODULES = (
    "smolvlm",
    "idefics3",
    "paligemma",
    "llava",
    "vipllava",
    "llava_llama",
    "yi_vl",
    "llava_next",
    "llava_onevision",
    "internvl",
    "ovis2",
    "aya_vision",
    "cohere2_vision",
    "gemma3",
    "gemma4",
    "got_ocr2",
    "deepseek_vl",
    "janus",
    "lfm2_vl",
    "paddleocr_vl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_5",
    "mistral3",
    "minicpmv4_6",
    "blip-2",
    "instructblip",
    "mllama",
)
"""The ``model_type``s, each with a module of this package, where ``-`` is ``_``; yi_vl is edgevlm's own name.
"""
TOWERS = {("llava", "pixtral"): "pixtral"}
"""Modules of a ``model_type`` with another vision part, by the ``model_type`` of ``vision_config``."""
Processor = TypeVar("Processor", bound=ProcessorMixin)

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


def chat_usage(location_format: LocationFormat, detect: str, point: str | None = None) -> Usage:
    """Return `CHAT_USAGE` of models that write boxes.

    Args:
        location_format: how they write them.
        detect, point: English questions for boxes and for points; None: the models write no points.
    """
    tasks = dataclasses.replace(CHAT_USAGE.tasks["en"], detect=detect, point=point)
    return dataclasses.replace(CHAT_USAGE, location_format=location_format, tasks={"en": tasks})


@dataclass(frozen=True)
class Family:
    """Everything that differs between ``model_type``s."""

    tensors: Mapping[str, str]
    """Regular expression for the start of a tensor name, to its replacement: ``tower.`` and ``connector.``
    for parts of `vision`, ``decoder.`` for the language model, ``head.`` for its output layer, ``unused.``
    for what is not exported. The first match counts."""
    vision: Callable[[PretrainedConfig], nn.Module]
    """Vision part as a module with the parts ``tower`` and ``connector``: normalized float32
    ``[n, 3, height, width]`` to ``[n, rows, width]``."""
    image_processor: str
    """``image_processor_type`` of checkpoints that name none: a key of
    `edgevlm.export.preparations.IMAGE_PROCESSORS`."""
    processor: Callable[[PilBackend, TokenizersBackend, PretrainedConfig, int], ProcessorMixin]
    """Builds transformers' processor from its parts, the configuration and the tokens of one tile, 0 if tiles
    differ in size. It adds tokens to the tokenizer, and its prompts are the reference for ours."""
    question_tokens: Callable[[PretrainedConfig], int] | None = None
    """Returns the longest question in tokens that `vision` reads, as a second argument, int64 ``[1, n]``. The
    checkpoint has its tokenizer in a folder of its own. None: it reads none."""
    image_settings: Callable[[PretrainedConfig], Mapping[str, Any]] = lambda config: {}
    """What transformers' processor tells its image processor, whatever the settings of the checkpoint are."""
    image_template: str | Callable[[PretrainedConfig], str] = "{{ image }}"
    """See `edgevlm.manifest.PromptSpec`."""
    image_token: str = "<image>"
    """See `edgevlm.manifest.PromptSpec`."""
    image_placeholder: str | None = None
    """See `edgevlm.manifest.PromptSpec`; None: `image_token`."""
    packing: Callable[[PretrainedConfig], Packing] = lambda config: TiledPacking()
    """See `edgevlm.manifest.VisionSpec`."""
    learned_tokens: tuple[str, ...] = ()
    """Tokens of an image whose embeddings transformers overwrites with learned rows. In our prompts they are
    part of the span."""
    attention: Literal["causal", "prefix", "images", "cross"] = "causal"
    """See `edgevlm.manifest.DecoderSpec`."""
    positions: Literal["sequential", "grid"] = "sequential"
    """See `edgevlm.manifest.DecoderSpec`."""
    embedding_scale: Callable[[PretrainedConfig], float] = lambda config: 1.0
    """See `edgevlm.manifest.DecoderSpec`."""
    text_embedding_scale: float | None = 1.0
    """See `edgevlm.manifest.DecoderSpec`."""
    model: Callable[[PretrainedConfig], PreTrainedModel] | None = None
    """Builds the model that is the reference, without its weights, for layouts that transformers does not
    read. Its parts have the names of transformers' LLaVA. None: transformers loads the checkpoint."""
    image_features: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor] | None = None
    """Returns the embeddings of an image ``[tokens, width]`` by transformers' base model and the inputs of a
    prompt; None: the model has ``get_image_features``."""
    chat_template: str | None = None
    """Chat template of a family whose prompt transformers writes in code; None: the checkpoint has one."""
    begins_in_template: bool = False
    """The chat template writes the tokens that the tokenizer puts first (``bos_token``) behind the image."""
    prompt_prefix: Callable[[Mapping[str, Any]], str] = lambda settings: ""
    """Returns what transformers' processor writes before the text of the chat template, by its settings
    (``processor_config.json``)."""
    end_tokens: tuple[str, ...] = ()
    """Tokens that end an answer, beside those that the checkpoint names."""
    video: FamilyVideo | None = None
    """How videos are read and written; None: the family takes none, or edgevlm does not support them."""
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


class _TwoParts(ProcessorMixin):
    """A processor that keeps its image processor and its tokenizer, whatever else it gets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{key: part for key, part in kwargs.items() if part is not None})

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]


def images_only(kind: type[Processor]) -> type[Processor]:
    """Return a processor of transformers without its parts for video, which needs torchvision, and audio.

    Its instances take None for these parts.
    """

    class ImagesOnly(kind, _TwoParts):  # type: ignore[valid-type,misc]  # a base class by argument
        pass

    return ImagesOnly


def read_template(model_type: str) -> str:
    """Return the chat template in the file beside the module of a family."""
    path = Path(__file__).with_name(f"{model_type}.jinja")
    return path.read_text(encoding="utf-8").removesuffix("\n")


def find_family(model_type: str, tower: str | None = None) -> Family:
    """Return the family of a ``model_type``.

    Args:
        tower: ``model_type`` of ``vision_config``; None: the usual one.

    Raises:
        ExportError: it is not supported.
    """
    if model_type not in MODULES:
        raise ExportError(
            f"model_type {model_type!r} cannot be exported; {find_alternative(model_type, MODULES)}"
        )
    module = TOWERS.get((model_type, tower or ""), model_type).replace("-", "_")
    family: Family = importlib.import_module(f"edgevlm.export.families.{module}").FAMILY
    return family
