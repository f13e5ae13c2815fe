"""Read manifests of schema version 1: the same bundle in the words of version 2."""

from __future__ import annotations

import json
from typing import Any


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """Convert the parsed JSON of a manifest from schema version 1 to 2.

    A missing, unknown or wrong field stays so, for the parser to name it.
    """
    upgraded = {**data, "schema_version": 2}
    image, vision, prompt, decoder = (
        dict(data[name]) if isinstance(data.get(name), dict) else None
        for name in ("image", "vision", "prompt", "decoder")
    )
    if image is not None:
        normalization = _move(image, "mean", "std", "rescale_factor")
        if "strategy" in image:
            image["kind"] = image.pop("strategy")
        upgraded["image"] = {"tiling": image, "normalization": normalization}
    if vision is not None:
        upgraded["vision"] = {**vision, "learned_rows": 0, "packing": {"kind": "tiles"}}
    if prompt is not None:
        if "image_token" in prompt:
            prompt["image_placeholder"] = prompt["image_token"]
        spelling = prompt.get("image_spelling")
        if isinstance(spelling, dict) and _is_spelling(spelling):
            del prompt["image_spelling"]
            prompt["image_template"] = image_template(**spelling)
        upgraded["prompt"] = {
            **prompt,
            "begin_token_ids": [],
            "normalization": None,
            "space_prefix": "never",
        }
    if decoder is not None:
        upgraded["decoder"] = {**decoder, "text_embedding_scale": 1.0}
    return upgraded


def image_template(whole: str, tile: str = "", row_end: str = "", overview: str = "") -> str:
    """Return the texts of version 1 as one template.

    Args:
        whole: text for an image of one tile, with ``{image}`` in the place of the tile.
        tile: text for each tile of a grid, with ``{image}``, ``{row}`` and ``{column}``.
        row_end: text after each row of a grid.
        overview: text after the grid, with ``{image}``.
    """
    if not (tile or row_end or overview):
        return _template(whole)
    return (
        f"{{% if tiles == 1 %}}{_template(whole)}{{% else %}}{{% for row in range(1, rows + 1) %}}"
        f"{{% for column in range(1, columns + 1) %}}{_template(tile)}{{% endfor %}}{_template(row_end)}"
        f"{{% endfor %}}{_template(overview)}{{% endif %}}"
    )


def _template(text: str) -> str:
    """Return a text of version 1 as Jinja source."""
    for name in ("image", "row", "column"):
        first, *others = text.split(f"{{{name}}}")
        if others:
            return "".join(
                [_template(first), *(f"{{{{ {name} }}}}{_template(other)}" for other in others)]
            )
    plain = not set("{}\r") & set(text)
    return text if plain else f"{{{{ {json.dumps(text)} }}}}"


def _is_spelling(spelling: dict[str, Any]) -> bool:
    names = {"whole", "tile", "row_end", "overview"}
    return "whole" in spelling and all(
        name in names and isinstance(text, str) for name, text in spelling.items()
    )


def _move(source: dict[str, Any], *names: str) -> dict[str, Any]:
    """Take the entries with these names out of a dictionary and return them."""
    return {name: source.pop(name) for name in names if name in source}
