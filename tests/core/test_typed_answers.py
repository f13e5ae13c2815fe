"""`VLM.extract`: answers of wild weights are values of the type, whatever pydantic can describe."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import json
import pickle
import random
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StringConstraints
from typing_extensions import NotRequired, TypedDict

from edgevlm import VLM, AnswerError, IncompleteAnswerError, InputError
from edgevlm.runtimes.json_schema.constraint import JsonConstraint
from edgevlm.typed_answers import answer_format
from tests.support.json_texts import END, PIECES, byte_constraint, refused_at
from tests.support.random_types import MODELS, TYPES

GREY = np.full((32, 32, 3), 128, np.uint8)
QUESTION = "What is this?"
WILD: dict[str, Any] = {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
"""Each allowed token is about equally likely."""


# What `extract` returns ---------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"
    GREEN = "green"


class Part(BaseModel):
    name: Annotated[str, Field(max_length=3)]
    color: Color | None


class Grasp(BaseModel):
    visible: bool
    thing: Literal["mug", "box", "none"]
    distance_cm: Annotated[int, Field(ge=0, le=300)]
    parts: Annotated[list[Part], Field(max_length=2)]


@dataclasses.dataclass
class Size:
    width: Annotated[int, Field(ge=1, le=9)]
    height: Annotated[int, Field(ge=1, le=9)] = 1


class Place(TypedDict):
    x: bool
    y: NotRequired[bool]


class Pair(NamedTuple):
    first: bool
    second: Literal[1, 2]


@pytest.mark.parametrize(
    "answer_type",
    [
        Grasp,
        Size,
        Place,
        Pair,
        Color,
        bool,
        Literal["left", "right"],
        tuple[bool, Color],
        list[Size],
        Part | None,
        dict[Literal["a", "b"], bool],
    ],
)
def test_the_value_is_of_the_type(smolvlm: VLM, answer_type: Any) -> None:
    value = smolvlm.extract(GREY, QUESTION, answer_type, max_tokens=200)
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(answer_type)
    assert adapter.validate_python(value, strict=True) == value


def test_a_json_schema_gives_what_the_json_says(smolvlm: VLM) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"a": {"const": 7}}}
    schema |= {"required": ["a"], "additionalProperties": False}
    assert smolvlm.extract(GREY, QUESTION, schema) == {"a": 7}


def test_the_value_is_that_of_the_answer(smolvlm: VLM) -> None:
    schema = answer_format(Grasp).schema
    answer = smolvlm.ask(GREY, QUESTION, json_schema=schema, temperature=1.0, seed=3)
    value = smolvlm.extract(GREY, QUESTION, Grasp, temperature=1.0, seed=3)
    assert value == Grasp.model_validate_json(answer.text)


def test_fields_that_the_type_does_not_name_are_not_written(smolvlm: VLM) -> None:
    schema = answer_format(Grasp).schema
    for seed in range(5):
        answer = smolvlm.ask(GREY, QUESTION, json_schema=schema, max_tokens=300, seed=seed, **WILD)
        if answer.finish_reason == "stop":
            assert json.loads(answer.text).keys() == Grasp.model_fields.keys()


# Errors -------------------------------------------------------------------------------------------


def test_an_answer_that_a_limit_ends(smolvlm: VLM) -> None:
    with pytest.raises(IncompleteAnswerError, match="not complete after 5 tokens") as caught:
        smolvlm.extract(GREY, QUESTION, Grasp, max_tokens=5)
    error = caught.value
    answer = smolvlm.ask(GREY, QUESTION, json_schema=answer_format(Grasp).schema, max_tokens=5)
    assert (error.text, error.token_ids) == (answer.text, answer.token_ids)
    assert len(error.token_ids) == 5
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.text, copy.token_ids) == (str(error), error.text, error.token_ids)


def test_a_validator_that_refuses_the_value(smolvlm: VLM) -> None:
    def refuse(value: bool) -> bool:
        raise ValueError("never")

    refused = Annotated[bool, pydantic.AfterValidator(refuse)]
    with pytest.raises(AnswerError, match="never") as caught:
        smolvlm.extract(GREY, QUESTION, refused)
    assert caught.value.text in ("true", "false")


@pytest.mark.parametrize(
    ("answer_type", "message"),
    [
        (Callable[[], int], "json_schema: #: the type has no JSON schema"),
        (list[pydantic.PastDate], "#/items: bounds of dates"),
        (dict[str, pydantic.IPvAnyAddress], "#/additionalProperties/format: .*'ipvanyaddress'"),
        (tuple[bool, pydantic.Json[int]], "#/prefixItems/1: JSON within a string"),
        (dict[uuid.UUID, int], "#/propertyNames: propertyNames takes"),
        (Annotated[set[int], Field(min_length=2)], "a set of at least two items"),
        (Annotated[str, Field(pattern=r"a\b")], "#/pattern: .*word borders"),
        (Annotated[str, Field(pattern="(?=a)")], "has no JSON schema: .*look-around"),
        (Annotated[int, Field(ge=5, le=4)], "json_schema: #"),
        ("list[Nothing]", "has no JSON schema"),
        (5, "answer_type 5 has no JSON schema"),
        ({"not": {}}, "#/not: not is not supported"),
    ],
)
def test_a_type_that_no_answer_can_be_kept_to(smolvlm: VLM, answer_type: Any, message: str) -> None:
    """The image is not even looked for."""
    with pytest.raises(InputError, match=message):
        smolvlm.extract("there is no such image", QUESTION, answer_type)


def test_a_nested_place_is_named(smolvlm: VLM) -> None:
    class Outer(BaseModel):
        parts: list[Annotated[str, Field(pattern=r"\bx")]]

    with pytest.raises(InputError, match="json_schema: #/properties/parts/items/pattern: "):
        smolvlm.extract("there is no such image", QUESTION, Outer)


@pytest.mark.parametrize("answers", ["ask", "stream", "generate", "chat"])
def test_a_wrong_schema_is_found_before_the_image(smolvlm: VLM, answers: str) -> None:
    options: dict[str, Any] = {"json_schema": {"not": {}}}
    image = "there is no such image"
    with pytest.raises(InputError, match="#/not"):
        if answers == "generate":
            parts = [{"type": "image", "path": image}, {"type": "text", "text": QUESTION}]
            smolvlm.generate([{"role": "user", "content": parts}], **options)
        elif answers == "chat":
            smolvlm.chat().send(QUESTION, image, **options)
        else:
            getattr(smolvlm, answers)(image, QUESTION, **options)


@pytest.mark.parametrize("option", ["json_schema", "stop", "top_logprobs"])
def test_options_that_make_no_sense(smolvlm: VLM, option: str) -> None:
    options: dict[str, Any] = {option: None}
    with pytest.raises(InputError, match=f"extract takes no {option}"):
        smolvlm.extract(GREY, QUESTION, bool, **options)


# Types whose parser is stricter than pydantic's own schema of them --------------------------------


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog", "puppy"]
    friends: Annotated[list[Annotated[Cat | Dog, Field(discriminator="kind")]], Field(max_length=2)]


class Strict(BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", str_strip_whitespace=True)
    name: Annotated[str, Field(min_length=1, max_length=3)]
    when: datetime.date


STRICT: dict[str, Any] = {
    "discriminated union": Annotated[Cat | Dog, Field(discriminator="kind")],
    "strict model": Strict,
    "date": datetime.date,
    "time": datetime.time,
    "datetime": datetime.datetime,
    "aware datetime": pydantic.AwareDatetime,
    "naive datetime": pydantic.NaiveDatetime,
    "duration": datetime.timedelta,
    "uuid": uuid.UUID,
    "uuid4": pydantic.UUID4,
    "uuid5": pydantic.UUID5,
    "url": pydantic.AnyUrl,
    "web address": pydantic.HttpUrl,
    "price": Annotated[decimal.Decimal, Field(max_digits=6, decimal_places=2, ge=0)],
    "cents": Annotated[decimal.Decimal, Field(decimal_places=2)],
    "number": float,
    "finite number": pydantic.FiniteFloat,
    "share": Annotated[float, Field(gt=0, lt=1)],
    "negative number": Annotated[float, Field(lt=0, ge=-5)],
    "tenths": Annotated[float, Field(multiple_of=0.5, ge=-3, lt=3)],
    "even number": Annotated[int, Field(multiple_of=2, gt=-20, lt=20)],
    "stripped text": Annotated[str, StringConstraints(strip_whitespace=True, min_length=2)],
    "pattern": Annotated[str, Field(pattern="^[A-Z]{2}[0-9]{1,3}$")],
    "bytes": Annotated[bytes, Field(min_length=1, max_length=4)],
    "set": Annotated[set[Literal[1, 2, 3]], Field(min_length=1, max_length=2)],
    "frozen set": frozenset[bool],
    "keys that are integers": Annotated[dict[int, bool], Field(max_length=2)],
    "keys of an enum": dict[Color, bool],
    "keys of a length": dict[Annotated[str, Field(min_length=2, max_length=3)], bool],
    "keys of a pattern": dict[Annotated[str, Field(pattern="^[ab]+$")], bool],
    "enum of integers": enum.IntEnum("Level", {"LOW": 1, "HIGH": 2}),
    "literals of several types": Literal[1, "1", None, True],
    "secret": pydantic.SecretStr,
    "any": Any,
}


@pytest.fixture(scope="module")
def texts() -> JsonConstraint:
    return byte_constraint()


def random_text(texts: JsonConstraint, schema: Any, seed: int, size: int = 250) -> str | None:
    """Return a text of random tokens; None if it does not end within `size` tokens."""
    matcher, choose, text = texts.matcher(schema), random.Random(seed), b""
    for _ in range(size):
        forced = matcher.accept_forced()
        if not forced:
            allowed = matcher.allowed_tokens()
            forced = [
                END if END in allowed and choose.random() < 0.3 else int(choose.choice(allowed))
            ]
            matcher.accept(forced[0])
        text += b"".join(PIECES[token] for token in forced)
        if forced[-1] == END:
            return text.decode()
    return None


@pytest.mark.parametrize("name", STRICT)
def test_random_texts_are_values(texts: JsonConstraint, name: str) -> None:
    wanted = answer_format(STRICT[name])
    found = {text for seed in range(40) if (text := random_text(texts, wanted.schema, seed))}
    for text in found:
        wanted.parse(text)
    assert found


BOTH: list[tuple[str, str, bool]] = [
    ("stripped text", '"a b"', True),
    ("stripped text", '" ab"', False),
    ("stripped text", '"a "', False),
    ("discriminated union", '{"kind":"cat","lives":9}', True),
    ("discriminated union", '{"lives":9}', False),
    ("discriminated union", '{"kind":"puppy","friends":[{"kind":"cat","lives":1}]}', True),
    ("discriminated union", '{"kind":"puppy","friends":[{"kind":"dog","friends":[3]}]}', False),
    ("naive datetime", '"2024-02-29T10:00:00"', True),
    ("naive datetime", '"2024-02-29T10:00:00Z"', False),
    ("aware datetime", '"2024-02-29T10:00:00Z"', True),
    ("aware datetime", '"2023-02-29T10:00:00Z"', False),
    ("web address", '"https://example.org/a/b"', True),
    ("web address", '"ftp://example.org"', False),
    ("price", "9999.99", True),
    ("price", "10000", False),
    ("price", "1.234", False),
    ("share", "0.99", True),
    ("share", "1", False),
    ("share", "0", False),
    ("keys that are integers", '{"-12":true}', True),
    ("keys that are integers", '{"a":true}', False),
    ("keys of an enum", '{"red":true}', True),
    ("keys of an enum", '{"blue":true}', False),
    ("bytes", '"abcd"', True),
    ("bytes", '"éééé"', False),
    ("duration", '"P1DT2H3M4S"', True),
    ("duration", '"P"', False),
]


@pytest.mark.parametrize(("name", "text", "right"), BOTH)
def test_grammar_and_parser_agree(texts: JsonConstraint, name: str, text: str, right: bool) -> None:
    wanted = answer_format(STRICT[name])
    assert (refused_at(texts, dict(wanted.schema), text.encode()) is None) == right
    if right:
        wanted.parse(text)


# Models that Hypothesis makes ---------------------------------------------------------------------


@settings(
    max_examples=300,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(answer_type=MODELS, seed=st.integers(0, 1000))
def test_every_answer_is_a_value(smolvlm: VLM, answer_type: Any, seed: int) -> None:
    try:
        value = smolvlm.extract(GREY, QUESTION, answer_type, max_tokens=300, seed=seed, **WILD)
    except IncompleteAnswerError as error:
        assert len(error.token_ids) == 300
        return
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(answer_type)
    assert adapter.validate_python(value) == value


@pytest.mark.slow
@settings(
    max_examples=1000,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(answer_type=TYPES, seed=st.integers(0, 1000))
def test_every_random_text_is_a_value(texts: JsonConstraint, answer_type: Any, seed: int) -> None:
    wanted = answer_format(answer_type)
    for number in range(4):
        text = random_text(texts, wanted.schema, 4 * seed + number)
        if text is not None:
            wanted.parse(text)
