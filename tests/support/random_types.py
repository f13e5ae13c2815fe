"""Random Python types of all kinds that pydantic writes as a JSON schema, for Hypothesis."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import keyword
import uuid
from typing import Annotated, Any, Literal, NamedTuple, Union

import pydantic
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import NotRequired, TypedDict

make_typed_dict: Any = TypedDict
make_named_tuple: Any = NamedTuple


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclasses.dataclass
class Size:
    width: Annotated[int, Field(ge=1, le=9)]
    height: Annotated[int, Field(ge=1, le=9)] = 1


class Part(BaseModel):
    name: Annotated[str, Field(max_length=3)]
    color: Color | None


class Tree(BaseModel):
    value: Literal[1, 2]
    children: Annotated[list[Tree], Field(max_length=2)] = []
    parent: Tree | None = None


class Open(BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    known: bool
    __pydantic_extra__: dict[str, Literal["a", "b"]]


def bounded(low: float, more: float, low_name: str, high_name: str, step: float | None) -> Any:
    bounds: dict[str, Any] = {low_name: low, high_name: low + more}
    return Annotated[float, Field(**bounds, multiple_of=step)]


LEAVES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([bool, None, int, Color, Level, Size, Part, Tree, Open]),
    st.sampled_from(
        [
            datetime.date,
            datetime.time,
            datetime.datetime,
            datetime.timedelta,
            pydantic.NaiveDatetime,
            uuid.UUID,
            pydantic.UUID4,
            ipaddress.IPv4Address,
            ipaddress.IPv6Address,
            pydantic.HttpUrl,
        ]
    ),
    st.lists(
        st.sampled_from(["a", "ab", "é", 'x"', "\n", 1, 2, None]), min_size=1, unique=True
    ).map(lambda values: Literal[tuple(values)]),
    st.builds(
        lambda low, more: Annotated[int, Field(ge=low, lt=low + more)],
        st.integers(-1000, 1000),
        st.integers(1, 500),
    ),
    st.builds(
        bounded,
        st.sampled_from([-100, -1, -0.5, 0, 0.25, 1, 7.5]),
        st.sampled_from([0.5, 1, 1.25, 50]),
        st.sampled_from(["ge", "gt"]),
        st.sampled_from(["le", "lt"]),
        st.sampled_from([None, 0.25, 0.1]),
    ),
    st.builds(
        lambda digits, places: Annotated[
            decimal.Decimal, Field(max_digits=digits + places, decimal_places=places, ge=0)
        ],
        st.integers(1, 4),
        st.integers(1, 3),
    ),
    st.builds(
        lambda least, more, strip: Annotated[
            str,
            StringConstraints(min_length=least, max_length=least + more, strip_whitespace=strip),
        ],
        st.integers(0, 3),
        st.integers(0, 4),
        st.booleans(),
    ),
    st.builds(
        lambda most: Annotated[bytes, Field(max_length=most)],
        st.integers(0, 4),
    ),
    st.sampled_from(
        [
            "^[a-c]{1,4}$",
            "^(ab|cd)?$",
            "^[0-9]{2}-[0-9]{2}$",
            r"^\W{1,3}$",
            r"^[^\s]\D.\w$",
            "[a-c]",
        ]
    ).map(lambda pattern: Annotated[str, Field(pattern=pattern, max_length=6)]),
)

NAMES = st.text("abcxyz_", min_size=1, max_size=6).filter(lambda name: name.strip("_") == name)
KEYS: st.SearchStrategy[Any] = st.sampled_from(
    [
        str,
        int,
        Color,
        Literal["a", "b"],
        Annotated[str, Field(pattern="^[ab]+$")],
        Annotated[str, Field(min_length=1, max_length=3)],
    ]
)


def models(fields: st.SearchStrategy[Any]) -> st.SearchStrategy[type[BaseModel]]:
    def make(types: dict[str, Any], optional: int, alias: bool) -> type[BaseModel]:
        made: dict[str, Any] = {}
        for number, (name, kind) in enumerate(types.items()):
            named: dict[str, Any] = {"alias": name.upper()} if alias else {}
            if number < optional and kind is not None:
                made[name] = (kind | None, Field(None, **named))
            else:
                made[name] = (kind, Field(**named))
        return pydantic.create_model("Made", **made)

    names = NAMES.filter(lambda name: not hasattr(BaseModel, name))
    return st.builds(
        make,
        st.dictionaries(names, fields, min_size=1, max_size=3),
        st.integers(0, 1),
        st.booleans(),
    )


def classes(fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Make dataclasses, TypedDicts and NamedTuples."""

    def make(types: dict[str, Any], kind: str) -> Any:
        if kind == "dataclass":
            return dataclasses.make_dataclass("Made", types.items())
        if kind == "NamedTuple":
            return make_named_tuple("Made", types.items())
        first = next(iter(types))
        made = {name: one if name == first else NotRequired[one] for name, one in types.items()}
        return make_typed_dict("Made", made)

    names = NAMES.filter(lambda name: not keyword.iskeyword(name))
    kinds = st.sampled_from(["dataclass", "TypedDict", "NamedTuple"])
    return st.builds(make, st.dictionaries(names, fields, min_size=1, max_size=3), kinds)


def tagged(one: type[BaseModel], other: type[BaseModel]) -> Any:
    with_default: dict[str, Any] = {"tag": (Literal["first"], "first")}
    required: dict[str, Any] = {"tag": (Literal["second"], ...)}
    first = pydantic.create_model("First", __base__=one, **with_default)
    second = pydantic.create_model("Second", __base__=other, **required)
    return Annotated[first | second, Field(discriminator="tag")]


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        models(inner),
        classes(inner),
        st.builds(
            lambda kind, least, more: Annotated[
                list[kind],  # type: ignore[valid-type]
                Field(min_length=least, max_length=least + more),
            ],
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.builds(
            lambda key, kind: Annotated[dict[key, kind], Field(max_length=1)],  # type: ignore[valid-type]
            KEYS,
            inner,
        ),
        st.builds(
            lambda one, other: tuple[one, other],  # type: ignore[valid-type]
            inner,
            inner,
        ),
        st.builds(lambda kind: kind | None if kind is not None else None, inner),
        st.builds(lambda one, other: Union[one, other], inner, inner),  # noqa: UP007
        st.builds(tagged, models(inner), models(inner)),
    )


TYPES = st.recursive(LEAVES, nested, max_leaves=5)
"""Types of all kinds, within each other."""

MODELS = models(TYPES)
