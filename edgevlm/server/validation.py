"""Validate requests. The error for a wrong field names the field, the expected value and the value.

The description of a field is a noun phrase for its values. It is part of the OpenAPI description and of the
errors, such as ``temperature must be a number from 0 to 2, is 3``. A model also lists fields of OpenAI's API
that it does not use:

- `RequestModel.unsupported`: fields that are accepted only with values that ask for nothing.
- `RequestModel.ignored`: hints that never change an answer.

All other fields are unknown. They are ignored and logged, or refused if the server is strict.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, from_json

from edgevlm.server.errors import RequestError

MAX_SHOWN_CHARACTERS = 40
"""Limit of characters of a wrong value that a message repeats."""

MAX_COMMAS = 2**18
"""Limit of commas in a body; more than any context holds, and parsed quickly."""

MAX_LINES = 10_000
"""Limit of lines in a body that is not JSON, to find the text at the place of the error."""

MAX_UNKNOWN = 100
"""Limit of unknown fields of one request that are reported."""

_BOM = b"\xef\xbb\xbf"
_LINE_AND_COLUMN = re.compile(r" at line (\d+) column (\d+)$")


class UnsupportedField(NamedTuple):
    """A field of OpenAI's API that the server does not support."""

    accepted: tuple[Any, ...]
    """Values that ask for nothing, and are accepted."""
    reason: str
    """Reason why the server refuses other values."""


class RequestModel(BaseModel):
    """Base class of the objects that clients send."""

    model_config = ConfigDict(extra="allow", strict=True)

    expected: ClassVar[str] = "an object"
    """Noun phrase for such an object in error messages."""
    unsupported: ClassVar[Mapping[str, UnsupportedField]] = {}
    """Fields that are accepted only with values that ask for nothing."""
    ignored: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that never change an answer."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        schema = handler(core)
        properties = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name, field in cls.unsupported.items():
            allowed = {"enum": list(field.accepted)} if field.accepted else {"not": True}
            properties[name] = {**allowed, "description": field.reason}
        for name in sorted(cls.ignored):
            properties[name] = {"description": "not used"}
        return schema


Model = TypeVar("Model", bound=RequestModel)
Location: TypeAlias = "tuple[str | int, ...]"
"""Names of fields and indices of lists, from the body to a value."""


def parse_json(body: bytes) -> Any:
    """Parse the body of a request.

    Raises:
        RequestError: the body is empty, is not JSON in UTF-8, or has more than `MAX_COMMAS` commas.
    """
    if not body.strip():
        raise RequestError(400, "the request has no body; send a JSON object", code="invalid_json")
    if b"\0" in body[:4]:
        raise RequestError(
            400, "the body is UTF-16 or UTF-32; send JSON in UTF-8", code="invalid_json"
        )
    if (commas := body.count(b",")) > MAX_COMMAS:
        raise RequestError(
            400,
            f"the body has {commas} commas; the limit is {MAX_COMMAS}; send less text and fewer values",
            code="invalid_json",
        )
    body = body.removeprefix(_BOM)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not JSON: {error}"
        place = _LINE_AND_COLUMN.search(str(error))
        if place and (line := int(place[1])) < MAX_LINES:
            rest = body.split(b"\n", line)[line - 1][max(int(place[2]) - 1, 0) :]
            message += f", found {rest[:MAX_SHOWN_CHARACTERS].decode(errors='replace')!r}"
        raise RequestError(400, message, code="invalid_json") from error


def parse_text(text: str) -> Any:
    """Parse a text within a request as JSON; return the text itself if it is not JSON."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text


def validate(model: type[Model], value: Any, *, strict: bool) -> tuple[Model, list[str]]:
    """Convert parsed JSON to a model.

    Args:
        model: the class of the model.
        value: the parsed JSON.
        strict: refuse unknown fields.

    Returns:
        The model, and the names of unknown fields.

    Raises:
        RequestError: a field is wrong; the first one is named.
    """
    try:
        result = model.model_validate(value)
    except ValidationError as error:
        raise to_field_error(model, error.errors(include_url=False)[0], value) from None
    unknown: list[str] = []
    for location, part in _walk(result):
        for name, content in (part.model_extra or {}).items():
            if name in part.ignored:
                continue
            path = _join((*location, name))
            if name in part.unsupported:
                field = part.unsupported[name]
                if not any(_equal_in_json(content, accepted) for accepted in field.accepted):
                    allowed = " or ".join([*map(_to_json, field.accepted), "left out"])
                    message = f"must be {allowed} ({field.reason}), is {_describe(content)}"
                    raise _field_error(path, message)
            elif strict:
                raise _field_error(path, "is not a known field; leave it out")
            elif len(unknown) < MAX_UNKNOWN:
                unknown.append(_join(step for step in (*location, name) if isinstance(step, str)))
    return result, unknown


def to_field_error(model: type[RequestModel], error: Mapping[str, Any], value: Any) -> RequestError:
    """Convert one of pydantic's errors to an error for the client.

    Args:
        model: the class of the model.
        error: one of the errors of pydantic's ValidationError.
        value: the parsed JSON.
    """
    location = _location(error)
    if error["type"] == "refused":
        return _field_error(_join(location), error["msg"])
    expected = _expected_values(model).get(_pattern(location), "another value")
    found: Any = value
    for step in location:
        if isinstance(found, Mapping) and step not in found:
            return _field_error(_join(location), f"is missing; it must be {expected}")
        if isinstance(found, Mapping) or (isinstance(found, list) and isinstance(step, int)):
            found = found[step]  # type: ignore[index]  # an integer if it is a list
    return _field_error(_join(location), f"must be {expected}, is {_describe(found)}")


def _field_error(path: str, message: str) -> RequestError:
    return RequestError(
        400, f"{path or 'the body'} {message}", code="invalid_value", parameter=path or None
    )


def _location(error: Mapping[str, Any]) -> Location:
    """Return the location of pydantic's error, without the tag after the index of a content part."""
    loc = error["loc"]
    steps = [
        step
        for at, step in enumerate(loc)
        if not (at > 1 and loc[at - 2] == "content" and isinstance(loc[at - 1], int))
    ]
    if error["type"].startswith("union_tag"):
        steps.append("type")
    return tuple(steps)


def _join(location: Iterable[str | int]) -> str:
    """Return a location for messages and ``param``, on one line whatever the names of the fields."""
    names = (str(step)[:MAX_SHOWN_CHARACTERS] for step in location)
    return ".".join(name if name.isprintable() else repr(name) for name in names)


def _pattern(location: Iterable[str | int]) -> str:
    """Return a location with ``*`` for each index."""
    return ".".join("*" if isinstance(step, int) else step for step in location)


@functools.cache
def _expected_values(model: type[RequestModel]) -> dict[str, str]:
    """Return a noun phrase for the expected value of each location pattern."""
    phrases = {"": model.expected}
    for name, field in model.model_fields.items():
        name = field.alias or name
        if field.description:
            phrases[name] = field.description
        if field.annotation == list[str]:
            phrases[f"{name}.*"] = "a text"
        for inner, in_list in _models_in(field.annotation):
            prefix = f"{name}.*" if in_list else name
            for pattern, phrase in _expected_values(inner).items():
                if pattern or in_list:
                    phrases.setdefault(f"{prefix}.{pattern}".rstrip("."), phrase)
    return phrases


def _models_in(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[RequestModel], bool]]:
    """Yield the models in an annotation, and True for those in a list."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        yield from _models_in(argument, in_list or getattr(annotation, "__origin__", None) is list)


def _walk(model: RequestModel, location: Location = ()) -> Iterator[tuple[Location, RequestModel]]:
    """Yield a model and all models in it, each with its location."""
    yield location, model
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        inner = (*location, field.alias or name)
        if isinstance(value, RequestModel):
            yield from _walk(value, inner)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, RequestModel):
                    yield from _walk(item, (*inner, index))


def _equal_in_json(value: Any, accepted: Any) -> bool:
    """Return True if two values are equal in JSON, where true is not 1, and 0.0 is 0."""
    return isinstance(value, bool) == isinstance(accepted, bool) and value == accepted


def _to_json(value: Any) -> str:
    """Return a small value as JSON."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _describe(value: Any) -> str:
    """Return a short description of a wrong value, on one line."""
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    limit = MAX_SHOWN_CHARACTERS
    if isinstance(value, str):
        return repr(value if len(value) <= limit else value[:limit] + "...")
    if isinstance(value, int) and abs(value) >= 10**limit:
        return f"an integer of more than {limit} digits"
    return _to_json(value)
