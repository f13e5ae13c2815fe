"""Plan an export: read and check everything but the weights, before any file is written.

Each step raises `ExportError` with the file that must be changed.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import transformers
from numpy.typing import NDArray
from transformers import ProcessorMixin
from transformers.image_processing_backends import PilBackend
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from edgevlm.errors import ExportError
from edgevlm.export import parity
from edgevlm.export.architectures import context_length, find_architecture
from edgevlm.export.chat_template import ChatTemplate, check_chat_template, find_chat_template
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.decoder import hyperparameters
from edgevlm.export.decoder_tensors import gguf_names
from edgevlm.export.families import Family, find_family
from edgevlm.export.image_size import fix_image_size
from edgevlm.export.messages import one_line
from edgevlm.export.mrope import input_width
from edgevlm.export.onnx_decoder import check_tensors
from edgevlm.export.preparations import IMAGE_PROCESSORS, read_image_spec
from edgevlm.export.tokenizer import NAMED_TOKENS, Vocabulary, read_vocabulary
from edgevlm.export.tool_calls import find_tool_calls
from edgevlm.export.usage import find_usage
from edgevlm.export.videos import plan_video
from edgevlm.export.vision import (
    EXAMPLE_TOKENS,
    INPUT_NAME,
    OUTPUT_NAME,
    QUESTION_NAME,
    example_question,
    example_size,
    plan_vision,
    rows_of_tile,
)
from edgevlm.inputs.packing import plan_spans
from edgevlm.inputs.tiling import split_image
from edgevlm.manifest import (
    CanvasTiling,
    CrossPacking,
    ImageSpec,
    OwnSizeTiling,
    PromptSpec,
    Tiling,
    Usage,
    VideoSpec,
    VisionSpec,
)

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)

QUESTION_TOKENIZER = "qformer_tokenizer"
"""Folder of a checkpoint with the tokenizer of the question that the vision part reads."""


@dataclass(frozen=True)
class Plan:
    """Everything about an export that is known before the weights are read."""

    checkpoint: Checkpoint
    family: Family
    image: ImageSpec
    vision: VisionSpec
    """Without files."""
    question_tokenizer: TokenizersBackend | None
    """Tokenizer of the question that the vision part reads; None: it reads none."""
    processor: ProcessorMixin
    vocabulary: Vocabulary
    prompt: PromptSpec
    usage: Usage
    video: VideoSpec | None

    def example_question(self) -> dict[str, NDArray[np.int64]]:
        """Return the input of the vision graph for a question, if it has one, with the tokens of one."""
        if self.question_tokenizer is None:
            return {}
        ids = self.question_tokenizer("What is in the image?")["input_ids"]
        return {QUESTION_NAME: np.array([ids], np.int64)}


def make_plan(checkpoint: Checkpoint, image_size: tuple[int, int] | None = None) -> Plan:
    """Read everything but the weights, and check it.

    Args:
        image_size: width and height in pixels that all images are resized to; None: what the checkpoint does.

    Raises:
        ExportError: the family, language model, tokenizer, chat template, image processor or usage cannot be
            exported, files are missing, the weights do not fit the configuration, or the checkpoint does not
            take images of this size.
    """
    tower = getattr(checkpoint.config.vision_config, "model_type", None)
    family = find_family(checkpoint.family, tower)
    text = checkpoint.config.get_text_config()
    architecture = find_architecture(checkpoint.config)
    if architecture.gguf is not None:
        hyperparameters(architecture, text)
    check_layers(checkpoint)
    if architecture.gguf is not None:
        gguf_names(checkpoint, family, architecture)
    else:
        check_tensors(checkpoint, family)
    template = plan_template(checkpoint, family)
    usage = find_usage(checkpoint, family)
    with quiet_transformers():
        tokenizer = load_tokenizer(checkpoint)
        image_processor = load_image_processor(checkpoint, family)
        image = plan_image(checkpoint, image_processor)
        vision = describe_vision(checkpoint, family, image)
        if image_size is not None:
            image, vision = fix_image_size(image, vision, image_size)
        check_tokens(checkpoint, family, vision)
        processor = family.processor(
            image_processor, tokenizer, checkpoint.config, vision.tokens_per_tile or 0
        )
        rows = text.vocab_size + architecture.unanswered_tokens
        vocabulary = read_vocabulary(processor.tokenizer, rows)
        question_tokenizer = None
        if family.question_tokens is not None:
            question_tokenizer = load_tokenizer(checkpoint, QUESTION_TOKENIZER)
            processor.qformer_tokenizer = question_tokenizer
    prompt = plan_prompt(checkpoint, family, template, processor, vocabulary, image, vision)
    video = None
    if family.video is not None and not vision.fixed_by_export:
        video, prompt = plan_video(checkpoint, family.video, image, prompt)
    return Plan(
        checkpoint,
        family,
        image,
        vision,
        question_tokenizer,
        processor,
        vocabulary,
        prompt,
        usage,
        video,
    )


def check_layers(checkpoint: Checkpoint) -> None:
    """Check the number of layers, so that a huge number does not cost time.

    Raises:
        ExportError: there are more layers than tensors.
    """
    for part in (checkpoint.config.get_text_config(), checkpoint.config.vision_config):
        layers = getattr(part, "num_hidden_layers", 1)  # towers of timm have stages
        if not 0 < layers <= len(checkpoint.tensors):
            raise ExportError(
                f"{checkpoint.folder / 'config.json'} says that {part.model_type} has {layers} layers, "
                f"the weights are {len(checkpoint.tensors)} tensors in all; they are not of one checkpoint"
            )


def describe_vision(checkpoint: Checkpoint, family: Family, image: ImageSpec) -> VisionSpec:
    """Return what the vision graph will be, by a run of the vision part without its weights.

    Raises:
        ExportError: the vision part cannot be built, does not take the tiles, or does not fit the language
            model.
    """
    module, _ = plan_vision(checkpoint, family)
    tiling = image.tiling
    rows, width = rows_of_tile(module, example_size(tiling), *example_question(family))
    packing = family.packing(checkpoint.config)
    tokens = rows - packing.learned_rows
    path = checkpoint.folder / "config.json"
    side = tiling.factor if isinstance(tiling, OwnSizeTiling) else None
    if isinstance(packing, CrossPacking):
        check_canvas(tiling, packing, rows, path)
    elif side is not None and tokens != EXAMPLE_TOKENS:
        raise ExportError(
            f"a tile of {EXAMPLE_TOKENS} squares of {side} x {side} pixels has {tokens} embeddings; "
            f"patch_size and merge_size of the image processor must be those of vision_config in {path}"
        )
    expected = input_width(checkpoint.config)
    if width != expected:
        raise ExportError(
            f"the vision part in {path} makes embeddings of width {width}, the language model takes those of "
            f"width {expected}"
        )
    return VisionSpec(
        input_name=INPUT_NAME,
        output_name=OUTPUT_NAME,
        tokens_per_tile=tokens if side is None else None,
        learned_rows=packing.learned_rows,
        width=width,
        packing=packing,
        files={},
        pixels_per_token=side,
    )


def check_canvas(tiling: Tiling, packing: CrossPacking, rows: int, path: Path) -> None:
    """Check that the vision part takes the canvases of the image processor.

    Raises:
        ExportError: it takes another number of squares.
    """
    if not isinstance(tiling, CanvasTiling) or rows != packing.rows_per_square * tiling.max_tiles:
        raise ExportError(
            f"the vision part in {path} makes {rows} rows of an image, {packing.rows_per_square} of a tile, "
            f"and max_image_tiles of the image processor is {getattr(tiling, 'max_tiles', None)}; they are "
            f"not of one checkpoint"
        )


def check_tokens(checkpoint: Checkpoint, family: Family, vision: VisionSpec) -> None:
    """Check that a tile fits into the context, if all tiles have one size.

    Raises:
        ExportError: it does not.
    """
    positions = context_length(checkpoint.config, family.attention)
    tokens = vision.tokens_per_tile
    if tokens is not None and tokens >= positions:
        smaller = (
            "a smaller --image-size"
            if vision.fixed_by_export
            else "a checkpoint with smaller images"
        )
        raise ExportError(
            f"an image has {tokens} positions, and llama.cpp can attend over {positions} at once for this "
            f"language model; choose {smaller}"
        )


def load_tokenizer(checkpoint: Checkpoint, folder: str = ".") -> TokenizersBackend:
    """Load the tokenizer in transformers.

    Args:
        folder: its folder in the checkpoint.

    Raises:
        ExportError: a file is missing, or transformers cannot read it.
    """
    path = checkpoint.folder / folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"{path.parent} has no tokenizer.json; save the tokenizer again with transformers' "
            f"save_pretrained"
        )
    for name in TOKENIZER_FILES:
        checkpoint.json(f"{folder}/{name}" if folder != "." else name)
    try:
        tokenizer = TokenizersBackend.from_pretrained(
            path.parent,
            local_files_only=True,
            trust_remote_code=False,
            fix_mistral_regex=True,  # older Mistral checkpoints have a wrong one, which transformers knows
        )
        for name in NAMED_TOKENS:
            getattr(tokenizer, f"{name}_token_id")
        return tokenizer
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ExportError(
            f"transformers cannot read {path} and tokenizer_config.json: {one_line(error)}"
        ) from error


def load_image_processor(checkpoint: Checkpoint, family: Family) -> PilBackend:
    """Load the image processor in transformers.

    Raises:
        ExportError: its settings are missing, or transformers cannot read them.
    """
    path = preparation_file(checkpoint)
    settings = checkpoint.json(path.name)
    if not settings and not path.is_file():
        raise ExportError(
            f"{checkpoint.folder} has no {path.name}; fetch it, or save the processor again with "
            f"transformers' save_pretrained"
        )
    kind = find_image_processor(checkpoint, family)
    try:
        return kind.from_dict(
            {
                **settings.get("image_processor", settings),
                **family.image_settings(checkpoint.config),
            }
        )
    except Exception as error:  # transformers' errors have no class in common
        raise ExportError(f"transformers cannot read {path}: {one_line(error)}") from error


def find_image_processor(checkpoint: Checkpoint, family: Family) -> type[PilBackend]:
    """Return the class that the settings name, or that of the family.

    Raises:
        ExportError: edgevlm does not reproduce this image processor.
    """
    path = preparation_file(checkpoint)
    settings = checkpoint.json(path.name)
    named = settings.get("image_processor", settings).get("image_processor_type")
    name = family.image_processor if named is None else re.sub("(Fast|Pil)$", "", str(named))
    if name not in IMAGE_PROCESSORS:
        raise ExportError(
            f"{path} names the image processor {named!r}; edgevlm can export {', '.join(IMAGE_PROCESSORS)}"
        )
    return IMAGE_PROCESSORS[name]


def preparation_file(checkpoint: Checkpoint) -> Path:
    """Return the file with the settings of the image processor.

    transformers prefers processor_config.json to a separate file.
    """
    nested = "image_processor" in checkpoint.json("processor_config.json")
    return checkpoint.folder / ("processor_config.json" if nested else "preprocessor_config.json")


def plan_image(checkpoint: Checkpoint, image_processor: PilBackend) -> ImageSpec:
    """Convert the settings of the image processor to ours.

    Raises:
        ExportError: transformers cannot use the settings, or edgevlm does not support them.
    """
    path = preparation_file(checkpoint)
    try:
        image = read_image_spec(image_processor)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"the image processor's settings in {path} are not of the form that edgevlm can export: "
            f"{one_line(error)}"
        ) from error
    parity.check_preparation(image_processor, image, path)
    return image


def plan_template(checkpoint: Checkpoint, family: Family) -> ChatTemplate:
    """Return the chat template of the checkpoint or of the family.

    Raises:
        ExportError: there is none, or it cannot be read.
    """
    found = (
        find_chat_template(checkpoint)
        if family.chat_template is None
        else ChatTemplate(family.chat_template, checkpoint.folder)
    )
    if found is None:
        raise ExportError(
            f"{checkpoint.repository} has no chat template; put one into chat_template.jinja beside it"
        )
    prefix = family.prompt_prefix(checkpoint.json("processor_config.json"))
    if not prefix:
        return found
    return ChatTemplate(f"{{{{ {json.dumps(prefix)} }}}}{found.source}", found.file)


def plan_prompt(
    checkpoint: Checkpoint,
    family: Family,
    template: ChatTemplate,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
    image: ImageSpec,
    vision: VisionSpec,
) -> PromptSpec:
    """Return how messages become tokens, checked by one question.

    Raises:
        ExportError: the chat template cannot write a question about an image, the image token differs from
            the configuration, or there is no end token.
    """
    image_id = processor.tokenizer.get_vocab().get(family.image_token)
    if image_id is None:
        raise ExportError(
            f"{checkpoint.folder / 'tokenizer.json'} has no token {family.image_token}, which stands for the "
            f"embeddings of an image in this family; fetch the whole checkpoint"
        )
    if getattr(checkpoint.config, "image_token_id", image_id) != image_id:
        raise ExportError(
            f"{checkpoint.folder / 'config.json'} says that the image token is "
            f"{checkpoint.config.image_token_id}, in tokenizer.json {family.image_token} is {image_id}; they "
            f"are not of one checkpoint"
        )
    variables = {
        key: str(value)
        for key, value in processor.tokenizer.special_tokens_map.items()
        if isinstance(value, str)
    }
    if family.begins_in_template:  # what the tokenizer writes, whatever it calls its begin token
        begin = processor.tokenizer.convert_ids_to_tokens(list(vocabulary.begin_token_ids))
        variables["bos_token"] = "".join(begin)
    spec = PromptSpec(
        chat_template=template.source,
        template_variables=variables,
        image_placeholder=family.image_placeholder or family.image_token,
        image_template=family.image_template
        if isinstance(family.image_template, str)
        else family.image_template(checkpoint.config),
        image_token=family.image_token,
        special_tokens=vocabulary.special_tokens,
        end_token_ids=tuple(
            dict.fromkeys(
                [
                    *checkpoint.end_token_ids(),
                    *map(processor.tokenizer.convert_tokens_to_ids, family.end_tokens),
                ]
            )
        ),
        begin_token_ids=() if family.begins_in_template else vocabulary.begin_token_ids,
        normalization=vocabulary.normalization,
        space_prefix=vocabulary.space_prefix,
        added_tokens=vocabulary.added_tokens,
        splitting=vocabulary.splitting,
    )
    blank = split_image(np.zeros((*example_size(image.tiling), 3), np.uint8), image.tiling)
    spans = plan_spans(blank.layout, vision, family.positions)
    check_chat_template(spec, template.file, (blank.layout, len(spans)))
    return dataclasses.replace(spec, tool_calls=find_tool_calls(spec))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Suppress advice and progress bars of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
