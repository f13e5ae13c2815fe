"""Requests made at random from the server's own description: none breaks it, every answer is as described."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import schemathesis
import schemathesis.specs.openapi.schemas  # before a server's thread runs: compiling beside one can fail
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.parameters import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from edgevlm import VLM
from tests.support.serving import MODEL, serving

KEY = "secret"
OPERATIONS = [
    "GET /health",
    "GET /metrics",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "POST /v1/files",
    "GET /v1/files",
    "GET /v1/files/{identifier}",
    "GET /v1/files/{identifier}/content",
    "DELETE /v1/files/{identifier}",
    "POST /v1/chat/completions",
]


@pytest.fixture(scope="module")
def operations() -> Iterator[dict[str, Any]]:
    vlm = VLM.from_pretrained(MODEL, context_length=256)
    with serving(vlm, api_key=KEY) as address:
        schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
        found: list[Any] = list(schema.get_all_operations())
        yield {each.ok().label: each.ok() for each in found}


def test_the_description_is_complete(operations: dict[str, Any]) -> None:
    assert sorted(operations) == sorted(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_answer_is_as_described(operations: dict[str, Any], name: str) -> None:
    modes = [schemathesis.GenerationMode.POSITIVE]
    if name != "GET /health":  # which takes nothing that could be wrong
        modes.append(schemathesis.GenerationMode.NEGATIVE)

    for mode in modes:

        @settings(
            max_examples=60,
            phases=[Phase.generate],
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operations[name].as_strategy(generation_mode=mode))
        def check(case: Any) -> None:
            excluded = [positive_data_acceptance]  # no schema can say what an image file is
            header = case.meta.components.get(ParameterLocation.HEADER)
            if header is not None and header.mode.is_negative:  # it is replaced by a right one
                excluded.append(negative_data_rejection)
            if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                case.body["model"] = MODEL  # else nearly every request ends there
            case.call_and_validate(
                headers={"Authorization": f"Bearer {KEY}"},
                excluded_checks=excluded,
            )

        check()


def test_every_schema_is_one(operations: dict[str, Any]) -> None:
    """No keyword but those that JSON Schema and OpenAPI have."""
    described = next(iter(operations.values())).schema.raw_schema
    known = {"discriminator", "contentMediaType"} | set(
        jsonschema.Draft202012Validator({}).VALIDATORS
    )
    annotations = {"title", "description", "default", "const", "enum"}
    seen: set[str] = set()

    def walk(schema: Any) -> None:
        if not isinstance(schema, dict):
            return
        seen.update(schema)
        for name, value in schema.items():
            if name in ("properties", "$defs"):
                for inner in value.values():
                    walk(inner)
            elif name in ("anyOf", "oneOf", "allOf"):
                for inner in value:
                    walk(inner)
            elif name in ("items", "not", "additionalProperties"):
                walk(value)

    for schema in described["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
        walk(schema)
    assert seen - known - annotations == set()
