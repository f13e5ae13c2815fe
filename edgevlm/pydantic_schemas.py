"""JSON schemas of Python types, written by pydantic and as strict as its parser.

Pydantic's own schemas describe a type to people: its parser refuses some of what they allow, such as a URL of
another scheme, and ignores properties that they do not name. A grammar must allow only what the parser takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from edgevlm.runtimes.json_schema.keywords import (
    FORMATS,
    LOCAL_DATE_TIME,
    MAX_NUMBER,
    SchemaPath,
    refuse,
)
from edgevlm.runtimes.json_schema.translation import subschemas

FREE_FORMATS = frozenset({"binary", "password", "path"})
"""Formats that any string keeps to."""

_REFUSAL = "edgevlm: refused"
"""Key of a schema that no grammar can keep to. Its value is the reason."""

_DATE_BOUNDS = ("le", "ge", "lt", "gt", "now_op")
_LABEL = "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"


class StrictJsonSchema(GenerateJsonSchema):
    """A generator of schemas that a grammar can keep to; for the argument ``schema_generator`` of pydantic.

    Raises:
        InputError: the parser demands what a grammar cannot keep to. The message has the place.
    """

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default", "skipped-discriminator"}  # noqa: RUF012

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        """Return the schema of a core schema, with `_tighten` applied at each place."""
        written = super().generate(schema, mode)
        definitions = written.get("$defs", {})
        _tighten(written, (), definitions)
        for name, definition in definitions.items():
            _tighten(definition, ("$defs", name), definitions)
        return written

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """Refuse a type without a JSON schema, with its place."""
        return _refused(f"the type has no JSON schema ({error_info})")

    def str_schema(self, schema: Any) -> dict[str, Any]:
        """Forbid the white space that the parser would remove before it counts characters."""
        written = super().str_schema(schema)
        if schema.get("strip_whitespace", self._config.str_strip_whitespace):
            written["allOf"] = [{"pattern": r"^(?:\S(?:[\s\S]*\S)?)?$"}]
        return written

    def bytes_schema(self, schema: Any) -> dict[str, Any]:
        """Keep to ASCII where the parser counts bytes."""
        written = super().bytes_schema(schema)
        if "maxLength" in written:
            written["pattern"] = "^[ -~]*$"
        return written

    def float_schema(self, schema: Any) -> dict[str, Any]:
        """Keep numbers finite and without exponents."""
        written = super().float_schema(schema)
        if (
            "multipleOf" not in written
        ):  # multiples have no exponents, and bounds would cost too much
            if "exclusiveMinimum" not in written:
                written.setdefault("minimum", -MAX_NUMBER)
            if "exclusiveMaximum" not in written:
                written.setdefault("maximum", MAX_NUMBER)
        return written

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        """Write a number, not a string; digits become bounds and a multiple."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if digits is not None and places is None:
            return _refused("max_digits needs decimal_places beside it")
        if places is not None:
            if "multiple_of" in schema:
                return _refused("multiple_of and decimal_places cannot stand together")
            schema = {**schema, "multiple_of": 10.0**-places}
        written: dict[str, Any] = super().decimal_schema(schema)["anyOf"][0]
        if digits is not None:
            most = 10.0 ** (digits - places) - 10.0**-places
            written["minimum"] = max(-most, written.get("minimum", -most))
            written["maximum"] = min(most, written.get("maximum", most))
        return written

    def date_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse bounds."""
        return _without_bounds(schema) or super().date_schema(schema)

    def time_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse bounds and a demanded time zone."""
        if schema.get("tz_constraint") == "naive":
            return _refused("a time without a zone is not supported")
        return _without_bounds(schema) or super().time_schema(schema)

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse bounds; leave out the time zone where the parser forbids it."""
        written = super().datetime_schema(schema)
        if schema.get("tz_constraint") == "naive":
            written = {"type": "string", "pattern": LOCAL_DATE_TIME}
        return _without_bounds(schema) or written

    def timedelta_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse bounds."""
        return _without_bounds(schema) or super().timedelta_schema(schema)

    def set_schema(self, schema: Any) -> dict[str, Any]:
        """Allow repetitions, which the parser removes."""
        return _repeatable(super().set_schema(schema))

    def frozenset_schema(self, schema: Any) -> dict[str, Any]:
        """Allow repetitions, which the parser removes."""
        return _repeatable(super().frozenset_schema(schema))

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        """Write the names that the type of the keys allows, all of them as ``propertyNames``."""
        written = super().dict_schema(schema)
        if "patternProperties" in written:
            return {**written, "additionalProperties": False}
        keys = self.generate_inner(schema["keys_schema"]) if "keys_schema" in schema else {}
        keys = self.resolve_ref_schema(keys)
        if keys.get("type") == "integer":
            if keys.keys() - {"type", "title", "description"}:
                return _refused("bounds of integers as keys are not supported")
            keys = {"pattern": r"^(?:0|-?[1-9][0-9]{0,14})$"}
        return {**written, "propertyNames": keys}

    def url_schema(self, schema: Any) -> dict[str, Any]:
        """Keep to the schemes that the parser takes, and to hosts of letters, digits and hyphens."""
        written = super().url_schema(schema)
        schemes = "|".join(schema.get("allowed_schemes") or ("http", "https", "ftp"))
        host = rf"(?:{_LABEL}\.)*[A-Za-z]{_LABEL}"
        written["pattern"] = rf"^(?:{schemes})://{host}(?:/[A-Za-z0-9._~-]*)*$"
        del written["format"]
        return written

    def json_schema(self, schema: Any) -> dict[str, Any]:
        """Refuse JSON within a string."""
        return _refused("JSON within a string is not supported; use the type itself")

    def tagged_union_schema(self, schema: Any) -> dict[str, Any]:
        """Write ``anyOf`` with the tag: `_tighten` makes it required."""
        written = super().tagged_union_schema(schema)
        written["anyOf"] = written.pop("oneOf")
        return written


def _refused(reason: str) -> dict[str, Any]:
    return {_REFUSAL: reason}


def _without_bounds(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a refusal if a date, time or duration has bounds; else an empty schema."""
    if any(bound in schema for bound in _DATE_BOUNDS):
        return _refused("bounds of dates, times and durations are not supported; check the value")
    return {}


def _repeatable(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a set as one of an array."""
    del schema["uniqueItems"]
    if schema.get("minItems", 0) > 1:
        return _refused("a set of at least two items is not supported; use a list")
    return schema


def _tighten(schema: Any, place: SchemaPath, definitions: Mapping[str, Any]) -> None:
    """Make a schema and those within it as strict as the parser, in place.

    Raises:
        InputError: a part is refused.
    """
    if not isinstance(schema, dict):
        return
    if _REFUSAL in schema:
        refuse(place, schema[_REFUSAL])
    name = schema.get("format")
    if name is not None and name not in FORMATS and name not in FREE_FORMATS:
        refuse((*place, "format"), f"the format {name!r} is not supported")
    if "properties" in schema:  # the parser ignores others
        schema.setdefault("additionalProperties", False)
    if "discriminator" in schema:
        tag = schema.pop("discriminator")["propertyName"]
        for option in schema["anyOf"]:
            _require(option, tag, definitions)
    _tighten(schema.get("propertyNames"), (*place, "propertyNames"), definitions)
    for step, part in subschemas(schema):
        _tighten(part, (*place, *step), definitions)


def _require(option: dict[str, Any], tag: str, definitions: Mapping[str, Any]) -> None:
    """Make the tag of an option of a union required, without which the parser cannot choose."""
    while "$ref" in option:
        option = definitions[option["$ref"].rpartition("/")[2]]
    if tag in option.get("properties", {}) and tag not in option.setdefault("required", []):
        option["required"].append(tag)
