"""The keywords of JSON Schema: what each of them may say, and which are refused.

A keyword is honoured, an annotation (the standard gives it no say in what is valid), or refused.
docs/json-schemas.md says the same to people; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, TypeAlias

from edgevlm.errors import InputError

Path: TypeAlias = tuple[str | int, ...]

FORMATS = (
    "date-time",
    "time",
    "date",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
)
"""Those that answers keep to; every other format is an annotation."""

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_QUARTER = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    f"(?:[0-9]{{2}}{_QUARTER}|{_QUARTER}00)-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{_CLOCK})"

PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
}
"""Formats that edgevlm spells itself: days that the calendar has, and no leap seconds."""

DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
)
"""What ``$schema`` may name; all are read as 2020-12, with the older spelling of tuples."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")

MAX_DEPTH = 64
"""Schemas within schemas, and values within ``const`` and ``enum``."""

MAX_MULTIPLE = 10_000
"""Digits of ``multipleOf`` read as one integer; the cost grows with their square."""

MAX_NUMBER = 2**53
"""Of ``const`` and ``enum``; bounds that lie further out count as this one."""

MAX_SIZE = 2**31 - 1
"""Of ``minLength``, ``maxItems`` and their like; larger ones count as this one."""


def refuse(place: Path, reason: str) -> NoReturn:
    """Raise InputError of `refusal`."""
    raise InputError(refusal(place, reason))


def refusal(place: Path, reason: str) -> str:
    """One line of less than 300 characters."""
    return f"json_schema: {pointer(place)}: {shortened(reason, 160)}"


def pointer(path: Path) -> str:
    """A JSON pointer such as ``#/properties/a``, shortened in its middle."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return shortened("/".join(("#", *steps)), 110)


def shortened(message: str, size: int) -> str:
    """One line of printable characters, cut in its middle."""
    half = (size - 1) // 2
    if len(message) > 4 * size:
        message = message[: 2 * size] + message[-2 * size :]
    line = " ".join("".join(char if char.isprintable() else " " for char in message).split())
    return line if len(line) <= size else f"{line[:half]}…{line[-half:]}"


_Check: TypeAlias = Callable[[Any, Path], Any]


def kind(value: Any) -> str:
    """A value's type in JSON's words."""
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        tuple: "a list",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def text(value: Any, place: Path) -> str:
    """A text that UTF-8 can spell, or InputError."""
    if not isinstance(value, str):
        refuse(place, f"{place[-1]} takes a text, not {kind(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        refuse(place[:-1] if value == place[-1] else place, "a text has half a surrogate pair")
    return value


def some(value: Any, place: Path) -> Sequence[Any]:
    """A list that is not empty, or InputError."""
    if not isinstance(value, list | tuple) or not value:
        refuse(place, f"{place[-1]} takes a list of at least one, not {kind(value)}")
    return value


def _number(value: Any, place: Path) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(place, f"{place[-1]} takes a number, not {kind(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        refuse(place, f"{value} is not a number of JSON")
    return value


def _exact(value: Any, place: Path) -> int | float:
    number = _number(value, place)
    if abs(number) > MAX_NUMBER:
        refuse(
            place,
            f"{_spelled(number)} is beyond 2**53, past which no double holds every integer; "
            f"ask for a text instead",
        )
    return number


def _lower(value: Any, place: Path) -> int | float:
    """A bound from below; where it lies past what answers reach, the end of that."""
    return max(_exact(value, place) if _number(value, place) > 0 else value, -MAX_NUMBER)


def _upper(value: Any, place: Path) -> int | float:
    """A bound from above; where it lies past what answers reach, the end of that."""
    return min(_exact(value, place) if _number(value, place) < 0 else value, MAX_NUMBER)


def _spelled(number: int | float) -> str:
    """Short, whatever its size: Python refuses to write integers of many digits."""
    huge = isinstance(number, int) and abs(number) >= 10**40
    return "an integer of more than 40 digits" if huge else str(number)


def _positive(value: Any, place: Path) -> int | float:
    number = _number(value, place)
    if number > MAX_MULTIPLE:
        refuse(place, f"multipleOf may be {MAX_MULTIPLE} at most, is {_spelled(number)}")
    if number <= 0:
        refuse(place, f"multipleOf must be above 0, is {number}")
    digits = Decimal(repr(number)).normalize().as_tuple()
    if int("".join(map(str, digits.digits))) > MAX_MULTIPLE or int(digits.exponent) < -20:
        refuse(
            place,
            f"multipleOf {number} costs too much: without its decimal point it may be {MAX_MULTIPLE} at most",
        )
    return number


def _size(value: Any, place: Path) -> int:
    number = _number(value, place)
    if number < 0 or number != int(number):
        refuse(place, f"{place[-1]} takes an integer of 0 or more, is {_spelled(number)}")
    return min(int(number), MAX_SIZE)


def _type(value: Any, place: Path) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        refuse(place, f"type takes one of {', '.join(TYPES)}, or a list of them")
    for name in names:
        if not isinstance(name, str) or name not in TYPES:
            refuse(place, f"{shortened(repr(name), 40)} is not a type; use {', '.join(TYPES)}")
    return value if isinstance(value, str) else list(dict.fromkeys(names))


def _required(value: Any, place: Path) -> list[str]:
    if not isinstance(value, list | tuple):
        refuse(place, f"required takes a list of names, not {kind(value)}")
    return list(dict.fromkeys(text(name, (*place, at)) for at, name in enumerate(value)))


def _value(value: Any, place: Path) -> Any:
    """Of ``const`` and ``enum``."""
    if len(place) > 3 * MAX_DEPTH:
        refuse(place, f"nested deeper than {MAX_DEPTH}; write a flatter one")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _exact(value, place)
    if isinstance(value, str):
        if "\x7f" in value:
            refuse(place, "it has U+007F, a control character that llguidance cannot spell")
        return text(value, place)
    if isinstance(value, list | tuple):
        return [_value(one, (*place, index)) for index, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {text(name, place): _value(one, (*place, name)) for name, one in value.items()}
    refuse(place, f"{kind(value)} is not JSON")


def _values(value: Any, place: Path) -> list[Any]:
    return [_value(one, (*place, index)) for index, one in enumerate(some(value, place))]


CHECKED: Mapping[str, _Check] = {
    "type": _type,
    "const": _value,
    "enum": _values,
    "required": _required,
    "minimum": _lower,
    "maximum": _upper,
    "exclusiveMinimum": _lower,
    "exclusiveMaximum": _upper,
    "multipleOf": _positive,
    "minLength": _size,
    "maxLength": _size,
    "minItems": _size,
    "maxItems": _size,
    "minProperties": _size,
    "maxProperties": _size,
    "pattern": text,
    "format": text,
}
"""Keywords that are honoured, without schemas in them; each with what makes its value the written one."""

APPLICATORS = frozenset(
    {
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
        "items",
        "prefixItems",
        "additionalItems",
        "properties",
        "patternProperties",
        "additionalProperties",
    }
)
"""Keywords that are honoured, with schemas in them."""

IDENTIFIERS = frozenset({"$schema", "$id", "$anchor"})
"""Say what a schema is called; honoured as far as references within the schema go."""


def _without(*keywords: str) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda _, schema: not any(keyword in schema for keyword in keywords)


def _being(*values: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _: any(value is one or (value == one == {}) for one in values)


REFUSED: Mapping[str, tuple[Callable[[Any, Mapping[str, Any]], bool], str]] = {
    "not": (_being(False), "; say what is allowed instead, with enum or anyOf"),
    "if": (_without("then", "else"), "; use anyOf"),
    "then": (_without("if"), "; use anyOf"),
    "else": (_without("if"), "; use anyOf"),
    "dependentSchemas": (_being({}), "; use anyOf"),
    "dependentRequired": (_being({}), "; use anyOf"),
    "dependencies": (_being({}), "; use anyOf"),
    "contains": (lambda *_: False, "; use prefixItems"),
    "minContains": (_without("contains"), "; use prefixItems"),
    "maxContains": (_without("contains"), "; use prefixItems"),
    "uniqueItems": (_being(False), "; leave it out and look for repetitions in the answer"),
    "propertyNames": (_being(True, {}), "; use patternProperties with additionalProperties: false"),
    "unevaluatedItems": (_being(True, {}), "; use items"),
    "unevaluatedProperties": (_being(True, {}), "; use additionalProperties"),
    "$dynamicRef": (lambda *_: False, "; use $ref"),
    "$recursiveRef": (lambda *_: False, "; use $ref"),
}
"""Keywords that are refused: the values that ask for nothing and pass, and what to do instead."""

ANNOTATIONS = frozenset(
    {
        "$comment",
        "$defs",
        "$dynamicAnchor",
        "$recursiveAnchor",
        "$vocabulary",
        "contentEncoding",
        "contentMediaType",
        "contentSchema",
        "default",
        "definitions",
        "deprecated",
        "description",
        "examples",
        "readOnly",
        "title",
        "writeOnly",
    }
)
"""Keywords that say nothing about what is valid; so are those that no draft knows."""
