"""The keywords of JSON Schema: their allowed values, and which keywords are not supported.

A keyword is honoured, ignored as an annotation (by the standard it does not affect what is valid), or refused
with an error. docs/json-schemas.md has the same list; a test compares the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn, TypeAlias

from edgevlm.errors import InputError
from edgevlm.runtimes.json_schema.patterns import common_pattern

SchemaPath: TypeAlias = tuple[str | int, ...]
"""Keys and indices from the root of a schema to a place in it."""

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
    "uuid1",
    "uuid3",
    "uuid4",
    "uuid5",
    "uuid6",
    "uuid7",
    "uuid8",
    "uri",
)
"""Formats that are honoured. Every other format is an annotation. ``uuid4`` and the like are pydantic's."""

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_QUARTER = "(?:0[48]|[2468][048]|[13579][26])"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"
    f"(?:[0-9]{{2}}{_QUARTER}|{_QUARTER}00)-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_CLOCK}:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-]{_CLOCK})"

_COUNT = "[0-9]{1,6}"
_DAYS = f"(?:{_COUNT}Y(?:{_COUNT}M(?:{_COUNT}D)?)?|{_COUNT}M(?:{_COUNT}D)?|{_COUNT}D)"
_HOURS = f"T(?:{_COUNT}H(?:{_COUNT}M(?:{_COUNT}S)?)?|{_COUNT}M(?:{_COUNT}S)?|{_COUNT}S)"

_LETTER = "[A-Za-z0-9]"
_LETTERS = "[A-Za-z0-9-]"
_LABEL = (  # at most 63 characters, and no hyphens in third and fourth place
    f"{_LETTER}(?:{_LETTER}|{_LETTERS}{_LETTER}(?:{_LETTERS}{{0,59}}{_LETTER})?|"
    f"{_LETTERS}-{_LETTER}(?:{_LETTERS}{{0,58}}{_LETTER})?)?"
)

_HEX = "[0-9a-fA-F]"

PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[tT]{_TIME}$",
    "duration": f"^P(?:{_DAYS}(?:{_HOURS})?|{_HOURS}|{_COUNT}W)$",
    "hostname": rf"^{_LABEL}(?:\.{_LABEL})*$",
    **{
        f"uuid{version}": f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
        for version in (1, 3, 4, 5, 6, 7, 8)
    },
}
"""Formats that edgevlm translates to patterns: dates that the calendar has, no leap seconds, durations with
numbers of at most six digits, which Python's ``timedelta`` holds, and no ``xn--`` in names of hosts."""

MAX_HOSTNAME = 253
"""Longest ``hostname`` in characters."""

LOCAL_DATE_TIME = rf"^{_DATE}T{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,6}})?$"
"""Pattern of a date and a time without a time zone, which no format describes."""

DRAFTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
)
"""Allowed values of ``$schema``. All are read as draft 2020-12; tuples may be written as in older ones."""

TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
"""Allowed values of ``type``."""

MAX_DEPTH = 64
"""Deepest nesting of schemas, and of values within ``const`` and ``enum``."""

MAX_MULTIPLE = 10_000
"""Largest ``multipleOf``, read without its decimal point. The cost grows with its square."""

MAX_NUMBER = 2**53
"""Largest number in ``const`` and ``enum``. A larger bound counts as this one."""

SMALLEST_NUMBER = 1e-16
"""Smallest number that is not 0, in answers to an exclusive bound of 0."""

MAX_SIZE = 2**31 - 1
"""Largest ``minLength``, ``maxItems`` and so on. A larger one counts as this one."""


def refuse(place: SchemaPath, reason: str) -> NoReturn:
    """Raise the error of a schema that is not supported.

    Raises:
        InputError: always, with the message of `refusal`.
    """
    raise InputError(refusal(place, reason))


def refusal(place: SchemaPath, reason: str) -> str:
    """Return the message of an error in a schema: one line of less than 300 characters."""
    return f"json_schema: {json_pointer(place)}: {shorten(reason, 160)}"


def json_pointer(path: SchemaPath) -> str:
    """Return a JSON pointer such as ``#/properties/a``, shortened in its middle."""
    steps = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return shorten("/".join(("#", *steps)), 110)


def shorten(message: str, size: int) -> str:
    """Return one line of at most `size` printable characters, cut in its middle."""
    end = (size - 1) // 2
    if len(message) > 4 * size:
        message = message[: 2 * size] + message[-2 * size :]
    line = " ".join("".join(char if char.isprintable() else " " for char in message).split())
    return line if len(line) <= size else f"{line[:end]}…{line[-end:]}"


_Check: TypeAlias = Callable[[Any, SchemaPath], Any]


def json_type(value: Any) -> str:
    """Return the type of a value in the words of JSON."""
    names: dict[type, str] = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        tuple: "an array",
        dict: "an object",
        type(None): "null",
    }
    return names.get(type(value), type(value).__name__)


def check_string(value: Any, place: SchemaPath) -> str:
    """Check that a value is a string that UTF-8 can encode, and return it.

    Raises:
        InputError: the value is not a string, or has a lone surrogate.
    """
    if not isinstance(value, str):
        refuse(place, f"{place[-1]} must be a string, is {json_type(value)}")
    if any("\ud800" <= char <= "\udfff" for char in value):
        refuse(place[:-1] if value == place[-1] else place, "a string has a lone surrogate")
    return value


def check_array(value: Any, place: SchemaPath) -> Sequence[Any]:
    """Check that a value is an array that is not empty, and return it.

    Raises:
        InputError: the value is not an array, or is empty.
    """
    if not isinstance(value, list | tuple) or not value:
        found = "empty" if value in ([], ()) else json_type(value)
        refuse(place, f"{place[-1]} must be an array of at least one item, is {found}")
    return value


def _number(value: Any, place: SchemaPath) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse(place, f"{place[-1]} must be a number, is {json_type(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        refuse(place, f"{value} is not a JSON number")
    return value


def _exact(value: Any, place: SchemaPath) -> int | float:
    number = _number(value, place)
    if abs(number) > MAX_NUMBER:
        refuse(
            place,
            f"{_format_number(number)} is beyond 2**53, from where on doubles do not hold every integer; "
            f"use a string instead",
        )
    return number


def _lower(value: Any, place: SchemaPath) -> int | float:
    """Return a lower bound, limited to the range of numbers in answers."""
    return max(_exact(value, place) if _number(value, place) > 0 else value, -MAX_NUMBER)


def _upper(value: Any, place: SchemaPath) -> int | float:
    """Return an upper bound, limited to the range of numbers in answers."""
    return min(_exact(value, place) if _number(value, place) < 0 else value, MAX_NUMBER)


def _format_number(number: int | float) -> str:
    """Return a short text of a number. Python refuses to format integers of many digits."""
    huge = isinstance(number, int) and abs(number) >= 10**40
    return "an integer of more than 40 digits" if huge else str(number)


def _positive(value: Any, place: SchemaPath) -> int | float:
    number = _number(value, place)
    if number > MAX_MULTIPLE:
        refuse(place, f"multipleOf may be {MAX_MULTIPLE} at most, is {_format_number(number)}")
    if number <= 0:
        refuse(place, f"multipleOf must be above 0, is {number}")
    digits = Decimal(repr(number)).normalize().as_tuple()
    if int("".join(map(str, digits.digits))) > MAX_MULTIPLE or int(digits.exponent) < -20:
        refuse(
            place,
            f"multipleOf {number} costs too much: without its decimal point it may be {MAX_MULTIPLE} at most",
        )
    return number


def _size(value: Any, place: SchemaPath) -> int:
    number = _number(value, place)
    if number < 0 or number != int(number):
        refuse(place, f"{place[-1]} must be an integer of at least 0, is {_format_number(number)}")
    return min(int(number), MAX_SIZE)


def _type(value: Any, place: SchemaPath) -> Any:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        refuse(place, f"type must be one of {', '.join(TYPES)}, or an array of them")
    for name in names:
        if not isinstance(name, str) or name not in TYPES:
            refuse(place, f"{shorten(repr(name), 40)} is not a type; use {', '.join(TYPES)}")
    return value if isinstance(value, str) else list(dict.fromkeys(names))


def _required(value: Any, place: SchemaPath) -> list[str]:
    if not isinstance(value, list | tuple):
        refuse(place, f"required must be an array of names, is {json_type(value)}")
    return list(dict.fromkeys(check_string(name, (*place, at)) for at, name in enumerate(value)))


def _value(value: Any, place: SchemaPath) -> Any:
    """Check a value of ``const`` or ``enum`` and return it."""
    if len(place) > 3 * MAX_DEPTH:
        refuse(place, f"nested deeper than {MAX_DEPTH}; write a flatter schema")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _exact(value, place)
    if isinstance(value, str):
        if "\x7f" in value:
            refuse(place, "has U+007F, a control character that llguidance does not support")
        return check_string(value, place)
    if isinstance(value, list | tuple):
        return [_value(one, (*place, index)) for index, one in enumerate(value)]
    if isinstance(value, Mapping):
        return {
            check_string(name, place): _value(one, (*place, name)) for name, one in value.items()
        }
    refuse(place, f"{json_type(value)} is not JSON")


def _values(value: Any, place: SchemaPath) -> list[Any]:
    return [_value(one, (*place, index)) for index, one in enumerate(check_array(value, place))]


VALUE_CHECKS: Mapping[str, _Check] = {
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
    "pattern": lambda value, place: common_pattern(check_string(value, place)),
    "format": check_string,
}
"""Honoured keywords without schemas in them, each with a function that checks and translates its value."""

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
        "propertyNames",
    }
)
"""Honoured keywords with schemas in them."""

IDENTIFIERS = frozenset({"$schema", "$id", "$anchor"})
"""Keywords that name a schema; honoured for references within the same schema."""


def _without(*keywords: str) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda _, schema: not any(keyword in schema for keyword in keywords)


def _being(*values: Any) -> Callable[[Any, Mapping[str, Any]], bool]:
    return lambda value, _: any(value is one or (value == one == {}) for one in values)


UNSUPPORTED: Mapping[str, tuple[Callable[[Any, Mapping[str, Any]], bool], str]] = {
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
    "unevaluatedItems": (_being(True, {}), "; use items"),
    "unevaluatedProperties": (_being(True, {}), "; use additionalProperties"),
    "$dynamicRef": (lambda *_: False, "; use $ref"),
    "$recursiveRef": (lambda *_: False, "; use $ref"),
}
"""Keywords that are refused: a function that accepts a value without effect, and what to use instead."""

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
"""Keywords that do not affect what is valid. Unknown keywords are annotations, too."""
