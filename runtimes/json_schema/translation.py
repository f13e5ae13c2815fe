"""JSON Schema, draft 2020-12, checked and written as llguidance reads it.

What a schema may say stands here, and nothing passes that does not: a keyword is honoured, an annotation
(the standard gives it no say in what is valid), or refused with its place. So llguidance never meets a
keyword, a format or an option of its own that a client invented.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgevlm.runtimes.json_schema.keywords import (
    APPLICATORS,
    CHECKED,
    DRAFTS,
    FORMATS,
    IDENTIFIERS,
    MAX_DEPTH,
    MAX_NUMBER,
    PATTERNS,
    REFUSED,
    Path,
    kind,
    refuse,
    shortened,
    some,
    text,
)

MAX_SUBSCHEMAS = 10_000


@dataclass(frozen=True)
class Translation:
    """A schema as llguidance reads it."""

    schema: dict[str, Any]
    definitions: Mapping[str, Path] = field(repr=False)
    """Where each entry of ``$defs`` stands in the schema that was given."""

    def origin(self, path: Path) -> Path:
        """Where a place of `schema` was in the schema that was given."""
        if len(path) >= 2 and path[0] == "$defs":
            return (*self.definitions[str(path[1])], *path[2:])
        return path


def translate(schema: Mapping[str, Any]) -> Translation:
    """Check a schema and write it as llguidance reads it.

    Raises:
        InputError: of one line, with the place as a JSON pointer.
    """
    return _Translator(schema).translation()


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    """Schemas that stand directly within one that was translated, ``$defs`` left out."""
    for keyword, value in schema.items():
        if keyword in _ONE:
            yield (keyword,), value
        elif keyword in _LISTS:
            for index, one in enumerate(value):
                yield (keyword, index), one
        elif keyword in _MAPS:
            for name, one in value.items():
                yield (keyword, name), one


_ONE = frozenset({"items", "additionalProperties"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties"})


class _Translator:
    """One schema on its way."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._names: dict[Path, str] = {}
        """Where definitions stand in the given schema, and what they are called in the written one."""
        self._definitions: dict[str, Any] = {}
        self._inlined: set[Path] = set()
        self._count = 0
        self._depth = 0
        self._anchors: dict[str, Path] | None = None

    def translation(self) -> Translation:
        written = self._schema(self._root, ())
        if not isinstance(written, dict):  # a mapping stays one
            raise TypeError(type(written))
        places: dict[str, Path] = {}
        while len(places) < len(self._names):  # a definition may name further ones
            for place, name in list(self._names.items()):
                if name not in places:
                    places[name] = place
                    target = _at(self._root, place)
                    self._definitions[name] = self._schema(target, place)
        if self._definitions:
            written["$defs"] = self._definitions
        return Translation(written, places)

    def _schema(self, schema: Any, place: Path) -> Any:
        self._count += 1
        if self._count > MAX_SUBSCHEMAS:
            refuse(place, f"there are more than {MAX_SUBSCHEMAS} schemas; write a smaller one")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            refuse(place, f"a schema is an object or a boolean, not {kind(schema)}")
        if self._depth >= MAX_DEPTH:
            refuse(place, f"nested deeper than {MAX_DEPTH} schemas; write a flatter one")
        self._depth += 1
        written = self._keywords(schema, place)
        self._depth -= 1
        return written

    def _keywords(self, schema: Mapping[str, Any], place: Path) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for keyword, value in schema.items():
            if not isinstance(keyword, str):
                refuse(place, f"keys are texts, not {kind(keyword)}")
            here = (*place, keyword)
            if keyword == "format" and text(value, here) not in FORMATS:
                continue  # an annotation
            if keyword in CHECKED:
                written[keyword] = CHECKED[keyword](value, here)
            elif keyword in APPLICATORS:
                self._apply(keyword, value, schema, here, written)
            elif keyword in REFUSED:
                neutral, reason = REFUSED[keyword]
                if not neutral(value, schema):
                    refuse(here, f"{keyword} is not supported{reason}")
            elif keyword in IDENTIFIERS:
                self._identify(keyword, value, here)
        self._coherent(written, place)
        return written

    def _apply(
        self,
        keyword: str,
        value: Any,
        schema: Mapping[str, Any],
        place: Path,
        written: dict[str, Any],
    ) -> None:
        """Write a keyword that has schemas in it."""
        if keyword == "$ref":
            written["$ref"] = f"#/$defs/{self._definition(text(value, place), place)}"
        elif keyword == "items" and isinstance(value, list):  # as older drafts spell tuples
            if "prefixItems" in schema:
                refuse(place, "items is a list and prefixItems is there too; write one of them")
            written["prefixItems"] = self._list(value, place)
        elif keyword == "additionalItems":
            if isinstance(schema.get("items"), list):
                written["items"] = self._schema(value, place)
        elif keyword in _ONE:
            written[keyword] = self._schema(value, place)
        elif keyword in _MAPS:
            if not isinstance(value, Mapping):
                refuse(place, f"{keyword} is an object of schemas, not {kind(value)}")
            written[keyword] = {
                text(name, place): self._schema(one, (*place, name)) for name, one in value.items()
            }
        elif keyword == "oneOf":
            written[keyword] = [
                self._option(one, (*place, index)) for index, one in enumerate(some(value, place))
            ]
        else:
            written[keyword] = self._list(some(value, place), place)

    def _list(self, schemas: Sequence[Any], place: Path) -> list[Any]:
        return [self._schema(one, (*place, index)) for index, one in enumerate(schemas)]

    def _option(self, schema: Any, place: Path) -> Any:
        """Of ``oneOf``: llguidance must see what an option says to know that no other one fits too."""
        if isinstance(schema, Mapping) and set(schema) == {"$ref"}:
            target = self._target(text(schema["$ref"], place), (*place, "$ref"))
            if target not in self._inlined and self._depth < MAX_DEPTH:
                self._inlined.add(target)
                self._depth += 1
                written = self._option(_at(self._root, target), target)
                self._depth -= 1
                self._inlined.remove(target)
                return written
        return self._schema(schema, place)

    def _definition(self, reference: str, place: Path) -> str:
        target = self._target(reference, place)
        return self._names.setdefault(target, f"d{len(self._names)}")

    def _target(self, reference: str, place: Path) -> Path:
        """Where the schema stands that a ``$ref`` names."""
        base, _, fragment = reference.partition("#")
        if base and base != str(self._root.get("$id", "")).rstrip("#"):
            refuse(place, f"{reference!r} is another document, and none is fetched; use $defs")
        fragment = urllib.parse.unquote(fragment)
        if fragment and not fragment.startswith("/"):
            if self._anchors is None:
                self._anchors = dict(_anchors(self._root, ()))
            if fragment not in self._anchors:
                refuse(place, f"there is no $anchor {fragment!r}")
            return self._anchors[fragment]
        steps: list[str | int] = []
        found: Any = self._root
        for written in fragment.split("/")[1:]:
            step = written.replace("~1", "/").replace("~0", "~")
            if isinstance(found, Mapping) and step in found:
                steps.append(step)
                found = found[step]
            elif (
                isinstance(found, list)
                and step.isascii()
                and step.isdigit()
                and len(step) < 6
                and int(step) < len(found)
            ):
                steps.append(int(step))
                found = found[int(step)]
            else:
                refuse(place, f"there is nothing at {reference!r}")
        return tuple(steps)

    def _identify(self, keyword: str, value: Any, place: Path) -> None:
        """Keywords that say what a schema is called."""
        name = text(value, place)
        if keyword == "$schema" and len(place) == 1 and name.rstrip("#") not in DRAFTS:
            refuse(place, f"{shortened(name, 60)!r} is not a draft that is known; use {DRAFTS[0]}")
        if keyword == "$id" and len(place) > 1 and not name.startswith("#"):
            refuse(place, "$id within a schema is not supported; use $defs")

    def _coherent(self, written: dict[str, Any], place: Path) -> None:
        """What llguidance leaves to others."""
        types = written.get("type", ())
        types = [types] if isinstance(types, str) else types
        # No double holds every integer further out; multiples within bounds would cost too much.
        if "integer" in types and "number" not in types and "multipleOf" not in written:
            written.setdefault("minimum", -MAX_NUMBER)
            written.setdefault("maximum", MAX_NUMBER)
        if written.get("format") in PATTERNS:
            pattern = PATTERNS[written.pop("format")]
            written["allOf"] = [*written.get("allOf", ()), {"pattern": pattern}]
        required = written.get("required", ())
        wanted = written.get("minProperties", 0)
        if wanted > len(set(required)) + 1:
            refuse(
                (*place, "minProperties"),
                "minProperties is supported up to one more than what is required, as names may repeat",
            )


def _at(root: Any, path: Path) -> Any:
    for step in path:
        root = root[step]
    return root


def _anchors(schema: Any, place: Path) -> Iterator[tuple[str, Path]]:
    """Every ``$anchor`` of a given schema, and where."""
    if not isinstance(schema, Mapping) or len(place) > 2 * MAX_DEPTH:
        return
    if isinstance(schema.get("$anchor"), str):
        yield schema["$anchor"], place
    for keyword, value in schema.items():
        here = (*place, keyword)
        if keyword in _ONE:
            yield from _anchors(value, here)
        if keyword in _LISTS | {"items"} and isinstance(value, list):
            for index, one in enumerate(value):
                yield from _anchors(one, (*here, index))
        if keyword in _MAPS | {"$defs", "definitions"} and isinstance(value, Mapping):
            for name, one in value.items():
                yield from _anchors(one, (*here, name))
