"""JSON Schema's own test suite: valid values are allowed, invalid ones are not, or the schema is refused."""

from __future__ import annotations

import random
import zipfile

import jsonschema
import pytest

from edgevlm.errors import InputError
from scripts import write_json_schema_tables
from tests.support.json_schema_suite import EXCLUDED, SUITE, Report, run
from tests.support.json_spellings import allowed_spelling
from tests.support.json_texts import byte_constraint
from tests.support.random_schemas import random_schema, random_value

DOCUMENT = write_json_schema_tables.DOCUMENT.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def report() -> Report:
    return run()


def test_nothing_is_wrong(report: Report) -> None:
    wrong = {topic: result.wrong for topic, result in report.topics.items() if result.wrong}
    assert not wrong
    assert sum(result.valid + result.invalid for result in report.topics.values()) > 1200


def test_the_document_has_the_result(report: Report) -> None:
    assert write_json_schema_tables.tables(report) in DOCUMENT
    assert write_json_schema_tables.insert(DOCUMENT, write_json_schema_tables.tables(report)) == (
        DOCUMENT
    )


@pytest.mark.parametrize("rule", EXCLUDED)
def test_valid_values_are_excluded_by_documented_rules(report: Report, rule: str) -> None:
    assert f"\n- {rule}\n" in DOCUMENT
    assert report.rules[rule] > 0


def test_the_suite_comes_with_its_licence() -> None:
    with zipfile.ZipFile(SUITE) as suite:
        licence = suite.read("LICENSE").decode()
    assert "Julian Berman" in licence and "free of charge" in licence


# Random schemas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "schemas"), [(0, 300), pytest.param(1, 1500, marks=pytest.mark.slow)]
)
def test_a_value_is_allowed_if_it_is_valid(seed: int, schemas: int) -> None:
    """The reference is the package jsonschema."""
    choose, texts = random.Random(seed), byte_constraint()
    kept = 0
    for _ in range(schemas):
        schema = random_schema(choose)
        try:
            texts.check(schema)
        except InputError as error:
            assert "crashed" not in str(error)
            continue
        kept += 1
        validator = jsonschema.Draft202012Validator(schema)
        for _ in range(20):
            value = random_value(choose)
            allowed = allowed_spelling(texts, schema, value) is not None
            assert allowed == validator.is_valid(value), (schema, value)
    assert kept > schemas / 2
