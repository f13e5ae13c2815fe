"""The server's own description (OpenAPI) of the requests that it reads itself instead of FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from edgevlm.server.validation import RequestModel

_REFERENCE = "#/components/schemas/{model}"


def schema_reference(model: type[RequestModel]) -> dict[str, Any]:
    """A schema that points to a model's."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def request_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """What an operation says of its request's body."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def query_parameters(model: type[RequestModel]) -> dict[str, Any]:
    """What an operation says of its query's parameters."""
    properties = model.model_json_schema()["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties.items()
        ]
    }


def openapi_schema(app: FastAPI, *models: type[RequestModel]) -> dict[str, Any]:
    """The whole description, with the schemas of `models`."""
    described = app.openapi()
    schemas = described["components"]["schemas"]
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    # FastAPI's own form of validation errors, which no client gets
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return described
