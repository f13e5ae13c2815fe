"""Parse JSON values to frozen dataclasses by their annotations, with errors that name the field."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from typing import Any, Literal

from edgevlm.errors import BundleError


class _FieldError(Exception):
    """A failed check inside one dataclass; `parse` puts the path before it."""


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


def parse(annotation: Any, value: Any, path: str) -> Any:
    """Convert a JSON value to the annotated type.

    A union of dataclasses is told apart by the field ``kind`` of each.

    Raises:
        BundleError: the value is of another form; the message names `path`.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if dataclasses.is_dataclass(annotation):
        return _parse_dataclass(annotation, value, path)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        members = [argument for argument in arguments if argument is not type(None)]
        member = members[0] if len(members) == 1 else _find_kind(members, value, path)
        return parse(member, value, path)
    if origin is Literal:
        if not isinstance(value, str) or value not in arguments:
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
            parse(argument, item, f"{path}[{index}]")
            for index, (argument, item) in enumerate(zip(arguments, value, strict=True))
        )
    if origin is dict:
        if not isinstance(value, dict):
            raise BundleError(f"{path}: must be an object, is {value!r}")
        return {key: parse(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if annotation is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, annotation) or (annotation is int and isinstance(value, bool)):
        raise BundleError(f"{path}: must be {annotation.__name__}, is {value!r}")
    return value


def _find_kind(members: list[Any], value: Any, path: str) -> Any:
    """Return the dataclass whose ``kind`` is that of a JSON object."""
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must be an object, is {value!r}")
    if "kind" not in value:
        raise BundleError(f"{path}.kind: missing")
    kinds = {member.kind: member for member in members}
    if not isinstance(value["kind"], str) or value["kind"] not in kinds:
        raise BundleError(
            f"{path}.kind: must be one of {', '.join(kinds)}, is {value['kind']!r}; if a newer edgevlm made "
            f"the bundle, install it"
        )
    return kinds[value["kind"]]


# Cached, since a manifest has dozens of special tokens, and annotations are strings to be evaluated.
_type_hints = functools.cache(typing.get_type_hints)


def _parse_dataclass(cls: Any, value: Any, path: str) -> Any:
    if not isinstance(value, dict):
        raise BundleError(f"{path}: must be an object, is {value!r}")
    hints = _type_hints(cls)
    fields = {entry.name: entry for entry in dataclasses.fields(cls)}
    for name in value:
        if name not in fields:
            raise BundleError(
                f"{path}.{name}: unknown field; if a newer edgevlm made the bundle, install it"
            )
    arguments = {}
    for name, entry in fields.items():
        if name in value:
            parsed_value = parse(hints[name], value[name], f"{path}.{name}")
            if entry.init:
                arguments[name] = parsed_value
        elif entry.default is entry.default_factory is dataclasses.MISSING:
            raise BundleError(f"{path}.{name}: missing")
    parsed = cls(**arguments)
    if hasattr(parsed, "check"):
        try:
            parsed.check()
        except _FieldError as error:
            raise BundleError(f"{path}.{error}") from None
    return parsed
