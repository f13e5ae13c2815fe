"""The manifest: the contract between the exporter and the runtime, as frozen dataclasses.

Everything a model family needs at run time is data here; the runtime never asks which family it runs.
Strategies are closed sets of names (``ImagePreparation.strategy``, ``DecoderSpec.attention``, ...): a new
family either picks among them or adds a name, implemented once in the module that owns the decision.

`Manifest.from_dict` refuses an unknown ``schema_version``, a missing or unknown field and a value of the
wrong type or range with a `BundleError` that names the field, such as ``manifest.vision.tile_size``.
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
MANIFEST_NAME = "manifest.json"

Resample = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    name: str
    """File name inside the bundle folder; no directories."""
    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of the file: 64 lower-case hexadecimal digits."""
    bits_per_weight: float | None = None
    """Decoders: file bits per parameter, as it came out; None for vision graphs."""

    def check(self) -> None:
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
    """How an RGB uint8 picture becomes uint8 tiles; carried out by `edgevlm.inputs.tiling`."""

    strategy: Literal["stretch", "grid"]
    """``stretch``: the picture resized to one tile, whatever its aspect.
    ``grid``: Idefics3's splitting, a grid of tiles and last an overview (one tile if it fits)."""
    tile_size: tuple[int, int]
    """Height and width of a tile, pixels."""
    resample: Resample
    """Pillow's filter for resizing."""
    longest_edge: int | None
    """The picture's longest edge is first resized to this, up or down (Idefics3's rule); None: not."""
    mean: tuple[float, float, float]
    """Mean of red, green and blue, after rescaling."""
    std: tuple[float, float, float]
    """Standard deviation of red, green and blue, after rescaling."""
    rescale_factor: float
    """``(pixel * rescale_factor - mean) / std`` is computed inside the vision graph; recorded for reading."""

    def check(self) -> None:
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
    """The vision graph: uint8 tiles ``[n, height, width, 3]`` to float32 ``[n, tokens, width]``."""

    input_name: str
    """Name of the graph's input."""
    output_name: str
    """Name of the graph's output."""
    tokens_per_tile: int
    """Embeddings of one tile, and so positions that it takes."""
    width: int
    """Size of one embedding, equal to the decoder's."""
    files: dict[str, FileEntry]
    """Precision (``fp32``, ``fp16``, ``int8``) to file."""

    def check(self) -> None:
        require(
            self.tokens_per_tile > 0, "tokens_per_tile", self.tokens_per_tile, "must be positive"
        )
        require(self.width > 0, "width", self.width, "must be positive")
        require(bool(self.files), "files", self.files, "must not be empty")


@dataclass(frozen=True)
class SpecialToken:
    """A token that only the template may produce; the same characters in a user's text are plain text."""

    text: str
    """Its characters in the template."""
    id: int
    """Its id in the vocabulary."""
    strip_left: bool = False
    """White space before it is swallowed (``lstrip`` of the checkpoint's tokenizer)."""
    strip_right: bool = False
    """The same for white space after it (``rstrip``)."""

    def check(self) -> None:
        require(bool(self.text), "text", self.text, "must not be empty")
        require(self.id >= 0, "id", self.id, "must not be negative")


@dataclass(frozen=True)
class ImageSpelling:
    """How one picture is written in the prompt.

    ``{image}`` stands for the embeddings of one tile, ``{row}`` and ``{column}`` count from 1.
    """

    whole: str
    """A picture of one tile."""
    tile: str = ""
    """Each tile of a grid, row by row."""
    row_end: str = ""
    """After each row of a grid."""
    overview: str = ""
    """The whole picture in one tile, after the grid."""

    def check(self) -> None:
        require(self.whole.count("{image}") == 1, "whole", self.whole, "must hold {image} once")
        for name in ("tile", "overview"):
            spelled = getattr(self, name)
            require(
                not spelled or spelled.count("{image}") == 1,
                name,
                spelled,
                "must hold {image} once",
            )


@dataclass(frozen=True)
class PromptSpec:
    """How messages become tokens; carried out by `edgevlm.inputs.prompt`."""

    chat_template: str
    """Jinja2 source, as transformers renders it (``messages``, ``add_generation_prompt``)."""
    template_variables: dict[str, str]
    """Further names that the template may use, such as ``bos_token``."""
    image_token: str
    """What the template writes where a picture stands."""
    image_spelling: ImageSpelling
    """How the place of an image is written."""
    special_tokens: tuple[SpecialToken, ...]
    """Tokens that only the template may produce."""
    end_token_ids: tuple[int, ...]
    """An answer ends at any of these."""

    def check(self) -> None:
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
    """The language model: a GGUF file that stock llama.cpp loads."""

    architecture: str
    """GGUF's ``general.architecture``, for reading only."""
    width: int
    """Size of one embedding."""
    vocabulary_size: int
    """Tokens in the vocabulary, and logits of a position."""
    context_length: int
    """Positions that the checkpoint was made for."""
    attention: Literal["causal", "prefix"]
    """``prefix``: every prompt position, picture or text, sees every other; the answer is causal."""
    positions: Literal["sequential"]
    """How positions are numbered over text and pictures."""
    embedding_scale: float
    """The vision graph's output is multiplied by this before the decoder gets it (1 for most families;
    Gemma's decoder in llama.cpp multiplies its input by sqrt(width), which pictures must not feel)."""
    files: dict[str, FileEntry]
    """llama.cpp type (``f16``, ``q8_0``, ``q4_0``, ``q4_k_m``, ...) to file."""

    def check(self) -> None:
        for name in ("width", "vocabulary_size", "context_length"):
            require(getattr(self, name) > 0, name, getattr(self, name), "must be positive")
        require(
            self.embedding_scale > 0, "embedding_scale", self.embedding_scale, "must be positive"
        )
        require(bool(self.files), "files", self.files, "must not be empty")


@dataclass(frozen=True)
class Source:
    """Where the checkpoint came from."""

    repository: str
    """Hub repository, or the checkpoint folder's name."""
    revision: str | None
    """Commit of the hub repository; None for a folder."""
    family: str
    """``model_type`` of the checkpoint's configuration, for reading only."""
    license: str
    """License of the checkpoint, as its model card names it."""


@dataclass(frozen=True)
class Drift:
    """How far one precision is from the checkpoint in transformers float32."""

    relative_error: float
    """``|ours - theirs| / |theirs|`` (L2): embeddings for a vision graph, logits for a decoder."""
    bound: float
    """The relative error that the exporter accepts."""
    top1_agreement: float | None = None
    """Decoders: share of teacher-forced positions whose most likely token is the same."""


@dataclass(frozen=True)
class ParityReport:
    """What the exporter's last step measured, against transformers in float32."""

    pictures: int
    """Images that were compared."""
    prompts: int
    """Prompts that were compared."""
    positions: int
    """Teacher-forced positions compared."""
    vision: dict[str, Drift]
    """Precision to drift of the vision graph."""
    decoder: dict[str, Drift]
    """Type to drift of the decoder."""
    drift_allowed: bool
    """True if a bound was passed and the person who exported said that it may be."""


@dataclass(frozen=True)
class Golden:
    """One stored answer of the checkpoint, for ``edgevlm verify``."""

    picture_png: str
    """Base64 of a small PNG."""
    question: str
    """The question about this image."""
    token_ids: tuple[int, ...]
    """transformers' greedy answer in float32, end token included if it came."""


@dataclass(frozen=True)
class Tasks:
    """Questions of one language that the model answers; None where it does not do the task."""

    describe: str | None = None
    """What is in the image."""
    find: str | None = None
    """Where something is; ``{thing}`` stands for its name. The answer is a box, see `Usage.boxes`."""
    count: str | None = None
    """May hold ``{thing}``."""
    read: str | None = None
    """May hold ``{thing}``."""

    def check(self) -> None:
        for name, question in dataclasses.asdict(self).items():
            if question is not None:
                plain = question.replace("{thing}", "", 1)
                require(bool(question.strip()), name, question, "must not be empty")
                require(
                    not set("{}") & set(plain),
                    name,
                    question,
                    "may hold {thing} once, no brace else",
                )
                require(name != "find" or plain != question, name, question, "must hold {thing}")


@dataclass(frozen=True)
class Usage:
    """What a person should know to ask the model well; the runtime itself needs none of it."""

    images: Literal["drawings", "photographs"] | None = None
    """What it was trained on; None: not known."""
    boxes: Literal["percent"] | None = None
    """How an answer says where something is. ``percent``: ``[left, top, right, bottom]``, each from 0 to
    100 of the image's width or height. None: in words, or not at all."""
    tasks: dict[str, Tasks] = field(default_factory=dict)
    """Language (ISO 639-1: ``en``, ``ru``) to its questions; empty: not known."""

    def check(self) -> None:
        for language in self.tasks:
            require(
                re.fullmatch("[a-z]{2}", language) is not None,
                "tasks",
                language,
                "must have languages of two lower-case letters",
            )

    def questions(self, language: str) -> dict[str, str]:
        """Task to question, in this language or else in English; empty if there is neither."""
        tasks = self.tasks.get(language) or self.tasks.get("en") or Tasks()
        return {name: text for name, text in dataclasses.asdict(tasks).items() if text is not None}

    @classmethod
    def from_dict(cls, data: object) -> Usage:
        """Build from parsed JSON.

        Raises:
            BundleError: an unknown or wrong field, named as ``usage.tasks``.
        """
        usage: Usage = _parse(cls, data, "usage")
        return usage


@dataclass(frozen=True)
class Manifest:
    """What is in a bundle and how to use it."""

    schema_version: int
    """Version of this format; this edgevlm reads one version only."""
    name: str
    """Name of the bundle."""
    source: Source
    """The checkpoint."""
    image: ImagePreparation
    """How images become tiles."""
    vision: VisionSpec
    """The vision graphs."""
    prompt: PromptSpec
    """How messages become tokens."""
    decoder: DecoderSpec
    """The decoders."""
    parity: ParityReport | None
    """The comparison with the checkpoint."""
    golden: Golden | None
    """The stored answer."""
    created_with: dict[str, str]
    """Package to version, of all that made the bundle."""
    usage: Usage | None = None
    """None: not known, as in older bundles."""

    def check(self) -> None:
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
        """Every file that the manifest lists."""
        return [*self.vision.files.values(), *self.decoder.files.values()]

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse and check.

        Raises:
            BundleError: not JSON, an unknown ``schema_version``, a missing, unknown or wrong field.
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
        """Build from parsed JSON; see `from_json`."""
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
        """Read ``manifest.json`` of a bundle folder.

        Raises:
            BundleError: no such file, or see `from_json`.
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
    """Used by the dataclasses' ``check`` methods."""
    if not condition:
        raise _FieldError(f"{field}: {rule}, is {value!r}")


def _parse(annotation: Any, value: Any, path: str) -> Any:
    """JSON value to the annotated type; raises BundleError naming `path`."""
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


# Dozens of special tokens are of one class, whose annotations are strings to be evaluated.
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
