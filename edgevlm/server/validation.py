"""Checks what clients send, and says in one line which field is wrong and what belongs there.

A model's fields carry what they expect as their description, a noun phrase: it stands in the server's own
description and in every message about the field, such as ``temperature must be a number from 0 to 2, is
3``. Beside its fields a model names fields that it knows and does not use:

- `RequestModel.neutral` maps a field to the values by which it asks for nothing. Another value is refused.
- `RequestModel.unused` are hints that change no answer, whatever they say.

A field that stands nowhere is ignored and reported, or refused if the server is strict.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, from_json

from edgevlm.server.errors import RequestError

SHOWN = 40
"""Characters of a wrong value that a message repeats."""

MAX_COMMAS = 2**18
"""In a request's body: more than any context holds, and few enough to be read in a moment."""

MAX_LINES = 10_000
"""Of a body that is no JSON, where what stands at the wrong place is looked up."""

MAX_UNKNOWN = 100
"""Unknown fields of one request that are named."""

_BOM = b"\xef\xbb\xbf"
_PLACE = re.compile(r" at line (\d+) column (\d+)$")


class Neutral(NamedTuple):
    """A field that is accepted as long as it asks for nothing."""

    values: tuple[Any, ...]
    reason: str
    """Why the server cannot do what other values ask for."""


class RequestModel(BaseModel):
    """An object that clients send."""

    model_config = ConfigDict(extra="allow", strict=True)

    expected: ClassVar[str] = "an object"
    """What a message says that belongs in the place of such an object."""
    neutral: ClassVar[Mapping[str, Neutral]] = {}
    unused: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        described = handler(core)
        properties = handler.resolve_ref_schema(described).setdefault("properties", {})
        for name, known in cls.neutral.items():
            allowed = {"enum": list(known.values)} if known.values else {"not": True}
            properties[name] = {**allowed, "description": known.reason}
        for name in sorted(cls.unused):
            properties[name] = {"description": "not used"}
        return described


Model = TypeVar("Model", bound=RequestModel)


def parse_json(body: bytes) -> Any:
    """The value that a request's body spells.

    Raises:
        RequestError: it is empty, no JSON text in UTF-8, or has more values than any request needs.
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
            f"the body has {commas} commas, at most {MAX_COMMAS} are read; send less text and fewer values",
            code="invalid_json",
        )
    body = body.removeprefix(_BOM)
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        message = f"the body is not JSON: {error}"
        place = _PLACE.search(str(error))
        if place and (line := int(place[1])) < MAX_LINES:
            rest = body.split(b"\n", line)[line - 1][max(int(place[2]) - 1, 0) :]
            message += f", found {rest[:SHOWN].decode(errors='replace')!r}"
        raise RequestError(400, message, code="invalid_json") from error


def check(model: type[Model], value: Any, *, strict: bool) -> tuple[Model, list[str]]:
    """`value` as a `model`, and names of fields that it has and the server does not know.

    Args:
        strict: refuse such fields.

    Raises:
        RequestError: the first thing that is wrong.
    """
    try:
        checked = model.model_validate(value)
    except ValidationError as error:
        raise mistake(model, error.errors(include_url=False)[0], value) from None
    unknown: list[str] = []
    for steps, part in _parts(checked):
        for name, content in (part.model_extra or {}).items():
            if name in part.unused:
                continue
            at = _joined((*steps, name))
            if name in part.neutral:
                known = part.neutral[name]
                if not any(_same(content, neutral) for neutral in known.values):
                    allowed = " or ".join([*map(_spelled, known.values), "left out"])
                    raise _refused(at, f"must be {allowed} ({known.reason}), is {_shown(content)}")
            elif strict:
                raise _refused(at, "is no field that this server knows; leave it out")
            elif len(unknown) < MAX_UNKNOWN:
                unknown.append(_joined(step for step in (*steps, name) if isinstance(step, str)))
    return checked, unknown


def mistake(model: type[RequestModel], error: Mapping[str, Any], value: Any) -> RequestError:
    """What a client is told of one of pydantic's errors about `value`."""
    steps = _place(error)
    if error["type"] == "refused":
        return _refused(_joined(steps), error["msg"])
    expected = _expected(model).get(_pattern(steps), "another value")
    found: Any = value
    for step in steps:
        if isinstance(found, Mapping) and step not in found:
            return _refused(_joined(steps), f"is missing; it must be {expected}")
        if isinstance(found, Mapping) or (isinstance(found, list) and isinstance(step, int)):
            found = found[step]  # type: ignore[index]  # an index where it is a list
    return _refused(_joined(steps), f"must be {expected}, is {_shown(found)}")


def _refused(place: str, sentence: str) -> RequestError:
    return RequestError(
        400, f"{place or 'the body'} {sentence}", code="invalid_value", parameter=place or None
    )


def _place(error: Mapping[str, Any]) -> tuple[str | int, ...]:
    """Where pydantic found an error, without the tag that it puts behind the index of a content part."""
    loc = error["loc"]
    steps = [
        step
        for at, step in enumerate(loc)
        if not (at > 1 and loc[at - 2] == "content" and isinstance(loc[at - 1], int))
    ]
    if error["type"].startswith("union_tag"):
        steps.append("type")
    return tuple(steps)


def _joined(steps: Iterable[str | int]) -> str:
    """A place as messages and ``param`` name it: one line, however a client names its fields."""
    names = (str(step)[:SHOWN] for step in steps)
    return ".".join(name if name.isprintable() else repr(name) for name in names)


def _pattern(steps: Iterable[str | int]) -> str:
    return ".".join("*" if isinstance(step, int) else step for step in steps)


@functools.cache
def _expected(model: type[RequestModel]) -> dict[str, str]:
    """What belongs in each place, by the place's pattern."""
    found = {"": model.expected}
    for name, field in model.model_fields.items():
        name = field.alias or name
        if field.description:
            found[name] = field.description
        if field.annotation == list[str]:
            found[f"{name}.*"] = "a text"
        for inner, in_list in _models(field.annotation):
            prefix = f"{name}.*" if in_list else name
            for pattern, expected in _expected(inner).items():
                if pattern or in_list:
                    found.setdefault(f"{prefix}.{pattern}".rstrip("."), expected)
    return found


def _models(annotation: Any, in_list: bool = False) -> Iterator[tuple[type[RequestModel], bool]]:
    """The models that an annotation speaks of, and whether they stand in a list."""
    if isinstance(annotation, type) and issubclass(annotation, RequestModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        yield from _models(argument, in_list or getattr(annotation, "__origin__", None) is list)


def _parts(
    model: RequestModel, steps: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], RequestModel]]:
    """A model and all models in it, each with its place."""
    yield steps, model
    for name, field in type(model).model_fields.items():
        value = getattr(model, name)
        at = (*steps, field.alias or name)
        if isinstance(value, RequestModel):
            yield from _parts(value, at)
        elif isinstance(value, list):
            for index, item in enumerate(value):
                if isinstance(item, RequestModel):
                    yield from _parts(item, (*at, index))


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON has it: true is not 1, and 0.0 is 0."""
    return isinstance(value, bool) == isinstance(neutral, bool) and value == neutral


def _spelled(value: Any) -> str:
    """A small value as JSON spells it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _shown(value: Any) -> str:
    """A value that is wrong, short and in one line, however large it is."""
    if isinstance(value, Mapping):
        return "an object" if value else "an empty object"
    if isinstance(value, list):
        return f"a list of {len(value)}" if value else "an empty list"
    if isinstance(value, str):
        return repr(value if len(value) <= SHOWN else value[:SHOWN] + "...")
    if isinstance(value, int) and abs(value) >= 10**SHOWN:
        return f"an integer of more than {SHOWN} digits"
    return _spelled(value)
