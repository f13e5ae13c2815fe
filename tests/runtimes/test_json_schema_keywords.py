"""The keywords of JSON Schema: each is honoured, an annotation, or refused with its place."""

from __future__ import annotations

import datetime
import ipaddress
import json
import random
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import jsonschema
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema_specifications import REGISTRY

from edgevlm.errors import InputError
from edgevlm.runtimes.json_schema import keywords
from edgevlm.runtimes.json_schema.constraint import JsonConstraint, check_schema
from tests.support.json_spellings import allowed_spelling
from tests.support.json_texts import END, PIECES, byte_constraint, refused_at

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "json-schemas.md"


@pytest.fixture(scope="module")
def texts() -> JsonConstraint:
    return byte_constraint()


def written(
    texts: JsonConstraint, schema: dict[str, Any], seed: int, size: int = 120
) -> str | None:
    """Return a text of random tokens; None if it does not end within `size` tokens."""
    matcher = texts.matcher(schema)
    choose = random.Random(seed)
    text = b""
    for _ in range(size):
        allowed = matcher.allowed_tokens()
        if END in allowed and choose.random() < 0.3:
            return text.decode()
        token = int(choose.choice(allowed))
        if token == END:
            return text.decode()
        text += PIECES[token]
        matcher.accept(token)
    return None


def accepts(texts: JsonConstraint, schema: dict[str, Any], text: str) -> bool:
    return refused_at(texts, schema, text.encode()) is None


# Every keyword of the standard -----------------------------------------------------------------


def standard() -> set[str]:
    """Return the keywords of draft 2020-12, from its meta-schema."""
    found: set[str] = set()
    base = "https://json-schema.org/draft/2020-12/"
    for name in ("core", "applicator", "unevaluated", "validation", "meta-data", "content"):
        found |= REGISTRY.contents(f"{base}meta/{name}")["properties"].keys()
    found |= REGISTRY.contents(f"{base}meta/format-annotation")["properties"].keys()
    return found


def documented() -> dict[str, str]:
    table = DOCUMENT.read_text().partition("<!-- keywords: begin -->")[2]
    rows = re.findall(r"^\| (`.*?) \| (\w+)", table.partition("<!-- keywords: end -->")[0], re.M)
    return {keyword: fate for names, fate in rows for keyword in re.findall(r"`(.+?)`", names)}


def test_the_document_has_every_keyword_of_the_standard() -> None:
    fates = documented()
    assert standard() <= fates.keys()
    honoured = {*keywords.VALUE_CHECKS, *keywords.APPLICATORS, *keywords.IDENTIFIERS}
    for keyword, fate in fates.items():
        place = {
            "honoured": keyword in honoured,
            "annotation": keyword in keywords.ANNOTATIONS,
            "refused": keyword in keywords.UNSUPPORTED,
        }
        assert place == {name: name == fate for name in place}, keyword
    assert fates.keys() == honoured | keywords.ANNOTATIONS | keywords.UNSUPPORTED.keys()


def test_the_document_has_every_format() -> None:
    line = re.search(r"^An answer keeps to .*", DOCUMENT.read_text(), re.M)
    assert line is not None
    assert set(re.findall(r"`(.+?)`", line[0])) == set(keywords.FORMATS)


OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}}
HONOURED: dict[str, tuple[dict[str, Any], str, str]] = {
    "type": ({"type": "integer"}, "1", '"1"'),
    "const": ({"const": {"a": [1, None]}}, '{"a":[1,null]}', '{"a":[1]}'),
    "enum": ({"enum": [1, "a", None]}, '"a"', '"b"'),
    "minimum": ({"type": "integer", "minimum": 3}, "3", "2"),
    "maximum": ({"type": "number", "maximum": 0.3}, "0.3", "0.31"),
    "exclusiveMinimum": ({"type": "integer", "exclusiveMinimum": 3}, "4", "3"),
    "exclusiveMaximum": ({"type": "integer", "exclusiveMaximum": 3}, "2", "3"),
    "multipleOf": ({"type": "number", "multipleOf": 0.25}, "1.75", "1.7"),
    "minLength": ({"minLength": 2}, '"ab"', '"a"'),
    "maxLength": ({"maxLength": 2}, '"éé"', '"éée"'),
    "pattern": ({"pattern": "b+$"}, '"abb"', '"bba"'),
    "format": ({"format": "ipv4"}, '"1.2.3.4"', '"1.2.3"'),
    "items": ({"items": {"type": "null"}}, "[null,null]", "[1]"),
    "prefixItems": ({"prefixItems": [{"type": "null"}], "items": False}, "[null]", "[null,1]"),
    "additionalItems": (
        {"items": [True], "additionalItems": {"type": "null"}},
        "[1,null]",
        "[1,1]",
    ),
    "minItems": ({"minItems": 2}, "[1,2]", "[1]"),
    "maxItems": ({"maxItems": 1}, "[1]", "[1,2]"),
    "properties": (OBJECT, '{"a":1}', '{"a":"b"}'),
    "required": ({**OBJECT, "required": ["a", "b"]}, '{"a":1,"b":2}', '{"a":1}'),
    "additionalProperties": ({**OBJECT, "additionalProperties": False}, '{"a":1}', '{"b":1}'),
    "patternProperties": (
        {"patternProperties": {"^a": {"type": "null"}}},
        '{"ab":null}',
        '{"ab":1}',
    ),
    "propertyNames": ({"propertyNames": {"maxLength": 2}}, '{"ab":1}', '{"abc":1}'),
    "minProperties": ({"minProperties": 1}, '{"a":1}', "{}"),
    "maxProperties": ({"maxProperties": 1}, '{"a":1}', '{"a":1,"b":1}'),
    "allOf": ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "3", "2"),
    "anyOf": ({"anyOf": [{"type": "null"}, {"type": "boolean"}]}, "true", "1"),
    "oneOf": ({"oneOf": [{"type": "null"}, {"type": "boolean"}]}, "null", "1"),
    "$ref": ({"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, "null", "1"),
    "$anchor": ({"$ref": "#x", "$defs": {"a": {"$anchor": "x", "type": "null"}}}, "null", "1"),
    "$id": (
        {
            "$id": "https://a.b/c",
            "$ref": "https://a.b/c#/$defs/a",
            "$defs": {"a": {"type": "null"}},
        },
        "null",
        "1",
    ),
    "$schema": (
        {"$schema": "http://json-schema.org/draft-07/schema#", "type": "null"},
        "null",
        "1",
    ),
}


@pytest.mark.parametrize("keyword", HONOURED)
def test_honoured(texts: JsonConstraint, keyword: str) -> None:
    schema, right, wrong = HONOURED[keyword]
    assert accepts(texts, schema, right) and not accepts(texts, schema, wrong)


def test_every_keyword_that_is_said_to_be_honoured_is_tried() -> None:
    assert {
        keyword for keyword, fate in documented().items() if fate == "honoured"
    } == HONOURED.keys()


@pytest.mark.parametrize("keyword", sorted(keywords.ANNOTATIONS | {"x-guidance", "nonsense"}))
def test_annotations_say_nothing(texts: JsonConstraint, keyword: str) -> None:
    for value in (
        {"whitespace_flexible": True, "lenient": True, "coerce_one_of": True},
        "anything",
        False,
    ):
        schema = {"type": "object", "properties": {"a": {"type": "null", keyword: value}}}
        assert accepts(texts, {**schema, keyword: value}, '{"a":null}')
        assert not accepts(texts, {**schema, keyword: value}, '{"a": null}')
        assert not accepts(texts, {**schema, keyword: value}, '{"a":1}')


NAMED: list[tuple[Any, list[str], list[str]]] = [
    (True, ['{"a":1}', "{}"], []),
    ({"type": "string"}, ['{"a":1}'], []),
    (False, ["{}"], ['{"a":1}']),
    ({"type": "null"}, ["{}"], ['{"a":1}']),
    (
        {"enum": ["a", "b", 1]},
        ["{}", '{"b":1}', '{"a":1,"b":2}'],
        ['{"c":1}', '{"1":1}', '{"a":"x"}'],
    ),
    ({"const": "a"}, ['{"a":1}'], ['{"b":1}']),
    ({"$ref": "#/$defs/color"}, ['{"red":1}'], ['{"blue":1}']),
    ({"type": "string", "pattern": "^a"}, ['{"ab":1}'], ['{"b":1}', '{"ab":null}']),
    ({"minLength": 2}, ['{"ab":1}', '{"éé":1}'], ['{"a":1}']),
    ({"format": "date"}, ['{"2026-02-28":1}'], ['{"2026-02-29":1}', '{"a":1}']),
]


@pytest.mark.parametrize(("names", "right", "wrong"), NAMED)
def test_names_of_properties(
    texts: JsonConstraint, names: Any, right: list[str], wrong: list[str]
) -> None:
    schema = {"type": "object", "propertyNames": names, "additionalProperties": {"type": "integer"}}
    schema["$defs"] = {"color": {"enum": ["red", "green"]}}
    for valid, written in [(True, right), (False, wrong)]:
        for text in written:
            assert accepts(texts, schema, text) == valid
            if "format" not in str(names):  # which jsonschema takes as an annotation
                validator = jsonschema.Draft202012Validator(schema)
                assert validator.is_valid(json.loads(text)) == valid


@pytest.mark.parametrize(
    "schema",
    [
        {"propertyNames": {"pattern": "^a", "maxLength": 3}},
        {"propertyNames": {"anyOf": [{"const": "a"}, {"const": "b"}]}},
        {"propertyNames": {"format": "email"}},
        {"propertyNames": {"const": "a"}, "properties": {"a": True}},
        {"propertyNames": {"const": "a"}, "patternProperties": {"a": True}},
    ],
)
def test_names_of_properties_that_are_refused(
    texts: JsonConstraint, schema: dict[str, Any]
) -> None:
    with pytest.raises(InputError, match=r"^json_schema: #/items/propertyNames: propertyNames "):
        texts.matcher({"items": schema})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "not": ({"not": {"type": "null"}}, {"not": False}),
    "if": ({"if": {}, "then": {}}, {"if": {}}),
    "then": ({"then": {}, "if": {}}, {"then": {}}),
    "else": ({"else": {}, "if": {}}, {"else": {}}),
    "contains": ({"contains": {}}, None),
    "minContains": ({"minContains": 1, "contains": {}}, {"minContains": 1}),
    "maxContains": ({"maxContains": 1, "contains": {}}, {"maxContains": 1}),
    "uniqueItems": ({"uniqueItems": True}, {"uniqueItems": False}),
    "unevaluatedItems": ({"unevaluatedItems": False}, {"unevaluatedItems": True}),
    "unevaluatedProperties": ({"unevaluatedProperties": False}, {"unevaluatedProperties": True}),
    "dependentRequired": ({"dependentRequired": {"a": ["b"]}}, {"dependentRequired": {}}),
    "dependentSchemas": ({"dependentSchemas": {"a": True}}, {"dependentSchemas": {}}),
    "dependencies": ({"dependencies": {"a": ["b"]}}, {"dependencies": {}}),
    "$dynamicRef": ({"$dynamicRef": "#a"}, None),
    "$recursiveRef": ({"$recursiveRef": "#"}, None),
}


@pytest.mark.parametrize("keyword", sorted(keywords.UNSUPPORTED))
def test_refused_by_name_unless_without_effect(texts: JsonConstraint, keyword: str) -> None:
    schema, neutral = REFUSED[keyword]
    with pytest.raises(
        InputError, match=re.escape(f"#/items/{keyword}: {keyword} is not supported")
    ):
        texts.matcher({"items": schema})
    if neutral is not None:
        assert accepts(texts, {"type": "array", "items": neutral}, "[1]")


@pytest.mark.parametrize(
    "keyword", [*keywords.UNSUPPORTED, *keywords.VALUE_CHECKS, "format", "x-guidance", "$ref"]
)
def test_names_of_properties_and_values_are_no_keywords(
    texts: JsonConstraint, keyword: str
) -> None:
    schema = {
        "type": "object",
        "properties": {keyword: {"enum": [{keyword: True}]}},
        "required": [keyword],
        "additionalProperties": False,
    }
    assert accepts(texts, schema, json.dumps({keyword: {keyword: True}}, separators=(",", ":")))


# Keywords together ------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "id", 'x"y', "é", "", "format", "not"])
NUMBERS = st.integers(-200, 200)
STRINGS: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"type": st.just("string")},
    optional={
        "minLength": st.integers(0, 3),
        "maxLength": st.integers(0, 6),
        "pattern": st.sampled_from(["^a", "b$", "^[a-c]{1,4}$", "[0-9]", "^(ab|cd)*$", "é", ""]),
        "description": st.text(max_size=3),
    },
)
INTEGERS = st.fixed_dictionaries(
    {"type": st.sampled_from(["integer", ["integer", "null"]])},
    optional={
        "minimum": NUMBERS,
        "maximum": NUMBERS,
        "exclusiveMinimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "multipleOf": st.integers(1, 12),
    },
)
# llguidance may read the last of 17 digits of a number wrong; these have fewer.
FRACTIONS = st.integers(-(10**6), 10**6).map(lambda number: number / 8)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | NAMES | FRACTIONS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
    max_leaves=4,
)
LEAVES: st.SearchStrategy[Any] = st.one_of(
    STRINGS,
    INTEGERS,
    st.builds(lambda values: {"enum": values}, st.lists(VALUES, min_size=1, max_size=3)),
    st.builds(lambda value: {"const": value}, VALUES),
    st.sampled_from([True, {}, {"type": "boolean"}, {"type": ["null", "boolean"]}]),
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    arrays = st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(0, 3),
            "uniqueItems": st.just(False),
        },
    )
    objects = st.fixed_dictionaries(
        {"type": st.just("object")},
        optional={
            "properties": st.dictionaries(NAMES, inner, max_size=3),
            "required": st.lists(NAMES, max_size=2, unique=True),
            "additionalProperties": st.booleans() | inner,
            "patternProperties": st.dictionaries(
                st.sampled_from(["^a", "^b", "d$"]), inner, max_size=1
            ),
            "minProperties": st.integers(0, 1),
            "maxProperties": st.integers(1, 3),
        },
    )
    several = st.sampled_from(["allOf", "anyOf", "oneOf"]).flatmap(
        lambda keyword: st.lists(inner, min_size=1, max_size=2).map(lambda each: {keyword: each})
    )
    return arrays | objects | several


SCHEMAS = st.recursive(LEAVES, _nested, max_leaves=5)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(schema=SCHEMAS, seed=st.integers(0, 1000))
def test_what_is_written_is_valid(texts: JsonConstraint, schema: Any, seed: int) -> None:
    whole = {"allOf": [schema]} if isinstance(schema, bool) else schema
    jsonschema.Draft202012Validator.check_schema(whole)
    try:
        text = written(texts, whole, seed)
    except InputError as error:
        assert re.fullmatch(r"json_schema: #\S*( \S*)*: .*", str(error)) and len(str(error)) <= 300
        return
    if text is not None:
        jsonschema.validate(json.loads(text), whole, jsonschema.Draft202012Validator)


# Formats ----------------------------------------------------------------------------------------


def _is_email(text: str) -> None:
    local, _, domain = text.rpartition("@")
    assert local and domain


def _is_date_time(text: str) -> None:
    date, _, time = text.upper().partition("T")
    datetime.date.fromisoformat(date)
    _is_time(time)


def _is_time(text: str) -> None:
    found = re.fullmatch(r"(\d\d):(\d\d):(\d\d)(\.\d+)?([zZ]|[+-](\d\d):(\d\d))", text)
    assert found
    datetime.time(int(found[1]), int(found[2]), int(found[3]))
    datetime.time(int(found[6] or 0), int(found[7] or 0))


def _is_hostname(text: str) -> None:
    for label in text.split("."):
        assert re.fullmatch(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)", label)


def _is_duration(text: str) -> None:
    assert re.fullmatch(r"P(?!$)(\d+W|(\d+[YMD])*(T(\d+[HMS])+)?)", text)


def _is_uuid(version: int) -> Callable[[str], object]:
    def check(text: str) -> None:
        assert uuid.UUID(text).version == version

    return check


VALID: dict[str, Callable[[str], object]] = {
    "date": datetime.date.fromisoformat,
    "time": _is_time,
    "date-time": _is_date_time,
    "duration": _is_duration,
    "email": _is_email,
    "hostname": _is_hostname,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uuid": uuid.UUID,
    **{f"uuid{version}": _is_uuid(version) for version in (1, 3, 4, 5, 6, 7, 8)},
    "uri": urlsplit,
}


@pytest.mark.parametrize("name", keywords.FORMATS)
def test_formats(texts: JsonConstraint, name: str) -> None:
    found = 0
    for seed in range(60):
        text = written(texts, {"type": "string", "format": name}, seed, 400)
        if text is not None:
            found += 1
            value = json.loads(text)
            VALID[name](value)
    assert found > 10


@pytest.mark.parametrize("name", ["date", "date-time"])
@pytest.mark.parametrize(
    "year", [1, 4, 100, 400, 1900, 1999, 2000, 2023, 2024, 2026, 2100, 2400, 9999]
)
def test_days_are_those_of_the_calendar(texts: JsonConstraint, name: str, year: int) -> None:
    end = "" if name == "date" else "T12:30:59Z"
    for month in range(14):
        for day in (0, 1, 28, 29, 30, 31, 32):
            text = f"{year:04}-{month:02}-{day:02}"
            try:
                datetime.date.fromisoformat(text)
                right = True
            except ValueError:
                right = False
            assert accepts(texts, {"format": name}, f'"{text}{end}"') == right


@pytest.mark.parametrize(
    "name", ["banana", "unknown", "idn-email", "regex", "json-pointer", "int64", "binary"]
)
def test_other_formats_are_annotations(texts: JsonConstraint, name: str) -> None:
    schema = {"type": "string", "format": name, "maxLength": 2}
    assert accepts(texts, schema, '"no"') and not accepts(texts, schema, '"not"')


# What llguidance itself would get wrong -----------------------------------------------------------


def test_a_name_with_escapes_does_not_pass_for_another_name(texts: JsonConstraint) -> None:
    schema = {**OBJECT, "required": ["a"], "additionalProperties": {"type": "string"}}
    assert accepts(texts, schema, '{"a":1,"b":"x"}')
    for second in ('"a"', '"\\u0061"'):
        assert not accepts(texts, schema, '{"a":1,' + second + ':"x"}')


@pytest.mark.parametrize("value", ["\x01", "a\x1fb", "\n\t", "\u2028", "😀", '"\\/'])
def test_every_character_can_be_asked_for(texts: JsonConstraint, value: str) -> None:
    text = written(texts, {"const": value}, 0)
    assert text is not None and json.loads(text) == value


@pytest.mark.parametrize("high", ["maximum", "exclusiveMaximum"])
@pytest.mark.parametrize("low", ["minimum", "exclusiveMinimum"])
@pytest.mark.parametrize(
    ("least", "most"), [(0, 0.5), (-0.5, 0), (1, 1.5), (-1.5, -1), (0, 1), (10, 10.25), (-1, 1)]
)
def test_exclusive_bounds(
    texts: JsonConstraint, least: float, most: float, low: str, high: str
) -> None:
    schema = {"allOf": [{low: least}, {"type": "number", high: most}]}
    for number in {-1.5, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 1.25, 1.5, 10, 10.125, 10.25}:
        above = number > least or (number == least and low == "minimum")
        below = number < most or (number == most and high == "maximum")
        assert (allowed_spelling(texts, schema, number) is not None) == (above and below), number


def test_a_reference_to_false_allows_nothing(texts: JsonConstraint) -> None:
    schema = {"properties": {"a": {"$ref": "#/$defs/no"}}, "$defs": {"no": False, "yes": True}}
    assert accepts(texts, schema, '{"b":1}') and not accepts(texts, schema, '{"a":1}')
    assert accepts(texts, schema | {"$ref": "#/$defs/yes"}, '{"b":1}')
    with pytest.raises(InputError, match="schema is false"):
        texts.matcher(schema | {"$ref": "#/$defs/no", "allOf": [True]})


@pytest.mark.parametrize(
    "several",
    [
        {"allOf": [{"multipleOf": 4}, {"multipleOf": 6}]},
        {"multipleOf": 4, "$ref": "#/$defs/six"},
        {"multipleOf": 4, "anyOf": [{"multipleOf": 6}, {"type": "null"}]},
        {"$ref": "#/$defs/six", "oneOf": [{"type": "integer", "multipleOf": 4}]},
    ],
)
def test_multiples_that_meet(texts: JsonConstraint, several: dict[str, Any]) -> None:
    schema = several | {"type": "integer", "$defs": {"six": {"multipleOf": 6}}}
    assert accepts(texts, schema, "12") and not accepts(texts, schema, "18")
    large = json.loads(json.dumps(schema).replace("4", "9999"))
    with pytest.raises(
        InputError, match=r"json_schema: #.*: multipleOf 9999 and 6 meet|6 and 9999"
    ):
        texts.matcher({"items": large, "$defs": schema["$defs"]})
    assert accepts(texts, {"anyOf": [{"multipleOf": 9999}, {"multipleOf": 6}]}, "12")


@pytest.mark.parametrize("between", [{"allOf": [{"minProperties": 0}]}, {"enum": [{"ab": 1}]}])
def test_patterns_hold_wherever_they_stand(texts: JsonConstraint, between: dict[str, Any]) -> None:
    patterns = {"patternProperties": {"^a": {"type": "integer"}}}
    closed = {"additionalProperties": False}
    for schema in ({**patterns, **between, **closed}, {**closed, **between, **patterns}):
        assert accepts(texts, schema, '{"ab":1}') and not accepts(texts, schema, '{"b":1}')


def test_escapes_write_no_name_in_another_way(texts: JsonConstraint) -> None:
    schema = {"type": "object", "properties": {"a": {"const": "\x01"}}}
    closed = {**schema, "additionalProperties": False}
    assert accepts(texts, closed, '{"a":"\\u0001"}')
    assert not accepts(texts, closed, '{"\\u0061":"\\u0001"}')
    for opened in (schema, {"items": schema}, {"$defs": {"a": schema}, "$ref": "#/$defs/a"}):
        with pytest.raises(InputError, match=r"escapes.*additionalProperties: false"):
            texts.matcher(opened)
    names: dict[str, Any] = {"properties": {"a": {"type": "integer"}}}
    for pattern in (r"\p{L}", r"\S", ".", r"^[^\x00-\x1f\u0001]+$"):
        names["additionalProperties"] = {"pattern": pattern}
        assert accepts(texts, names, '{"a":1,"b":"é"}')
        assert not accepts(texts, names, '{"\\u0061":"é"}')


CHARACTERS = "a0_ é٣.-\u0085\u00a0\u2028\ufeff\U0001d7d8😀"


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        (r"^\d$", "0"),
        (r"^\D$", "a_ é.-\u0085\u00a0\u2028\ufeff😀"),
        (r"^\w$", "a0_"),
        (r"^\W$", " .-\u0085\u00a0\u2028\ufeff😀"),
        (r"^\s$", " \u00a0\u2028"),
        (r"^\S$", "a0_é٣.-\U0001d7d8😀"),
        (r"^.$", CHARACTERS.replace("\u2028", "")),
        (r"^(?s:.)$", CHARACTERS),
        (r"^[\w.]$", "a0_."),
        (r"^[^\w.]$", " -\u0085\u00a0\u2028\ufeff😀"),
        (r"^[^\s\d]$", "a_é.-😀"),
        (r"^[^\W]$", "a0_"),
        (r"^[^]a\]]$", CHARACTERS.replace("a", "")),
        (r"^\.$", "."),
        (r"^[\s\S]$", CHARACTERS),
        (r"^[\w\W]$", CHARACTERS),
    ],
)
def test_patterns_match_what_both_languages_match(
    texts: JsonConstraint, pattern: str, matched: str
) -> None:
    schema = {"type": "string", "pattern": pattern}
    found = [char for char in CHARACTERS if accepts(texts, schema, f'"{char}"')]
    assert found == list(matched)
    parser = pydantic.TypeAdapter(Annotated[str, pydantic.Field(pattern=pattern)])
    for char in found:
        assert parser.validate_python(char) == char


def test_options_of_a_union_may_be_references(texts: JsonConstraint) -> None:
    kinds = {
        name: {"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]}
        for name in ("cat", "dog")
    }
    schema = {"$defs": kinds, "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]}
    assert accepts(texts, schema, '{"kind":"dog"}') and not accepts(texts, schema, '{"kind":"cow"}')


def test_recursion_that_ends(texts: JsonConstraint) -> None:
    tree = {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}}
    schema = {**tree, "required": ["next"], "additionalProperties": False}
    assert accepts(texts, schema, '{"next":{"next":null}}')
    lists = {"type": "array", "items": {"$ref": "#"}}
    assert accepts(texts, lists, "[[],[[]]]")


def test_schemas_as_pydantic_writes_them(texts: JsonConstraint) -> None:
    class Cat(pydantic.BaseModel):
        kind: Literal["cat"]
        lives: int = pydantic.Field(ge=0, le=9)

    class Node(pydantic.BaseModel):
        value: int | None
        children: list[Node] = pydantic.Field(max_length=1)

    class Dog(pydantic.BaseModel):
        kind: Literal["dog"]
        name: str = pydantic.Field(min_length=1, max_length=5)

    class Everything(pydantic.BaseModel):
        number: float | None = pydantic.Field(ge=0, le=1)
        day: datetime.date
        moment: datetime.datetime
        identity: uuid.UUID
        pair: tuple[bool, Literal["a", "b"]]
        flags: dict[str, bool]
        animals: list[Cat | Dog]
        animal: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]
        address: ipaddress.IPv4Address
        tree: Node
        word: str = pydantic.Field(pattern=r"^[a-z]{1,9}$")

    Node.model_rebuild(_types_namespace={"Node": Node})
    schema = Everything.model_json_schema()
    found = [written(texts, schema, seed, 3000) for seed in range(30)]
    for text in found:
        if text is not None:
            Everything.model_validate_json(text)
    assert any(found)


def nested(schema: dict[str, Any], keyword: str, times: int) -> dict[str, Any]:
    for _ in range(times):
        schema = {keyword: schema if keyword in ("items", "additionalProperties") else [schema]}
    return schema


def ring(size: int, **link: Any) -> dict[str, Any]:
    """Return definitions that refer to each other in a ring."""
    found = {}
    for index in range(size):
        following = {"$ref": f"#/$defs/d{(index + 1) % size}"}
        found[f"d{index}"] = {
            **link,
            **({"items": following} if link else following),
        }
    return {"$defs": found, "$ref": "#/$defs/d0"}


WRONG: list[tuple[Any, str, str]] = [
    ([], "", "mapping"),
    ({"type": "nonsense"}, "#/type", "nonsense"),
    ({"type": ["integer", 5]}, "#/type", "5"),
    ({"type": []}, "#/type", "one of"),
    ({"properties": [1]}, "#/properties", "object of schemas"),
    ({"properties": {"a": 1}}, "#/properties/a", "boolean"),
    ({"properties": {"a/b~": {"pattern": 5}}}, "#/properties/a~1b~0/pattern", "string"),
    ({"items": {"pattern": "("}}, "#/items/pattern", "unclosed group"),
    ({"pattern": "(?=a)b"}, "#/pattern", "look-ahead"),
    ({"anyOf": [{"type": "null"}, {"pattern": "\\bx"}]}, "#/anyOf/1/pattern", "word borders"),
    ({"pattern": "(a)\\1"}, "#/pattern", "backreferences"),
    ({"pattern": "(a|b)*a(a|b){12}", "minLength": 5000, "maxLength": 6000}, "#/pattern", "complex"),
    ({"required": True}, "#/required", "array"),
    ({"required": [1]}, "#/required/0", "string"),
    ({"enum": []}, "#/enum", "at least one"),
    ({"enum": [float("nan")]}, "#/enum/0", "nan"),
    ({"enum": [[{"a": float("-inf")}]]}, "#/enum/0/0/a", "inf"),
    ({"enum": [object()]}, "#/enum/0", "not JSON"),
    ({"const": 2**53 + 1}, "#/const", "9007199254740993"),
    ({"const": 2**70}, "#/const", "2**53"),
    ({"const": -(2**63)}, "#/const", "2**53"),
    ({"const": 6.022e23}, "#/const", "2**53"),
    ({"const": 10**400}, "#/const", "40 digits"),
    ({"const": 10**6000}, "#", "digits"),
    ({"minimum": 1e300}, "#/minimum", "2**53"),
    ({"minimum": True}, "#/minimum", "boolean"),
    ({"minLength": -1}, "#/minLength", "-1"),
    ({"maxItems": 1.5}, "#/maxItems", "1.5"),
    ({"multipleOf": 0}, "#/multipleOf", "above 0"),
    ({"multipleOf": -3}, "#/multipleOf", "above 0"),
    ({"multipleOf": 9_999_991}, "#/multipleOf", "9999991"),
    ({"multipleOf": 1e-300}, "#/multipleOf", "1e-300"),
    ({"multipleOf": 3.1415926535}, "#/multipleOf", "costs too much"),
    ({"multipleOf": 10**5000}, "#", "digits"),
    ({"const": "a\x7f"}, "#/const", "U+007F"),
    ({"const": "\ud800"}, "#/const", "surrogate"),
    ({"properties": {"\udfff": True}}, "#/properties", "surrogate"),
    ({"format": 5}, "#/format", "string"),
    ({"allOf": {}}, "#/allOf", "array"),
    ({"$ref": 5}, "#/$ref", "string"),
    ({"$ref": "#/nowhere"}, "#/$ref", "nothing"),
    ({"$ref": "#nowhere"}, "#/$ref", "$anchor"),
    ({"$ref": "other.json#/a"}, "#/$ref", "another document"),
    ({"$ref": "https://example.org/schema.json"}, "#/$ref", "another document"),
    ({"$ref": "#/const", "const": 3}, "#/const", "boolean"),
    ({"$schema": "http://json-schema.org/draft-04/schema#"}, "#/$schema", "draft"),
    ({"items": {"$id": "https://a.b"}}, "#/items/$id", "$defs"),
    ({"items": [True], "prefixItems": [True]}, "#/items", "prefixItems"),
    ({"minProperties": 2}, "#/minProperties", "repeat"),
    ({"description": "x" * 100_000}, "#", "100019 characters"),
    # contradictions
    ({"type": "integer", "minimum": 5, "maximum": 1}, "#/minimum", "greater"),
    ({"type": "string", "minLength": 5, "maxLength": 1}, "#/minLength", "greater"),
    ({"items": {"allOf": [{"type": "integer"}, {"type": "null"}]}, "minItems": 1, "type": "array"},
     "#/items/allOf", "nsatisfiable"),
    ({"type": "object", "required": ["a"], "properties": {"a": False}}, "#/required", "'a'"),
    ({"type": "string", "pattern": "^a{2}$", "minLength": 3}, "#/pattern", "no string fits"),
    ({"type": "null", "enum": [1]}, "#/enum", "atisfi"),
    ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "#/oneOf", "anyOf"),
    ({"type": "string", "pattern": "^\\x01$"}, "#/pattern", "no sequence"),
    # no end
    ({"$ref": "#"}, "#", "no end"),
    ({"allOf": [{"$ref": "#"}]}, "#", "no end"),
    ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "#", "no end"),
    (ring(1300), "#/$defs/d0", "no end"),
    (ring(600, type="array", minItems=1), "#", "no end"),
    ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "#/properties/a", "no end"),
    ({"type": "object", "additionalProperties": {"$ref": "#"}, "minProperties": 1},
     "#/additionalProperties", "no end"),
    ({"type": "object", "additionalProperties": {"$ref": "#"}, "required": ["x"]},
     "#/additionalProperties", "no end"),
    ({"type": "array", "prefixItems": [True, {"$ref": "#"}], "minItems": 2}, "#/prefixItems/1", "no end"),
    # too large
    (nested({"type": "null"}, "items", 100), "#/items/items", "nested deeper"),
    (nested({"type": "null"}, "allOf", 100), "#/allOf/0/allOf/0", "nested deeper"),
    (nested({"type": "null"}, "additionalProperties", 3000), "#", "nested"),
    ({"const": nested({}, "items", 300)}, "#/const/items", "nested deeper"),
    ({"type": "object", "properties": {f"property{n}": {"type": "string"} for n in range(1000)}},
     "#/properties", "too many optional properties"),
    ({"$defs": {f"d{n}": {"oneOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(25)}
      | {"d25": {"type": "null"}}, "$ref": "#/$defs/d0"}, "#/$defs/d", "10000 schemas"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "place", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_line_with_its_place(
    texts: JsonConstraint, schema: Any, place: str, words: str
) -> None:
    with pytest.raises(InputError) as caught:
        texts.matcher(schema)
    message = str(caught.value)
    assert message.startswith(f"json_schema: {place}" if place else "json_schema must be")
    assert words in message
    assert len(message) <= 300 and message.isprintable()


def test_a_schema_within_itself(texts: JsonConstraint) -> None:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    with pytest.raises(InputError, match="within itself"):
        check_schema(schema)


@pytest.mark.parametrize(
    ("schema", "right", "wrong"),
    [
        (
            {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
            str(2**53),
            str(2**53 + 2),
        ),
        ({"type": "number", "minimum": 0, "maximum": 1.7976931348623157e308}, "0.5", "-1"),
        ({"type": "integer"}, str(-(2**53)), str(2**53 + 2)),
        ({"type": ["integer", "null"]}, str(2**53), str(2**53 + 8)),
        ({"type": "integer", "multipleOf": 9999}, str(9999 * 10**20), str(9999 * 10**20 + 1)),
        ({"type": ["integer", "number"]}, "1e400", "null"),
        ({"type": "integer", "minimum": -(10**400)}, "-5", str(-(2**53) - 2)),
        ({"type": "string", "maxLength": 2**63 - 1}, '"a"', "1"),
        ({"type": "string", "minLength": 1.0}, '"a"', '""'),
    ],
)
def test_bounds_further_out_than_numbers_go(
    texts: JsonConstraint, schema: dict[str, Any], right: str, wrong: str
) -> None:
    assert accepts(texts, schema, right) and not accepts(texts, schema, wrong)


@pytest.fixture(scope="module", autouse=True)
def _one_process_is_enough(texts: JsonConstraint) -> Iterator[None]:
    """Check that no schema of this module ended the child process."""
    texts.matcher({"type": "null"})
    helper = texts._helper
    yield
    assert helper is not None and helper.alive and texts._helper is helper
