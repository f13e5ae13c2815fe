"""The manifest: the contract between the exporter and the runtime, as frozen dataclasses.

Everything that a model family needs at run time is data here. The runtime never asks which family it runs.
Strategies are closed sets of names (``ImagePreparation.strategy``, ``DecoderSpec.attention``, ...). A new
family uses one of them, or adds a name that is implemented once, in the module that owns the decision.

`Manifest.from_dict` refuses an unknown ``schema_version``, a missing or unknown field, and a value of the
wrong type or range. The `BundleError` names the field, such as ``manifest.image.tile_size``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgevlm.errors import BundleError

SCHEMA_VERSION = 1
"""Version of the format that this edgevlm reads and writes."""
MANIFEST_NAME = "manifest.json"
"""File name of the manifest in the bundle folder."""

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]
"""Names of Pillow's resampling filters."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    name: str
    """File name in the bundle folder, without directories: letters, digits, ``.``, ``_`` and ``-``."""
    size: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the content: 64 lower-case hexadecimal digits."""
    bits_per_weight: float | None = None
    """Decoders: bits of the file per parameter of the model, as measured; null for vision graphs."""

    def check(self) -> None:
        """Check the values."""
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            "name",
            self.name,
            "must be a plain file name",
        )
        require(self.size > 0, "size", self.size, "must be positive")
        require(
            re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None,
            "sha256",
            self.sha256,
            "must be 64 lower-case hexadecimal digits",
        )


@dataclass(frozen=True)
class ImagePreparation:
    """How an RGB uint8 image is split into uint8 tiles; implemented in `edgevlm.inputs.tiling`."""

    strategy: Literal["stretch", "grid"]
    """``stretch``: resize the image to one tile, whatever its aspect ratio. ``grid``: split the image as
    Idefics3 does, into a grid of tiles and then an overview; an image that fits one tile stays one tile."""
    tile_size: tuple[int, int]
    """Height and width of a tile in pixels; equal for ``grid``."""
    resample: Resample
    """Filter for resizing: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``."""
    longest_edge: int | None
    """Length in pixels to which the longest edge is resized first, up or down; null: do not resize."""
    mean: tuple[float, float, float]
    """Mean of the normalization for R, G and B. The vision graph computes
    ``(pixel * rescale_factor - mean) / std``; the three fields are for information only."""
    std: tuple[float, float, float]
    """Standard deviation of the normalization for R, G and B."""
    rescale_factor: float
    """Factor of the normalization, usually 1/255."""

    def check(self) -> None:
        """Check the values."""
        require(
            all(side > 0 for side in self.tile_size),
            "tile_size",
            self.tile_size,
            "must be positive",
        )
        require(
            self.longest_edge is None or self.longest_edge > 0,
            "longest_edge",
            self.longest_edge,
            "must be positive or null",
        )
        require(
            self.strategy != "grid" or self.tile_size[0] == self.tile_size[1],
            "tile_size",
            self.tile_size,
            "must be square for the grid strategy",
        )


@dataclass(frozen=True)
class VisionSpec:
    """The vision graph, from uint8 tiles ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``."""

    input_name: str
    """Name of the graph's input."""
    output_name: str
    """Name of the graph's output."""
    tokens_per_tile: int
    """Number of embeddings of one tile; positive."""
    width: int
    """Number of values in one embedding; equal to the width of the decoder."""
    files: dict[str, FileEntry]
    """The ONNX file of each precision (``fp32``, ``fp16``, ``int8``, ``int8-static``); at least one."""
    calibration: str | None = None
    """Images that the scales of ``int8-static`` were computed from, in words; null: no such file, or not
    known."""

    def check(self) -> None:
        """Check the values."""
        require(
            self.tokens_per_tile > 0, "tokens_per_tile", self.tokens_per_tile, "must be positive"
        )
        require(self.width > 0, "width", self.width, "must be positive")
        require(bool(self.files), "files", self.files, "must not be empty")


@dataclass(frozen=True)
class SpecialToken:
    """A token that only the chat template can produce; the same text from a user stays plain text."""

    text: str
    """Text of the token; not empty."""
    id: int
    """Id of the token."""
    strip_left: bool = False
    """True: remove white space before the token (``lstrip`` in the tokenizer of the checkpoint)."""
    strip_right: bool = False
    """True: remove white space after the token (``rstrip``)."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.text), "text", self.text, "must not be empty")
        require(self.id >= 0, "id", self.id, "must not be negative")


@dataclass(frozen=True)
class ImageTemplate:
    """Texts that place one image in the prompt.

    ``{image}`` is replaced with the embeddings of one tile, ``{row}`` and ``{column}`` with the place of the
    tile in the grid, from 1.
    """

    whole: str
    """Text for an image of one tile; contains ``{image}`` once."""
    tile: str = ""
    """Text for each tile of a grid, row by row; empty, or contains ``{image}`` once."""
    row_end: str = ""
    """Text after each row of a grid."""
    overview: str = ""
    """Text after the grid for the overview, which is the whole image in one tile; empty, or contains
    ``{image}`` once."""

    def check(self) -> None:
        """Check the values."""
        require(self.whole.count("{image}") == 1, "whole", self.whole, "must contain {image} once")
        for name in ("tile", "overview"):
            text = getattr(self, name)
            require(
                not text or text.count("{image}") == 1,
                name,
                text,
                "must contain {image} once",
            )


@dataclass(frozen=True)
class PromptSpec:
    """How messages become tokens; implemented in `edgevlm.inputs.prompt`."""

    chat_template: str
    """Jinja2 source, rendered as transformers does, with ``messages`` and ``add_generation_prompt``."""
    template_variables: dict[str, str]
    """Values of further variables of the template, such as ``bos_token``."""
    image_token: str
    """Text that the template writes in place of an image; one of `special_tokens`."""
    image_spelling: ImageTemplate
    """Texts that replace `image_token`."""
    special_tokens: tuple[SpecialToken, ...]
    """All special tokens of the tokenizer."""
    end_token_ids: tuple[int, ...]
    """Ids of the tokens that end an answer; at least one."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.chat_template), "chat_template", self.chat_template, "must not be empty")
        require(bool(self.end_token_ids), "end_token_ids", self.end_token_ids, "must not be empty")
        require(
            any(token.text == self.image_token for token in self.special_tokens),
            "image_token",
            self.image_token,
            "must be one of special_tokens",
        )


@dataclass(frozen=True)
class DecoderSpec:
    """The decoder, a language model in GGUF files that stock llama.cpp loads."""

    architecture: str
    """``general.architecture`` of the GGUF file; for information only."""
    width: int
    """Number of values in one embedding; positive."""
    vocabulary_size: int
    """Number of tokens in the vocabulary; positive."""
    context_length: int
    """Number of positions that the checkpoint was trained for; positive."""
    attention: Literal["causal", "prefix"]
    """``causal``: each position attends to the earlier ones. ``prefix``: all positions of the prompt, of
    images and text, attend to each other, and the answer is causal."""
    positions: Literal["sequential"]
    """Numbering of positions. ``sequential``: texts and images are numbered in one sequence."""
    embedding_scale: float
    """Factor that the output of the vision graph is multiplied by before the decoder; positive. It is 1 for
    most families. Gemma's decoder in llama.cpp multiplies its input by sqrt(width), and images need the
    inverse."""
    files: dict[str, FileEntry]
    """The GGUF file of each llama.cpp type (``f16``, ``q8_0``, ``q4_0``, ``q4_k_m``, ...); at least one."""

    def check(self) -> None:
        """Check the values."""
        for name in ("width", "vocabulary_size", "context_length"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.embedding_scale > 0, "embedding_scale", self.embedding_scale, "must be positive"
        )
        require(bool(self.files), "files", self.files, "must not be empty")


@dataclass(frozen=True)
class Source:
    """The origin of the checkpoint."""

    repository: str
    """Hub repository, or the name of the checkpoint folder."""
    revision: str | None
    """Commit of the hub repository; null if it is not known."""
    family: str
    """``model_type`` in the configuration of the checkpoint; for information only."""
    license: str
    """Licence of the checkpoint."""


@dataclass(frozen=True)
class Drift:
    """The difference of one precision from the checkpoint in transformers, in float32."""

    relative_error: float
    """``|ours - theirs| / |theirs|`` (L2): of embeddings for a vision graph, of logits for a decoder."""
    bound: float
    """Limit of `relative_error` for this precision."""
    top1_agreement: float | None = None
    """Decoders: fraction of teacher-forced positions with the same most likely token, 0 to 1; null for vision
    graphs."""


@dataclass(frozen=True)
class ParityReport:
    """The measurement of the last step of an export, compared with transformers in float32."""

    pictures: int
    """Number of images that were compared."""
    prompts: int
    """Number of prompts that were compared."""
    positions: int
    """Number of teacher-forced positions that were compared."""
    vision: dict[str, Drift]
    """Drift of each precision of the vision graph."""
    decoder: dict[str, Drift]
    """Drift of each llama.cpp type of the decoder."""
    drift_allowed: bool
    """True if a bound was exceeded and the user allowed it."""


@dataclass(frozen=True)
class Golden:
    """A stored answer of the checkpoint, for ``edgevlm verify``."""

    picture_png: str
    """A small PNG file in base64."""
    question: str
    """Question about the image."""
    token_ids: tuple[int, ...]
    """Greedy answer of transformers in float32, with the end token if the answer has one."""


@dataclass(frozen=True)
class Tasks:
    """Questions in one language that the model was trained to answer; null: not trained for the task."""

    describe: str | None = None
    """Question for a description of the image; may contain ``{thing}`` once, as may the others."""
    find: str | None = None
    """Question for the place of a thing; contains ``{thing}`` once, which is replaced with the name of the
    thing. The answer is a box; see `Usage.boxes`."""
    count: str | None = None
    """Question for a number of things."""
    read: str | None = None
    """Question for a text in the image."""

    def check(self) -> None:
        """Check the values."""
        for name, question in dataclasses.asdict(self).items():
            if question is not None:
                plain = question.replace("{thing}", "", 1)
                require(bool(question.strip()), name, question, "must not be empty")
                require(
                    not set("{}") & set(plain),
                    name,
                    question,
                    "may contain {thing} once and no other braces",
                )
                require(name != "find" or plain != question, name, question, "must contain {thing}")


@dataclass(frozen=True)
class Usage:
    """Advice for people who ask the model; the runtime does not use it."""

    images: Literal["drawings", "photographs"] | None = None
    """Kind of the images that the model was trained on; null: not known."""
    boxes: Literal["percent"] | None = None
    """Form of the boxes in answers. ``percent``: ``[left, top, right, bottom]``, each from 0 to 100 of the
    width or height of the image. null: the model answers with words, or was not trained to find things."""
    tasks: dict[str, Tasks] = field(default_factory=dict)
    """Questions by language (ISO 639-1 code such as ``en`` or ``ru``); empty: not known."""

    def check(self) -> None:
        """Check the values."""
        for language in self.tasks:
            require(
                re.fullmatch("[a-z]{2}", language) is not None,
                "tasks",
                language,
                "must have languages of two lower-case letters",
            )

    def questions(self, language: str) -> dict[str, str]:
        """Return the question of each task, in this language or else in English; empty if there is none."""
        tasks = self.tasks.get(language) or self.tasks.get("en") or Tasks()
        return {name: text for name, text in dataclasses.asdict(tasks).items() if text is not None}

    @classmethod
    def from_dict(cls, data: object) -> Usage:
        """Create a `Usage` from parsed JSON.

        Raises:
            BundleError: a field is unknown or wrong; the message names it, such as ``usage.tasks``.
        """
        usage: Usage = _parse(cls, data, "usage")
        return usage


@dataclass(frozen=True)
class Manifest:
    """The content of ``manifest.json``: the files of a bundle and how to use them."""

    schema_version: int
    """Version of the format: 1."""
    name: str
    """Name of the model; not empty."""
    source: Source
    """Origin of the checkpoint."""
    image: ImagePreparation
    """How images are split into tiles."""
    vision: VisionSpec
    """The vision graph."""
    prompt: PromptSpec
    """How messages become tokens."""
    decoder: DecoderSpec
    """The decoder."""
    parity: ParityReport | None
    """Comparison with the checkpoint; null: not measured."""
    golden: Golden | None
    """A stored answer of the checkpoint; null: none."""
    created_with: dict[str, str]
    """Versions of the packages that made the bundle, by package name."""
    usage: Usage | None = None
    """Advice for people who ask the model; null: not known, as in older bundles."""

    def check(self) -> None:
        """Check the values."""
        require(bool(self.name), "name", self.name, "must not be empty")
        require(
            self.vision.width == self.decoder.width,
            "vision.width",
            self.vision.width,
            f"must equal decoder.width {self.decoder.width}",
        )
        names = [entry.name for entry in self.files()]
        require(len(set(names)) == len(names), "files", names, "must not name one file twice")

    def files(self) -> list[FileEntry]:
        """Return all files of the bundle, vision graphs first."""
        return [*self.vision.files.values(), *self.decoder.files.values()]

    def to_json(self) -> str:
        """Return the text of ``manifest.json``."""
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check a manifest.

        Raises:
            BundleError: the text is not JSON, ``schema_version`` is unknown, or a field is missing, unknown
                or wrong.
        """
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"manifest is not JSON ({error}); the bundle is damaged, export it again"
            ) from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Manifest:
        """Create a manifest from parsed JSON, and check it.

        Raises:
            BundleError: as `from_json`.
        """
        if not isinstance(data, dict):
            raise BundleError(f"manifest: must be an object, is {type(data).__name__}")
        if "schema_version" not in data:
            raise BundleError("manifest.schema_version: missing")
        if data["schema_version"] != SCHEMA_VERSION:
            raise BundleError(
                f"manifest.schema_version: {data['schema_version']!r} is unknown, this edgevlm reads "
                f"{SCHEMA_VERSION}; install the edgevlm that made the bundle, or export it again"
            )
        manifest: Manifest = _parse(cls, data, "manifest")
        return manifest

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read and check ``manifest.json`` of a bundle folder.

        Raises:
            BundleError: the file cannot be read, or as `from_json`.
        """
        path = folder / MANIFEST_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{folder} is not a bundle: cannot read {path} ({error})") from error
        return cls.from_json(text)


class _FieldError(Exception):
    """A failed check inside one dataclass; `_parse` puts the path before it."""


def require(condition: bool, field: str, value: object, rule: str) -> None:
    """Check a condition of a field, for the ``check`` methods of the dataclasses.

    Args:
        condition: True if the value is valid.
        field: the name of the field.
        value: the value of the field.
        rule: the rule for valid values, such as ``must be positive``.
    """
    if not condition:
        raise _FieldError(f"{field}: {rule}, is {value!r}")


def _parse(annotation: Any, value: Any, path: str) -> Any:
    """Convert a JSON value to the annotated type; errors name `path`."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _parse_dataclass(annotation, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _parse(inner, value, path)
    if origin is Literal:
        if value not in arguments:
            raise BundleError(f"{path}: must be one of {', '.join(arguments)}, is {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"{path}: must be a list, is {value!r}")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        if len(arguments) != len(value):
            raise BundleError(f"{path}: must have {len(arguments)} entries, has {len(value)}")
        return tuple(
            _parse(argument, item, f"{path}[{index}]")
            for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise BundleError(f"{path}: must be an object, is {value!r}")
        return {key: _parse(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise BundleError(f"{path}: must be {annotation.__name__}, is {value!r}")
    return value


# Cached, since a manifest has dozens of special tokens, and annotations are strings to be evaluated.
_type_hints = functools.cache(typing.get_type_hints)


def _parse_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must be an object, is {value!r}")
    hints = _type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            raise BundleError(f"{path}.{name}: unknown field")
    arguments = {}
    for name, entry in fields.items():
        if name in value:
            arguments[name] = _parse(hints[name], value[name], f"{path}.{name}")
        elif entry.default is entry.default_factory is dataclasses.MISSING:
            raise BundleError(f"{path}.{name}: missing")
    parsed = cls(**arguments)
    if hasattr(parsed, "check"):
        try:
            parsed.check()
        except _FieldError as error:
            raise BundleError(f"{path}.{error}") from None
    return parsed
