"""The HTTP API: OpenAI's chat completions, models and files for one model."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hmac
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import edgevlm
from edgevlm.errors import DeadlineError, EdgeVLMError, InputError
from edgevlm.locations import location_question
from edgevlm.manifest import Usage
from edgevlm.options import DEFAULT_MAX_TOKENS, GenerationOptions
from edgevlm.results import Chunk
from edgevlm.server import openapi, responses
from edgevlm.server.access import AccessControl, parse_origin
from edgevlm.server.answers import PendingAnswer, cancel_on_disconnect
from edgevlm.server.body_limit import BodyLimit
from edgevlm.server.errors import RequestError, error_body, failure_body, to_request_error
from edgevlm.server.files import FileStore, ListParameters, StoredFile, UploadFields, read_upload
from edgevlm.server.images import ImageReader
from edgevlm.server.limits import Limits
from edgevlm.server.messages import TextPart
from edgevlm.server.metrics import Metrics
from edgevlm.server.notices import Notices
from edgevlm.server.requests import ChatCompletionRequest
from edgevlm.server.validation import parse_json, validate
from edgevlm.server.worker import Worker
from edgevlm.values import LOCATE_MAX_TOKENS
from edgevlm.vlm import VLM

MIN_BYTES_FOR_THREAD = 2**18
"""Size from which a body is parsed in a thread, so that other requests do not wait."""

SCHEMA_THREADS = 4
"""Schemas that are checked at the same time. New ones are tried one at a time; known ones do not wait."""

BEARER = HTTPBearer(auto_error=False)

EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
"""OpenAPI schema of each server-sent event."""

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": responses.ErrorResponse, "description": description}
    for status, description in {
        400: "the request is invalid",
        401: "the API key is missing or wrong",
        403: "the origin of the web page is not allowed",
        404: "the model, file or path does not exist",
        405: "the method is not allowed for this path",
        413: "the body is too large, or the storage is full",
        500: "the model failed",
        501: "a library is missing on the server",
        503: "the queue is full; the header Retry-After has the seconds to wait",
        504: "the time of the request (timeout) was over before its first token",
    }.items()
}

UPLOAD_SCHEMA = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        **UploadFields.model_json_schema()["properties"],
    },
    "required": ["file"],
}


def create_app(
    vlm: VLM,
    *,
    model: str,
    api_key: str | None = None,
    limits: Limits | None = None,
    allow_address: Callable[[str], bool] | None = None,
    trusted_hosts: Sequence[str] | None = None,
    allowed_origins: Sequence[str] = (),
    strict: bool = False,
) -> FastAPI:
    """Create the application. It owns `vlm` from its start to its end.

    Args:
        vlm: the model.
        model: the name of the model for clients.
        api_key: the key that clients must send; None: no key.
        limits: the limits of the server; None: the defaults.
        allow_address: True for IP addresses that images may be fetched from; None: fetch no images.
        trusted_hosts: allowed names in the Host header; None: all. A server without a key should only allow
            its own names. Otherwise a web page can let a name of its own point to the server, and read its
            answers.
        allowed_origins: origins of web pages that may use the server, such as ``http://localhost:5173``; see
            `edgevlm.server.access.parse_origin`.
        strict: refuse unknown fields in requests instead of ignoring them.

    Raises:
        InputError: an origin is not valid.
    """
    limits = limits or Limits()
    origins = [parse_origin(text) for text in allowed_origins]
    metrics = Metrics()
    worker = Worker(vlm, limits.queue, metrics)
    metrics.track_queue(lambda: worker.waiting)
    files = FileStore(limits)
    images = ImageReader(limits, files, allow_address)
    notices = Notices()
    schema_threads = ThreadPoolExecutor(SCHEMA_THREADS, "edgevlm-schemas")
    created = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)
        schema_threads.shutdown(wait=False, cancel_futures=True)
        vlm.close()

    app = FastAPI(
        title="edgevlm",
        version=edgevlm.__version__,
        description="Vision-language models on this machine, as OpenAI's chat completions.",
        lifespan=lifespan,
        docs_url=None,  # this page loads scripts from other servers
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)
    # Starlette runs the middleware that is added last first.
    app.add_middleware(AccessControl, hosts=trusted_hosts, origins=origins, notices=notices)
    _handle_errors(app)

    def check_key(
        sent: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> None:
        if api_key is not None and not hmac.compare_digest(
            (sent.credentials if sent else "").encode(), api_key.encode()
        ):
            raise RequestError(
                401,
                "the API key is missing or wrong; send it in the header 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    guarded: dict[str, Any] = {"dependencies": [Depends(check_key)], "responses": ERRORS}

    async def check_options(options: GenerationOptions) -> None:
        """Check JSON schema and tools before the request enters the queue, since this can take seconds."""
        field = "tools" if options.get("tools") else "tool_choice"
        if options.get("json_schema") is not None and field != "tools":
            field = "response_format"
        if (
            options.get("json_schema") is None
            and "tools" not in options
            and "tool_choice" not in options
        ):
            return
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(
                schema_threads, functools.partial(vlm.check_options, **options)
            )
        except EdgeVLMError as error:
            raise to_request_error(error, field) from error

    @app.get("/health", responses={503: ERRORS[500] | {"description": "the model hangs"}})
    async def health() -> responses.Health:
        """Report that the server works, or an error if the current request makes no progress."""
        stalled = worker.stalled_seconds
        if stalled > limits.stalled_seconds:
            raise RequestError(
                503,
                f"the current request has made no progress for {stalled:.0f} seconds, and "
                f"{worker.waiting} requests wait; restart the server",
                code="stalled",
            )
        return responses.Health(waiting=worker.waiting)

    @app.get("/metrics", response_class=Response, **guarded)
    async def metrics_text() -> Response:
        """Return metrics for Prometheus."""
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", **guarded)
    async def models() -> responses.ModelList:
        """List the model of the server."""
        return responses.ModelList(data=[responses.Model(id=model, created=created)])

    @app.get("/v1/models/{name:path}", **guarded)
    async def one_model(name: str) -> responses.Model:
        """Return the model of the server by its name."""
        if name != model:
            raise RequestError(
                404, f"no model {name[:80]!r}; this server has {model!r}", code="model_not_found"
            )
        return responses.Model(id=model, created=created)

    def log_unknown(fields: Iterable[str]) -> None:
        for name in fields:
            notices.warn_once(f"unknown field {name} in requests is ignored")

    @app.post(
        "/v1/files",
        **guarded,
        openapi_extra=openapi.request_body("multipart/form-data", UPLOAD_SCHEMA),
    )
    async def upload(request: Request) -> responses.File:
        """Store an image; messages refer to it as ``{"type": "file", "file": {"file_id": ...}}``."""
        file, unknown = await read_upload(request, limits, strict=strict)
        log_unknown(unknown)
        images.count_pixels(file.data)
        files.add(file)
        return _to_response(file)

    @app.get("/v1/files", **guarded, openapi_extra=openapi.query_parameters(ListParameters))
    async def all_files(request: Request) -> responses.FileList:
        """List the stored images."""
        parameters, _ = validate(ListParameters, dict(request.query_params), strict=True)
        page = files.page(parameters)
        ids = [file.id for file in page.files]
        return responses.FileList(
            data=[_to_response(file) for file in page.files],
            first_id=ids[0] if ids else "",
            last_id=ids[-1] if ids else "",
            has_more=page.has_more,
        )

    @app.get("/v1/files/{identifier}", **guarded)
    async def one_file(identifier: str) -> responses.File:
        """Describe a stored image."""
        return _to_response(files.get(identifier))

    @app.get("/v1/files/{identifier}/content", **guarded, response_class=Response)
    async def content(identifier: str) -> Response:
        """Return the file of a stored image."""
        file = files.get(identifier)
        return Response(
            file.data,
            media_type="application/octet-stream",
            headers={
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
                "X-Content-Type-Options": "nosniff",
            },
        )

    @app.delete("/v1/files/{identifier}", **guarded)
    async def delete(identifier: str) -> responses.FileDeleted:
        """Delete a stored image."""
        files.remove(identifier)
        return responses.FileDeleted(id=identifier)

    @app.post(
        "/v1/chat/completions",
        response_model=responses.ChatCompletion,
        openapi_extra=openapi.request_body(
            "application/json", openapi.schema_reference(ChatCompletionRequest)
        ),
        **guarded
        | {
            "responses": ERRORS
            | {
                200: {
                    "description": "the answer; with stream=true, its chunks as server-sent events",
                    "content": {"text/event-stream": {"schema": EVENT}},
                }
            }
        },
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation about images."""
        arrival = time.monotonic()
        body, unknown = await _read_request(request, strict=strict)
        log_unknown(unknown)
        if body.model not in (None, model):
            notices.warn_once(
                f"requests name the model {body.model[:80]!r}; {model!r} answers them"
            )
        default_max_tokens = min(DEFAULT_MAX_TOKENS, max(1, vlm.context_length // 4))
        task = body.location_task()
        if task is not None:
            default_max_tokens = LOCATE_MAX_TOKENS
            _add_location_question(body, *task, vlm.manifest.usage)
        options = body.generation_options(default_max_tokens)
        if task is not None:
            options.setdefault("top_logprobs", 0)

        async def begin() -> tuple[Chunk, AsyncGenerator[Chunk, None]]:
            await check_options(options)
            messages = await images.read_messages(body.messages)
            chunks = worker.answer(messages, options, arrival)
            return await anext(chunks), chunks

        left = None if body.timeout is None else body.timeout - (time.monotonic() - arrival)
        try:
            work = asyncio.wait_for(begin(), left)
            first, chunks = await cancel_on_disconnect(work, request)
        except asyncio.TimeoutError:
            message = (
                f"the {body.timeout:g} s of this request (timeout) were over before the first token of its "
                "answer; allow more"
            )
            raise to_request_error(DeadlineError(message)) from None
        thing = None if task is None else task[1]
        sees_tools = "tools" in options and options.get("tool_choice") != "none"
        tool_format = vlm.manifest.prompt.tool_calls if sees_tools else None
        answer = PendingAnswer(
            model,
            first,
            chunks,
            logprobs=bool(body.logprobs),
            thing=thing,
            call_begin=None if tool_format is None else tool_format.begin,
        )
        if body.stream:
            return StreamingResponse(
                answer.events(usage=body.include_usage), media_type="text/event-stream"
            )
        completion = await cancel_on_disconnect(answer.collect(), request)
        return JSONResponse(responses.to_json(completion))

    app.openapi_schema = openapi.openapi_schema(app, ChatCompletionRequest)
    return app


async def _read_request(
    request: Request, *, strict: bool
) -> tuple[ChatCompletionRequest, list[str]]:
    """Read the JSON of a request, whatever its Content-Type, and the names of unknown fields."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise RequestError(
            400,
            f"the body is {kind}; send JSON, with images as data URIs or as the ids of files that you "
            f"sent to /v1/files",
            code="invalid_json",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(
            400, f"the Content-Encoding {encoding[:40]} is not supported; send the body without it"
        )
    body = await request.body()

    def parse() -> tuple[ChatCompletionRequest, list[str]]:
        return validate(ChatCompletionRequest, parse_json(body), strict=strict)

    if len(body) < MIN_BYTES_FOR_THREAD:
        return parse()
    return await asyncio.to_thread(parse)


def _add_location_question(
    body: ChatCompletionRequest,
    task: Literal["detect", "point"],
    thing: str,
    usage: Usage | None,
) -> None:
    """Append the question of the model for the boxes of a thing, or for points on it."""
    try:
        question = location_question(task, usage, thing, "en")
    except InputError as error:
        raise to_request_error(error, task) from error
    body.messages[-1].content.append(TextPart(type="text", text=question))


def _to_response(file: StoredFile) -> responses.File:
    return responses.File(
        id=file.id,
        bytes=len(file.data),
        created_at=file.created,
        filename=file.name,
        purpose=file.purpose,
    )


def _handle_errors(app: FastAPI) -> None:
    """Send every error in OpenAI's form."""

    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        path = quote(request.url.path)[:100]
        code, message = None, str(error.detail)
        if error.status_code == 404:
            paths = ", ".join(path for path in app.openapi()["paths"] if "{" not in path)
            code, message = "not_found", f"the path {path} does not exist; use one of {paths}"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another method")
            code = "method_not_allowed"
            message = f"the method {request.method} is not allowed for {path}; use {allowed}"
        elif error.status_code == 413:
            code = "body_too_large"
        body = error_body(error.status_code, message, code)
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # the client does not get it

    @app.exception_handler(Exception)
    async def unexpected_error(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(failure_body(error), 500)
