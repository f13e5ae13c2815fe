"""The test suite of JSON Schema, run on the constraint of answers.

Each schema is either refused with an error that names a keyword, or it allows each valid value in one of its
spellings, token by token, and no invalid one. `EXCLUDED` says which valid values no answer has.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgevlm.errors import InputError
from edgevlm.runtimes.json_schema.constraint import JsonConstraint
from edgevlm.runtimes.json_schema.keywords import FORMATS, MAX_NUMBER
from tests.support.json_spellings import allowed_spelling
from tests.support.json_texts import byte_constraint, is_written, token_constraint

SUITE = Path(__file__).resolve().parents[1] / "json_schema_suite" / "draft2020-12.zip"
FOLDER = "tests/draft2020-12/"
CONTROLS = set(map(chr, range(32))) - set("\b\t\n\f\r")


@dataclass(frozen=True)
class Case:
    """A value and whether it is valid."""

    topic: str
    schema: dict[str, Any]
    value: Any
    valid: bool
    description: str


def _has_number(value: Any, found: Callable[[int | float], bool]) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and found(value)


def _is_text(case: Case, pattern: str, *formats: str) -> bool:
    text, name = case.value, case.schema.get("format")
    return isinstance(text, str) and name in formats and re.search(pattern, text) is not None


EXCLUDED: dict[str, Callable[[Case], bool]] = {
    "A text keeps to its `format`, which the standard leaves to the application.": lambda case: (
        case.topic == "format" and "only an annotation by default" in case.description
    ),
    "Integers go to 2^53, and a bound beyond it counts as 2^53.": lambda case: _has_number(
        case.value, lambda number: abs(number) > MAX_NUMBER
    ),
    r"Control characters are written only if the schema has them, except `\b`, `\t`, `\n`, `\f` and `\r`.": (
        lambda case: isinstance(case.value, str) and bool(set(case.value) & CONTROLS)
    ),
    r"What `\d`, `\w`, `\s`, their opposites and `.` match is what they match in ECMAScript and in Rust.": (
        lambda case: "pattern" in case.schema and case.value in ("\u07c0", "é", "\ufeff")
    ),
    "Seconds go to 59.": lambda case: _is_text(case, ":60", "time", "date-time"),
    "The numbers of a `duration` have at most six digits.": lambda case: _is_text(
        case, "[0-9]{7}", "duration"
    ),
    "An `email` has no quoted name and no address in brackets.": lambda case: _is_text(
        case, r'["\[]', "email"
    ),
    "An `ipv6` has no `ipv4` at its end.": lambda case: _is_text(case, r"\.", "ipv6"),
    "A `hostname` has no label like `xn--`.": lambda case: _is_text(
        case, r"(?i)(^|\.)xn--", "hostname"
    ),
}  # fmt: skip
"""Rules of docs/json-schemas.md on valid values that no answer has, each with the values that it means."""


@dataclass
class Result:
    """Counts of one topic: a keyword, a format, or what else a file of the suite is about."""

    kept: int = 0
    """Schemas that are kept to."""
    refused: int = 0
    """Schemas that are refused, with the keyword."""
    valid: int = 0
    """Valid values that are allowed."""
    invalid: int = 0
    """Invalid values that are refused."""
    excluded: int = 0
    """Valid values that are refused by one of the rules of `EXCLUDED`."""
    wrong: list[str] = field(default_factory=list)
    """All others, in words."""


@dataclass
class Report:
    topics: dict[str, Result]
    rules: dict[str, int]
    """Number of values that each rule of `EXCLUDED` refuses."""


def run() -> Report:
    """Run all tests of the standard, the optional ones, and those of the formats that are honoured."""
    constraints = byte_constraint(), token_constraint()
    report = Report({}, dict.fromkeys(EXCLUDED, 0))
    for topic, group in _groups():
        result = report.topics.setdefault(topic, Result())
        schema = group["schema"]
        if isinstance(schema, bool):
            schema = {"allOf": [schema]}  # edgevlm takes mappings
        try:
            constraints[0].check(schema)
        except InputError as error:
            if _names_keyword(str(error), schema):
                result.refused += 1
            else:
                result.wrong.append(f"{group['description']}: {error}")
            continue
        result.kept += 1
        for test in group["tests"]:
            case = Case(topic, schema, test["data"], test["valid"], test["description"])
            _count(*constraints, case, result, report.rules)
    return report


def _groups() -> Iterator[tuple[str, dict[str, Any]]]:
    with zipfile.ZipFile(SUITE) as suite:
        for name in sorted(suite.namelist()):
            topic = name.removeprefix(FOLDER).removesuffix(".json")
            path, _, last = topic.rpartition("/")
            honoured = path != "optional/format" or last in FORMATS
            if name.startswith(FOLDER) and name.endswith(".json") and honoured:
                for group in json.loads(suite.read(name)):
                    yield topic, group


def _count(
    by_byte: JsonConstraint,
    by_token: JsonConstraint,
    case: Case,
    result: Result,
    rules: dict[str, int],
) -> None:
    text = allowed_spelling(by_byte, case.schema, case.value)
    if text is not None and not is_written(by_token, case.schema, text):
        result.wrong.append(f"{case.description}: {text} is allowed byte by byte only")
    elif case.valid and text is not None:
        result.valid += 1
    elif not case.valid and text is None:
        result.invalid += 1
    elif rule := next((rule for rule in EXCLUDED if case.valid and EXCLUDED[rule](case)), None):
        result.excluded += 1
        rules[rule] += 1
    else:
        verdict = "is valid and refused" if case.valid else f"is invalid and allowed as {text}"
        result.wrong.append(f"{case.description}: {case.value!r} {verdict} by {case.schema}")


def _names_keyword(message: str, schema: Any) -> bool:
    """Return True if the place of an error, or its reason, has a keyword that the schema has.

    The schema ``false`` has none; a reference to it is written as ``allOf``.
    """
    words = set(re.findall(r"[$\w]+", message.removeprefix("json_schema: ")))
    return bool(words & {*_keys(schema), "allOf"})


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield key
            yield from _keys(one)
    elif isinstance(value, list):
        for one in value:
            yield from _keys(one)
