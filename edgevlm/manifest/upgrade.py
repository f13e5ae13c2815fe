"""Read manifests of schema version 1 and of edgevlm 0.1: the same bundle in the words of today."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from edgevlm.errors import BundleError
from edgevlm.manifest.images import Resample
from edgevlm.manifest.parsing import parse, require
from edgevlm.manifest.prompt import SpecialToken


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the parsed JSON of a manifest from schema version 1 to 2.

    A section that is missing or no object stays so, for the parser to name it, and so does every field that
    both versions have.

    Raises:
        BundleError: a field that only version 1 has is missing or wrong, or a section has a field of
            version 2; the message names the field.
    """
    upgraded = {**data, "schema_version": 2}
    for name, upgrade_section in _SECTIONS.items():
        if isinstance(data.get(name), dict):
            upgraded[name] = upgrade_section(data[name])
    return upgraded


def upgrade_usage(data: Any) -> Any:
    """Convert the parsed JSON of a section ``usage`` of edgevlm 0.1, which knew one format of boxes.

    ``boxes`` becomes ``location_format``, and the task ``find`` becomes ``detect``. Other data stay as they
    are, and the parser names their faults.
    """
    if not isinstance(data, dict):
        return data
    upgraded = dict(data)
    if "boxes" in data and data["boxes"] in (None, "percent") and "location_format" not in data:
        boxes = upgraded.pop("boxes")
        upgraded["location_format"] = boxes and {"kind": "list", "scale": 100.0}
    if isinstance(data.get("tasks"), dict):
        upgraded["tasks"] = {
            language: _upgrade_tasks(tasks) for language, tasks in data["tasks"].items()
        }
    return upgraded


def _upgrade_tasks(tasks: Any) -> Any:
    if not isinstance(tasks, dict) or "detect" in tasks:
        return tasks
    if not isinstance(tasks.get("find", ()), str | None):
        return tasks
    return {"detect" if name == "find" else name: question for name, question in tasks.items()}


@dataclass(frozen=True)
class _Image:
    """The section ``image`` of version 1."""

    strategy: Literal["stretch", "grid"]
    tile_size: tuple[int, int]
    resample: Resample
    longest_edge: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    rescale_factor: float


@dataclass(frozen=True)
class _Spelling:
    """The texts that placed one image in the prompt."""

    whole: str
    """Text for an image of one tile; contains ``{image}`` once."""
    tile: str = ""
    """Text for each tile of a grid, with ``{row}`` and ``{column}``; empty, or contains ``{image}`` once."""
    row_end: str = ""
    """Text after each row of a grid."""
    overview: str = ""
    """Text after the grid; empty, or contains ``{image}`` once."""

    def check(self) -> None:
        for name in ("whole", "tile", "overview"):
            text = getattr(self, name)
            require(
                text.count("{image}") == 1 or (not text and name != "whole"),
                name,
                text,
                "must contain {image} once",
            )

    def template(self) -> str:
        """Return the texts as one image template."""
        whole = _template(self.whole, "image")
        if not (self.tile or self.row_end or self.overview):
            return whole
        tile = _template(self.tile, "image", "row", "column")
        return (
            f"{{% if tiles == 1 %}}{whole}{{% else %}}{{% for row in range(1, rows + 1) %}}"
            f"{{% for column in range(1, columns + 1) %}}{tile}{{% endfor %}}{_template(self.row_end)}"
            f"{{% endfor %}}{_template(self.overview, 'image')}{{% endif %}}"
        )


@dataclass(frozen=True)
class _Prompt:
    """The section ``prompt`` of version 1."""

    chat_template: str
    template_variables: dict[str, str]
    image_token: str
    image_spelling: _Spelling
    special_tokens: tuple[SpecialToken, ...]
    end_token_ids: tuple[int, ...]

    def check(self) -> None:
        require(
            any(token.text == self.image_token for token in self.special_tokens),
            "image_token",
            self.image_token,
            "must be one of special_tokens",
        )


def _upgrade_image(section: dict[str, Any]) -> dict[str, Any]:
    parse(_Image, section, "manifest.image")
    tiling = {name: section[name] for name in ("tile_size", "resample", "longest_edge")}
    normalization = {name: section[name] for name in ("mean", "std", "rescale_factor")}
    return {"tiling": {"kind": section["strategy"], **tiling}, "normalization": normalization}


def _upgrade_vision(section: dict[str, Any]) -> dict[str, Any]:
    return _add("vision", section, learned_rows=0, packing={"kind": "tiles"})


def _upgrade_prompt(section: dict[str, Any]) -> dict[str, Any]:
    prompt: _Prompt = parse(_Prompt, section, "manifest.prompt")
    kept = {name: value for name, value in section.items() if name != "image_spelling"}
    return {
        **kept,
        "image_placeholder": prompt.image_token,
        "image_template": prompt.image_spelling.template(),
        "begin_token_ids": [],
        "normalization": None,
        "space_prefix": "never",
    }


def _upgrade_decoder(section: dict[str, Any]) -> dict[str, Any]:
    return _add("decoder", section, text_embedding_scale=1.0)


_SECTIONS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "image": _upgrade_image,
    "vision": _upgrade_vision,
    "prompt": _upgrade_prompt,
    "decoder": _upgrade_decoder,
}


def _add(section: str, data: dict[str, Any], **fields: object) -> dict[str, Any]:
    """Add the fields that version 1 did not have."""
    for name in fields:
        if name in data:
            raise BundleError(f"manifest.{section}.{name}: unknown field in schema version 1")
    return {**data, **fields}


def _template(text: str, *names: str) -> str:
    """Return a text with ``{name}`` in the place of some variables as Jinja source."""
    for index, name in enumerate(names):
        first, *others = text.split(f"{{{name}}}")
        if others:
            rest = names[index + 1 :]
            return f"{{{{ {name} }}}}".join(_template(part, *rest) for part in (first, *others))
    # Jinja reads braces, and makes every end of a line "\n".
    plain = not set("{}\r") & set(text)
    return text if plain else f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
