"""The OpenAPI description of the requests that the server parses without FastAPI."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from edgevlm.server.validation import RequestModel

_REFERENCE = "#/components/schemas/{model}"


def schema_reference(model: type[RequestModel]) -> dict[str, Any]:
    """Return a reference to the schema of a model."""
    return {"$ref": _REFERENCE.format(model=model.__name__)}


def request_body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an operation that describe the body of a request."""
    return {"requestBody": {"required": True, "content": {media_type: {"schema": schema}}}}


def query_parameters(model: type[RequestModel]) -> dict[str, Any]:
    """Return the fields of an operation that describe the parameters of a query."""
    properties = model.model_json_schema()["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in properties.items()
        ]
    }


def openapi_schema(app: FastAPI, *models: type[RequestModel]) -> dict[str, Any]:
    """Return the description of `app`, with the schemas of `models` added."""
    document = app.openapi()
    schemas = document["components"]["schemas"]
    for model in models:
        schema = model.model_json_schema(ref_template=_REFERENCE)
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    # FastAPI's own form of validation errors, which the server never sends
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return document
