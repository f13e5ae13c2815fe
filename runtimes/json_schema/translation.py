"""Translation of a JSON Schema, draft 2020-12, to the form that llguidance reads.

Each keyword is honoured, left out as an annotation (by the standard it does not affect what is valid), or
refused with its place. So no unknown keyword or format, and no option of llguidance, reaches llguidance.
"""

from __future__ import annotations

import math
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgevlm.runtimes.json_schema.keywords import (
    APPLICATORS,
    DRAFTS,
    FORMATS,
    IDENTIFIERS,
    MAX_DEPTH,
    MAX_HOSTNAME,
    MAX_NUMBER,
    PATTERNS,
    SMALLEST_NUMBER,
    UNSUPPORTED,
    VALUE_CHECKS,
    SchemaPath,
    check_array,
    check_string,
    json_type,
    refuse,
    shorten,
)
from edgevlm.runtimes.json_schema.patterns import common_pattern

MAX_SUBSCHEMAS = 10_000
"""Most schemas within one schema, references resolved."""


@dataclass(frozen=True)
class Translation:
    """A schema in the form that llguidance reads."""

    schema: dict[str, Any]
    """The translated schema, with all definitions in ``$defs``."""
    definitions: Mapping[str, SchemaPath] = field(repr=False)
    """Place of each entry of ``$defs`` in the original schema."""

    def origin(self, path: SchemaPath) -> SchemaPath:
        """Return the place in the original schema of a place in `schema`."""
        if len(path) >= 2 and path[0] == "$defs":
            return (*self.definitions[str(path[1])], *path[2:])
        return path


def translate(schema: Mapping[str, Any]) -> Translation:
    """Check a schema and translate it to the form that llguidance reads.

    Raises:
        InputError: the schema is not valid or not supported. The message is one line, with the place as a
            JSON pointer.
    """
    return _Translator(schema).translation()


def definition_name(schema: Mapping[str, Any]) -> str:
    """Return the entry of ``$defs`` that the ``$ref`` of a translated schema names; empty without one."""
    reference: str = schema.get("$ref", "")
    return reference.rpartition("/")[2]


def subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[SchemaPath, Any]]:
    """Yield place and value of the schemas directly within a translated schema, except ``$defs``."""
    for keyword, value in schema.items():
        if keyword in _SCHEMA_KEYWORDS:
            yield (keyword,), value
        elif keyword in _SCHEMA_LIST_KEYWORDS:
            for index, one in enumerate(value):
                yield (keyword, index), one
        elif keyword in _SCHEMA_MAP_KEYWORDS:
            for name, one in value.items():
                yield (keyword, name), one


_SCHEMA_KEYWORDS = frozenset({"items", "additionalProperties"})
_SCHEMA_LIST_KEYWORDS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMA_MAP_KEYWORDS = frozenset({"properties", "patternProperties"})


class _Translator:
    """The translation of one schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._root = schema
        self._names: dict[SchemaPath, str] = {}
        """Name of each definition in the translated schema, by its place in the original."""
        self._definitions: dict[str, Any] = {}
        self._inlined: set[SchemaPath] = set()
        self._count = 0
        self._depth = 0
        self._anchors: dict[str, SchemaPath] | None = None

    def translation(self) -> Translation:
        written = self._schema(self._root, ())
        if not isinstance(written, dict):  # cannot happen: a mapping is translated to a dict
            raise TypeError(type(written))
        places: dict[str, SchemaPath] = {}
        while len(places) < len(self._names):  # a definition may refer to new ones
            for place, name in list(self._names.items()):
                if name not in places:
                    places[name] = place
                    target = _at(self._root, place)
                    self._definitions[name] = self._schema(target, place)
        if self._definitions:
            written["$defs"] = self._definitions
        return Translation(written, places)

    def _schema(self, schema: Any, place: SchemaPath) -> Any:
        self._count += 1
        if self._count > MAX_SUBSCHEMAS:
            refuse(place, f"there are more than {MAX_SUBSCHEMAS} schemas; write a smaller schema")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            refuse(place, f"a schema must be an object or a boolean, is {json_type(schema)}")
        if self._depth >= MAX_DEPTH:
            refuse(place, f"nested deeper than {MAX_DEPTH} schemas; write a flatter schema")
        self._depth += 1
        written = self._keywords(schema, place)
        self._depth -= 1
        return written

    def _keywords(self, schema: Mapping[str, Any], place: SchemaPath) -> dict[str, Any]:
        written: dict[str, Any] = {}
        for keyword, value in schema.items():
            if not isinstance(keyword, str):
                refuse(place, f"keys must be strings, are {json_type(keyword)}")
            here = (*place, keyword)
            if keyword == "format" and check_string(value, here) not in FORMATS:
                continue  # an annotation
            if keyword in VALUE_CHECKS:
                written[keyword] = VALUE_CHECKS[keyword](value, here)
            elif keyword in APPLICATORS:
                self._apply(keyword, value, schema, here, written)
            elif keyword in UNSUPPORTED:
                neutral, reason = UNSUPPORTED[keyword]
                if not neutral(value, schema):
                    refuse(here, f"{keyword} is not supported{reason}")
            elif keyword in IDENTIFIERS:
                self._identify(keyword, value, here)
        if "propertyNames" in schema:
            self._name_properties(schema["propertyNames"], written, (*place, "propertyNames"))
        self._complete(written, place)
        return written

    def _apply(
        self,
        keyword: str,
        value: Any,
        schema: Mapping[str, Any],
        place: SchemaPath,
        written: dict[str, Any],
    ) -> None:
        """Translate a keyword that has schemas in it."""
        if keyword == "$ref":
            self._refer(self._target(check_string(value, place), place), place, written)
        elif keyword == "items" and isinstance(value, list):  # as older drafts write tuples
            if "prefixItems" in schema:
                refuse(place, "items is an array and there is prefixItems, too; use one of them")
            written["prefixItems"] = self._list(value, place)
        elif keyword == "additionalItems":
            if isinstance(schema.get("items"), list):
                written["items"] = self._schema(value, place)
        elif keyword == "propertyNames":
            pass  # `_name_properties` needs the other keywords
        elif keyword in _SCHEMA_KEYWORDS:
            written[keyword] = self._schema(value, place)
        elif keyword in _SCHEMA_MAP_KEYWORDS:
            if not isinstance(value, Mapping):
                refuse(place, f"{keyword} must be an object of schemas, is {json_type(value)}")
            closed = keyword == "patternProperties" and schema.get("additionalProperties") is False
            schemas = {}
            for name, one in value.items():
                rule = check_string(name, place)
                rule = common_pattern(rule) if closed else rule
                if rule in schemas:
                    refuse(
                        place, "some names fit two of patternProperties; a name may fit only one"
                    )
                schemas[rule] = self._schema(one, (*place, name))
            written[keyword] = schemas
        elif keyword == "oneOf":
            written[keyword] = [
                self._option(one, (*place, index))
                for index, one in enumerate(check_array(value, place))
            ]
        else:  # what `$ref` or a format added to allOf comes after it
            added = written.get(keyword, ())
            written[keyword] = [*self._list(check_array(value, place), place), *added]

    def _name_properties(self, names: Any, written: dict[str, Any], place: SchemaPath) -> None:
        """Translate ``propertyNames`` to ``properties`` or ``patternProperties``, which llguidance has."""
        for _ in range(MAX_DEPTH):
            if isinstance(names, Mapping) and set(names) == {"$ref"}:
                target = self._target(check_string(names["$ref"], place), (*place, "$ref"))
                names = _at(self._root, target)
        rules = self._schema(names, place)
        if isinstance(rules, bool):
            rules = {} if rules else {"enum": []}
        types = rules.pop("type", "string")
        if "string" not in ([types] if isinstance(types, str) else types):
            rules = {"enum": []}
        if not rules:
            return
        if "const" in rules:
            rules["enum"] = [rules.pop("const")]
        if rules.keys() == {"allOf"} and len(rules["allOf"]) == 1:  # as `_complete` writes a format
            (rules,) = rules["allOf"]
        values = written.pop("additionalProperties", True)
        beside = [word for word in ("properties", "patternProperties") if word in written]
        if beside:
            refuse(
                place, f"propertyNames with {beside[0]} beside it is not supported; use one of them"
            )
        if rules.keys() == {"enum"}:
            allowed = [name for name in rules["enum"] if isinstance(name, str)]
            written["properties"] = dict.fromkeys(allowed, values)
        elif rules.keys() == {"pattern"}:
            written["patternProperties"] = {rules["pattern"]: values}
        elif rules.keys() <= {"minLength", "maxLength"}:
            size = f"{rules.get('minLength', 0)},{rules.get('maxLength', '')}"
            written["patternProperties"] = {rf"^[\s\S]{{{size}}}$": values}
        else:
            refuse(
                place, "propertyNames takes one of enum, const, pattern, or minLength and maxLength"
            )
        written["additionalProperties"] = False

    def _list(self, schemas: Sequence[Any], place: SchemaPath) -> list[Any]:
        return [self._schema(one, (*place, index)) for index, one in enumerate(schemas)]

    def _option(self, schema: Any, place: SchemaPath) -> Any:
        """Translate an option of ``oneOf``. Resolve a reference, since llguidance compares the options."""
        if isinstance(schema, Mapping) and set(schema) == {"$ref"}:
            target = self._target(check_string(schema["$ref"], place), (*place, "$ref"))
            if target not in self._inlined and self._depth < MAX_DEPTH:
                self._inlined.add(target)
                self._depth += 1
                written = self._option(_at(self._root, target), target)
                self._depth -= 1
                self._inlined.remove(target)
                return written
        return self._schema(schema, place)

    def _refer(self, target: SchemaPath, place: SchemaPath, written: dict[str, Any]) -> None:
        """Write a ``$ref``. Copy boolean schemas, since llguidance crashes on references to ``false``."""
        found = _at(self._root, target)
        if isinstance(found, bool):
            written["allOf"] = [*written.get("allOf", ()), self._schema(found, place)]
        else:
            name = self._names.setdefault(target, f"d{len(self._names)}")
            written["$ref"] = f"#/$defs/{name}"

    def _target(self, reference: str, place: SchemaPath) -> SchemaPath:
        """Return the place of the schema that a ``$ref`` names."""
        base, _, fragment = reference.partition("#")
        if base and base != str(self._root.get("$id", "")).rstrip("#"):
            refuse(place, f"{reference!r} is in another document, which is not fetched; use $defs")
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

    def _identify(self, keyword: str, value: Any, place: SchemaPath) -> None:
        """Check a keyword that names a schema."""
        name = check_string(value, place)
        if keyword == "$schema" and len(place) == 1 and name.rstrip("#") not in DRAFTS:
            refuse(place, f"{shorten(name, 60)!r} is not a known draft; use {DRAFTS[0]}")
        if keyword == "$id" and len(place) > 1 and not name.startswith("#"):
            refuse(place, "$id within a schema is not supported; use $defs")

    def _complete(self, written: dict[str, Any], place: SchemaPath) -> None:
        """Add constraints that llguidance does not enforce, and check ``minProperties``."""
        types = written.get("type", ())
        types = [types] if isinstance(types, str) else types
        # Beyond 2**53 doubles do not hold every integer. Bounds with multipleOf would cost too much.
        if "integer" in types and "number" not in types and "multipleOf" not in written:
            written.setdefault("minimum", -MAX_NUMBER)
            written.setdefault("maximum", MAX_NUMBER)
        if types != ["integer"]:
            for keyword, end in (("exclusiveMinimum", math.inf), ("exclusiveMaximum", -math.inf)):
                if keyword in written:
                    written[keyword] = _next_bound(written[keyword], end)
        if written.get("format") in PATTERNS:
            name = written.pop("format")
            rules: dict[str, Any] = {"pattern": PATTERNS[name]}
            if name == "hostname":
                rules["maxLength"] = MAX_HOSTNAME
            written["allOf"] = [*written.get("allOf", ()), rules]
        if "additionalProperties" in written and "patternProperties" in written:
            # llguidance reads keywords in order, and forgets the patterns at an allOf between the two.
            for keyword in ("patternProperties", "additionalProperties"):
                written[keyword] = written.pop(keyword)
        required = written.get("required", ())
        wanted = written.get("minProperties", 0)
        if wanted > len(set(required)) + 1:
            refuse(
                (*place, "minProperties"),
                "minProperties may be at most one more than the required names, as names may repeat",
            )


def _next_bound(bound: int | float, end: float) -> int | float:
    """Return an exclusive bound that llguidance keeps to, at most one double nearer to `end`.

    llguidance allows an integer itself if the other bound is less than 1 away, such as 0 in 0 < x < 0.5.
    """
    if bound != int(bound) or abs(bound) >= 2**52:
        return bound
    return math.nextafter(bound, end) if bound else math.copysign(SMALLEST_NUMBER, end)


def _at(root: Any, path: SchemaPath) -> Any:
    for step in path:
        root = root[step]
    return root


def _anchors(schema: Any, place: SchemaPath) -> Iterator[tuple[str, SchemaPath]]:
    """Yield name and place of each ``$anchor`` of an original schema."""
    if not isinstance(schema, Mapping) or len(place) > 2 * MAX_DEPTH:
        return
    if isinstance(schema.get("$anchor"), str):
        yield schema["$anchor"], place
    for keyword, value in schema.items():
        here = (*place, keyword)
        if keyword in _SCHEMA_KEYWORDS:
            yield from _anchors(value, here)
        if keyword in _SCHEMA_LIST_KEYWORDS | {"items"} and isinstance(value, list):
            for index, one in enumerate(value):
                yield from _anchors(one, (*here, index))
        if keyword in _SCHEMA_MAP_KEYWORDS | {"$defs", "definitions"} and isinstance(
            value, Mapping
        ):
            for name, one in value.items():
                yield from _anchors(one, (*here, name))
