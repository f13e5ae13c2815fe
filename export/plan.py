"""What is known of an export before anything is written: all that can be wrong without reading weights.

Each step raises `ExportError` with the file that is to be mended.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import transformers
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
from edgevlm.export.messages import one_line
from edgevlm.export.tokenizer import NAMED_TOKENS, Vocabulary, read_vocabulary
from edgevlm.export.usage import find_usage
from edgevlm.export.vision import plan_vision
from edgevlm.manifest import ImagePreparation, PromptSpec, Usage

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass(frozen=True)
class Plan:
    """What is known before anything is written."""

    checkpoint: Checkpoint
    family: Family
    preparation: ImagePreparation
    processor: ProcessorMixin
    vocabulary: Vocabulary
    prompt: PromptSpec
    usage: Usage


def make_plan(checkpoint: Checkpoint) -> Plan:
    """Read all but the weights, and try what can be tried without them.

    Raises:
        ExportError: a family, language model, tokenizer, chat template, preparation or usage that cannot be
            exported, missing files, or weights that do not fit the configuration.
    """
    family = find_family(checkpoint.family)
    text = checkpoint.config.get_text_config()
    architecture = find_architecture(checkpoint.config)
    hyperparameters(architecture, text)
    check_layers(checkpoint)
    gguf_names(checkpoint, family, architecture)
    tokens = positions_of_a_tile(checkpoint, family)
    template = plan_template(checkpoint, family)
    usage = find_usage(checkpoint, family)
    with quiet_transformers():
        tokenizer = load_tokenizer(checkpoint)
        image_processor = load_image_processor(checkpoint, family)
        preparation = plan_preparation(checkpoint, family, image_processor)
        processor = family.processor(image_processor, tokenizer, tokens)
        vocabulary = read_vocabulary(processor.tokenizer, text.vocab_size)
    prompt = plan_prompt(checkpoint, family, template, processor, vocabulary)
    with quiet_transformers():
        plan_vision(checkpoint, family)
    return Plan(checkpoint, family, preparation, processor, vocabulary, prompt, usage)


def check_layers(checkpoint: Checkpoint) -> None:
    """Raises:
    ExportError: more layers than there are tensors, which would take long to find missing.
    """
    for part in (checkpoint.config.get_text_config(), checkpoint.config.vision_config):
        if not 0 < part.num_hidden_layers <= len(checkpoint.tensors):
            raise ExportError(
                f"{checkpoint.folder / 'config.json'} says that {part.model_type} has "
                f"{part.num_hidden_layers} layers, the weights are {len(checkpoint.tensors)} tensors in all; "
                f"they are not of one checkpoint"
            )


def positions_of_a_tile(checkpoint: Checkpoint, family: Family) -> int:
    """Tokens of one tile.

    Raises:
        ExportError: sizes in config.json that make none, or more than llama.cpp can attend over.
    """
    path = checkpoint.folder / "config.json"
    try:
        tokens = family.tokens_per_tile(checkpoint.config)
    except (ArithmeticError, AttributeError, TypeError) as error:
        raise ExportError(
            f"the sizes of the vision part in {path} make no tile: {one_line(error)}"
        ) from error
    if tokens < 1:
        raise ExportError(f"the sizes of the vision part in {path} make tiles of {tokens} tokens")
    positions = context_length(checkpoint.config, family.attention)
    if tokens >= positions:
        raise ExportError(
            f"a picture has {tokens} positions, and llama.cpp can attend over {positions} at once for this "
            f"language model; choose a checkpoint with a smaller picture"
        )
    return tokens


def load_tokenizer(checkpoint: Checkpoint) -> TokenizersBackend:
    """transformers' tokenizer.

    Raises:
        ExportError: a file that is missing, or that transformers cannot read.
    """
    path = checkpoint.folder / "tokenizer.json"
    if not path.is_file():
        raise ExportError(
            f"{checkpoint.folder} has no tokenizer.json; save the tokenizer again with transformers' "
            f"save_pretrained"
        )
    for name in TOKENIZER_FILES:
        checkpoint.json(name)
    try:
        tokenizer = TokenizersBackend.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=False
        )
        for name in NAMED_TOKENS:
            getattr(tokenizer, f"{name}_token_id")
        return tokenizer
    except Exception as error:  # tokenizers raises plain Exceptions
        raise ExportError(
            f"transformers cannot read {path} and tokenizer_config.json: {one_line(error)}"
        ) from error


def load_image_processor(checkpoint: Checkpoint, family: Family) -> PilBackend:
    """transformers' image processor.

    Raises:
        ExportError: its settings are missing, or transformers cannot read them.
    """
    path = preparation_file(checkpoint)
    if not path.is_file():
        raise ExportError(
            f"{checkpoint.folder} has no {path.name}; fetch it, or save the processor again with "
            f"transformers' save_pretrained"
        )
    try:
        return family.image_processor.from_pretrained(checkpoint.folder, local_files_only=True)
    except Exception as error:  # transformers' errors have no class in common
        raise ExportError(f"transformers cannot read {path}: {one_line(error)}") from error


def preparation_file(checkpoint: Checkpoint) -> Path:
    """Where the image processor's settings stand: transformers takes those inside processor_config.json
    before those of a file of their own."""
    nested = "image_processor" in checkpoint.json("processor_config.json")
    return checkpoint.folder / ("processor_config.json" if nested else "preprocessor_config.json")


def plan_preparation(
    checkpoint: Checkpoint, family: Family, image_processor: PilBackend
) -> ImagePreparation:
    """Its settings as ours.

    Raises:
        ExportError: settings that transformers cannot use, that edgevlm does not compute, or that do not
            fit the vision part.
    """
    path = preparation_file(checkpoint)
    try:
        preparation = family.preparation(image_processor)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExportError(
            f"the image processor's settings in {path} are not of the form that edgevlm can export: "
            f"{one_line(error)}"
        ) from error
    size = checkpoint.config.vision_config.image_size
    if preparation.tile_size != (size, size):
        raise ExportError(
            f"the image processor makes tiles of {preparation.tile_size} pixels, the vision tower was "
            f"made for {size}; {path.name} and config.json must agree"
        )
    parity.check_preparation(image_processor, preparation, path)
    return preparation


def plan_template(checkpoint: Checkpoint, family: Family) -> ChatTemplate:
    """The checkpoint's chat template, or the family's.

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
    return found


def plan_prompt(
    checkpoint: Checkpoint,
    family: Family,
    template: ChatTemplate,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
) -> PromptSpec:
    """How messages become tokens, tried with one question.

    Raises:
        ExportError: a template that cannot write a question about an image, another image token than the
            configuration's, or no end token.
    """
    image_id = processor.tokenizer.convert_tokens_to_ids(family.image_token)
    if checkpoint.config.image_token_id != image_id:
        raise ExportError(
            f"{checkpoint.folder / 'config.json'} says that the image token is "
            f"{checkpoint.config.image_token_id}, in tokenizer.json {family.image_token} is {image_id}; they "
            f"are not of one checkpoint"
        )
    spec = PromptSpec(
        chat_template=template.source,
        template_variables={
            key: str(value)
            for key, value in processor.tokenizer.special_tokens_map.items()
            if isinstance(value, str)
        },
        image_token=family.image_token,
        image_spelling=family.spelling(checkpoint.config),
        special_tokens=vocabulary.special_tokens,
        end_token_ids=checkpoint.end_token_ids(),
    )
    check_chat_template(spec, template.file)
    return spec


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without advice about torchvision and without bars of its own for every step."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
