"""Check of the server's responses against OpenAI's types and published API description.

Every answer is read strictly by the types of the `openai` package: no type is coerced, nothing required is
missing, nothing is there that they do not have, except the fields in `OWN`. Fields that OpenAI's published
description requires and those types leave optional are listed in `REQUIRED`.

With ``OPENAI_DESCRIPTION`` naming that description's file (``openapi.json`` of
github.com/openai/openai-openapi), every answer is validated by it as well.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import openai
import pydantic
from openai.types import FileDeleted, FileObject, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.shared import ErrorObject
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class ErrorResponse(openai.BaseModel):
    error: ErrorObject


class ModelList(openai.BaseModel):
    object: str
    data: list[Model]


class FileList(openai.BaseModel):
    object: str
    data: list[FileObject]
    first_id: str
    last_id: str
    has_more: bool


REQUIRED = {
    "ErrorObject": {"code", "message", "param", "type"},
    "ChatCompletionMessage": {"content", "refusal", "role"},
    "Choice": {"finish_reason", "index"},
    "ChoiceLogprobs": {"content", "refusal"},
    "ChatCompletionTokenLogprob": {"token", "logprob", "bytes", "top_logprobs"},
    "TopLogprob": {"token", "logprob", "bytes"},
}
"""Fields by the name of the `openai` package's type."""

OWN = {"Choice": {"edgevlm"}}
"""Fields that only this server has, by the name of the `openai` package's type."""

ANSWERS: list[tuple[str, type[pydantic.BaseModel], str]] = [
    (r"POST /v1/chat/completions", ChatCompletion, "CreateChatCompletionResponse"),
    (r"GET /v1/models", ModelList, "ListModelsResponse"),
    (r"GET /v1/models/.*", Model, "Model"),
    (r"POST /v1/files", FileObject, "OpenAIFile"),
    (r"GET /v1/files", FileList, "ListFilesResponse"),
    (r"GET /v1/files/[^/]*", FileObject, "OpenAIFile"),
    (r"DELETE /v1/files/[^/]*", FileDeleted, "DeleteFileResponse"),
]
OTHERS = re.compile(r"GET /(health|metrics|openapi.json|v1/files/[^/]*/content)|OPTIONS .*")
"""Paths that OpenAI does not have, or not as JSON."""


def mistakes(request: str, status: int, media_type: str, body: bytes) -> Iterator[str]:
    """Return the mistakes of a response.

    Args:
        request: method and path.
    """
    if 300 <= status < 400:  # a redirection has no body
        return
    if status >= 400:
        if status != 499:  # nobody is there to read it
            yield from _wrong(ErrorResponse, "ErrorResponse", _json(body, media_type))
        return
    if media_type.startswith("text/event-stream"):
        yield from _wrong_stream(body.decode())
        return
    for pattern, model, schema in ANSWERS:
        if re.fullmatch(pattern, request):
            yield from _wrong(model, schema, _json(body, media_type))
            return
    if not OTHERS.fullmatch(request):
        yield f"nobody knows what {request} answers"


def _json(body: bytes, media_type: str) -> Any:
    assert media_type.startswith("application/json"), f"{media_type}: {body[:80]!r}"
    return json.loads(body)


def _wrong_stream(text: str) -> Iterator[str]:
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    ended = events[-1:] == ["[DONE]"]
    values = [json.loads(event) for event in (events[:-1] if ended else events)]
    chunks = [value for value in values if "error" not in value]
    for value in values:
        if "error" in value:
            yield from _wrong(ErrorResponse, "ErrorResponse", value)
        else:
            yield from _wrong(ChatCompletionChunk, "CreateChatCompletionStreamResponse", value)
    for name in ("id", "created", "model"):
        if len({chunk[name] for chunk in chunks}) > 1:
            yield f"a stream with several values of {name}"
    finishes = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]]
    if any(finishes[:-1]) or (ended and not finishes[-1]):
        yield f"a stream with the finish reasons {finishes}"
    usages = [chunk["usage"] for chunk in chunks if "usage" in chunk]
    if usages and (len(usages) < len(chunks) or any(usages[:-1]) or (ended and not usages[-1])):
        yield f"a stream with the usages {usages}"


def _wrong(model: type[pydantic.BaseModel], schema: str, value: Any) -> Iterator[str]:
    try:
        yield from _extra(model.model_validate(value, strict=True))
    except pydantic.ValidationError as error:
        yield f"{model.__name__}: {error}"
    if validator := _validator(schema):
        yield from (f"{schema}: {error.message}" for error in validator.iter_errors(value))


def _extra(model: pydantic.BaseModel) -> Iterator[str]:
    """Return the fields that OpenAI does not have, and those that are missing."""
    name = type(model).__name__
    if extra := set(model.model_extra or {}) - OWN.get(name, set()):
        yield f"{name} has {sorted(extra)}"
    if missing := REQUIRED.get(name, set()) - model.model_fields_set:
        yield f"{name} lacks {sorted(missing)}"
    for field in type(model).model_fields:
        value = getattr(model, field)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, pydantic.BaseModel):
                yield from _extra(item)


@functools.cache
def _validator(schema: str) -> Any:
    """Return the schemas of the published description; empty if its file is not given."""
    file = os.environ.get("OPENAI_DESCRIPTION")
    if not file:
        return None
    description = _nullable(json.loads(Path(file).read_text()))
    root = {"$ref": f"#/components/schemas/{schema}", "components": description["components"]}
    return jsonschema.Draft202012Validator(root)


def _nullable(value: Any) -> Any:
    """Translate OpenAPI 3.0's ``nullable`` to JSON Schema."""
    if isinstance(value, list):
        return [_nullable(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    converted = {name: _nullable(item) for name, item in value.items()}
    if converted.pop("nullable", None) is True:
        return {"anyOf": [converted, {"type": "null"}]}
    return converted


class CheckedAnswers:
    """ASGI application around another one: it collects the mistakes of its responses in `mistakes`."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.mistakes: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, media_type, body, ended = 0, "", bytearray(), False

        async def watched(message: Message) -> None:
            nonlocal status, media_type, ended
            if message["type"] == "http.response.start":
                status = message["status"]
                media_type = dict(message["headers"]).get(b"content-type", b"").decode()
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                ended = not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            if ended:  # else the client left
                request = f"{scope['method']} {scope['path']}"
                try:
                    found = list(mistakes(request, status, media_type, bytes(body)))
                except Exception as error:
                    found = [repr(error)]
                self.mistakes += [f"{request} {status}: {each}" for each in found]
