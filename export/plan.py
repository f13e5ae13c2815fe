"""Plan an export: read and check everything but the weights, before any file is written.

Each step raises `ExportError` with the file that must be changed.
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
    """Everything about an export that is known before the weights are read."""

    checkpoint: Checkpoint
    family: Family
    preparation: ImagePreparation
    processor: ProcessorMixin
    vocabulary: Vocabulary
    prompt: PromptSpec
    usage: Usage


def make_plan(checkpoint: Checkpoint) -> Plan:
    """Read everything but the weights, and check it.

    Raises:
        ExportError: the family, language model, tokenizer, chat template, image processor or usage cannot be
            exported, files are missing, or the weights do not fit the configuration.
    """
    family = find_family(checkpoint.family)
    text = checkpoint.config.get_text_config()
    architecture = find_architecture(checkpoint.config)
    hyperparameters(architecture, text)
    check_layers(checkpoint)
    gguf_names(checkpoint, family, architecture)
    tokens = count_tile_tokens(checkpoint, family)
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
    """Check the number of layers, so that a huge number does not cost time.

    Raises:
        ExportError: there are more layers than tensors.
    """
    for part in (checkpoint.config.get_text_config(), checkpoint.config.vision_config):
        if not 0 < part.num_hidden_layers <= len(checkpoint.tensors):
            raise ExportError(
                f"{checkpoint.folder / 'config.json'} says that {part.model_type} has "
                f"{part.num_hidden_layers} layers, the weights are {len(checkpoint.tensors)} tensors in all; "
                f"they are not of one checkpoint"
            )


def count_tile_tokens(checkpoint: Checkpoint, family: Family) -> int:
    """Return the tokens of one tile.

    Raises:
        ExportError: the sizes in config.json give no token, or more tokens than the context of the language
            model.
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
            f"an image has {tokens} positions, and llama.cpp can attend over {positions} at once for this "
            f"language model; choose a checkpoint with smaller images"
        )
    return tokens


def load_tokenizer(checkpoint: Checkpoint) -> TokenizersBackend:
    """Load the tokenizer in transformers.

    Raises:
        ExportError: a file is missing, or transformers cannot read it.
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
    """Load the image processor in transformers.

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
    """Return the file with the settings of the image processor.

    transformers prefers processor_config.json to a separate file.
    """
    nested = "image_processor" in checkpoint.json("processor_config.json")
    return checkpoint.folder / ("processor_config.json" if nested else "preprocessor_config.json")


def plan_preparation(
    checkpoint: Checkpoint, family: Family, image_processor: PilBackend
) -> ImagePreparation:
    """Convert the settings of the image processor to ours.

    Raises:
        ExportError: transformers cannot use the settings, edgevlm does not support them, or they do not fit
            the vision tower.
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
    return found


def plan_prompt(
    checkpoint: Checkpoint,
    family: Family,
    template: ChatTemplate,
    processor: ProcessorMixin,
    vocabulary: Vocabulary,
) -> PromptSpec:
    """Return how messages become tokens, checked by one question.

    Raises:
        ExportError: the chat template cannot write a question about an image, the image token differs from
            the configuration, or there is no end token.
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
    """Suppress advice and progress bars of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
