"""The HTTP interface: OpenAI's chat completions, models and files over one model."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import edgevlm
from edgevlm.errors import EdgeVLMError
from edgevlm.options import DEFAULT_MAX_TOKENS
from edgevlm.server import openapi, responses
from edgevlm.server.access import Access, origin
from edgevlm.server.answers import Answer, cancel_on_disconnect
from edgevlm.server.body_limit import BodyLimit
from edgevlm.server.errors import RequestError, error_body, failure_body, refusal
from edgevlm.server.files import FileStore, ListParameters, StoredFile, UploadFields, read_upload
from edgevlm.server.images import ImageReader
from edgevlm.server.limits import Limits
from edgevlm.server.metrics import Metrics
from edgevlm.server.notices import Notices
from edgevlm.server.requests import ChatCompletionRequest
from edgevlm.server.validation import check, parse_json
from edgevlm.server.worker import Worker
from edgevlm.vlm import VLM

LARGE_BODY = 2**18
"""Bytes from which a request is read in a thread, so that nobody else waits for it."""

SCHEMA_THREADS = 4
"""Schemas that are looked at at once, of which one at a time is tried; known ones pass it by."""

BEARER = HTTPBearer(auto_error=False)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": responses.ErrorResponse, "description": description}
    for status, description in {
        400: "the request cannot be used",
        401: "the key is missing or wrong",
        403: "a web page whose origin is not allowed",
        404: "no such model, file or address",
        405: "another method is meant",
        413: "larger than the server accepts",
        500: "the model failed",
        501: "needs a library that the server lacks",
        503: "too many requests wait; Retry-After says when to come again",
    }.items()
}

UPLOAD = {
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
    remote_addresses: Callable[[str], bool] | None = None,
    trusted_hosts: Sequence[str] | None = None,
    allowed_origins: Sequence[str] = (),
    strict: bool = False,
) -> FastAPI:
    """The application, which owns `vlm` from its start to its end.

    Args:
        model: the name that requests call it by.
        api_key: what clients have to show; None asks for none.
        remote_addresses: which IP addresses pictures are fetched from; None fetches none.
        trusted_hosts: names in requests' Host headers; None allows any. A server without a key should
            allow its own only, else a web page can make a name point at it and read its answers.
        allowed_origins: of web pages that may use the server, such as ``http://localhost:5173``; see
            `edgevlm.server.access.origin`.
        strict: refuse fields that the server does not know, instead of ignoring them.

    Raises:
        InputError: an origin that is none.
    """
    limits = limits or Limits()
    origins = [origin(text) for text in allowed_origins]
    metrics = Metrics()
    worker = Worker(vlm, limits.queue, metrics)
    metrics.watch(lambda: worker.waiting)
    files = FileStore(limits)
    pictures = ImageReader(limits, files, remote_addresses)
    notices = Notices()
    schemas = ThreadPoolExecutor(SCHEMA_THREADS, "edgevlm-schemas")
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)
        schemas.shutdown(wait=False, cancel_futures=True)
        vlm.close()

    app = FastAPI(
        title="edgevlm",
        version=edgevlm.__version__,
        description="Vision-language models on this machine, as OpenAI's chat completions.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, max_bytes=limits.body_bytes)
    app.add_middleware(
        Access, hosts=trusted_hosts, origins=origins, notices=notices
    )  # the last one added is the first one asked
    _handle_errors(app)

    def authorized(
        shown: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    ) -> None:
        if api_key is not None and not hmac.compare_digest(
            (shown.credentials if shown else "").encode(), api_key.encode()
        ):
            raise RequestError(
                401,
                "the server wants its key as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    guarded: dict[str, Any] = {"dependencies": [Depends(authorized)], "responses": ERRORS}

    async def check_schema(schema: Any) -> None:
        """Whatever a schema costs is spent before the worker gets to know the request."""
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(schemas, vlm.check_json_schema, schema)
        except EdgeVLMError as error:
            raise refusal(error, "response_format") from error

    @app.get("/health", responses={503: ERRORS[500] | {"description": "the model hangs"}})
    async def health() -> responses.Health:
        """Whether the server answers, and the request that it works on gets on."""
        stalled = worker.stalled_seconds
        if stalled > limits.stalled_seconds:
            raise RequestError(
                503,
                f"the request that is being answered has not got on for {stalled:.0f} seconds, and "
                f"{worker.waiting} wait for it; end the server and start it again",
                code="stalled",
            )
        return responses.Health(waiting=worker.waiting)

    @app.get("/metrics", response_class=Response, **guarded)
    async def metrics_text() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", **guarded)
    async def models() -> responses.ModelList:
        """The model that is served."""
        return responses.ModelList(data=[responses.Model(id=model, created=started)])

    @app.get("/v1/models/{name:path}", **guarded)
    async def one_model(name: str) -> responses.Model:
        """The model, if it has this name."""
        if name != model:
            raise RequestError(
                404, f"no model {name[:80]!r}; this server has {model!r}", code="model_not_found"
            )
        return responses.Model(id=model, created=started)

    def report(unknown: Iterable[str]) -> None:
        for name in unknown:
            notices.once(
                f"requests have the field {name}, which this server does not know and ignores"
            )

    @app.post(
        "/v1/files", **guarded, openapi_extra=openapi.request_body("multipart/form-data", UPLOAD)
    )
    async def upload(request: Request) -> responses.File:
        """Keep an image; messages refer to it as ``{"type": "file", "file": {"file_id": ...}}``."""
        stored, unknown = await read_upload(request, limits, strict=strict)
        report(unknown)
        pictures.check(stored.data)
        files.add(stored)
        return _described(stored)

    @app.get("/v1/files", **guarded, openapi_extra=openapi.query_parameters(ListParameters))
    async def all_files(request: Request) -> responses.FileList:
        """The images that are kept."""
        wanted, _ = check(ListParameters, dict(request.query_params), strict=True)
        page = files.page(wanted)
        ids = [file.id for file in page.files]
        return responses.FileList(
            data=[_described(file) for file in page.files],
            first_id=ids[0] if ids else "",
            last_id=ids[-1] if ids else "",
            has_more=page.has_more,
        )

    @app.get("/v1/files/{identifier}", **guarded)
    async def one_file(identifier: str) -> responses.File:
        """One image's description."""
        return _described(files.get(identifier))

    @app.get("/v1/files/{identifier}/content", **guarded, response_class=Response)
    async def content(identifier: str) -> Response:
        """One image's bytes, as they were sent."""
        stored = files.get(identifier)
        return Response(
            stored.data,
            media_type="application/octet-stream",
            headers={
                "Content-Disposition": f"attachment; filename*=UTF-8''{quote(stored.name, safe='')}",
                "X-Content-Type-Options": "nosniff",
            },
        )

    @app.delete("/v1/files/{identifier}", **guarded)
    async def delete(identifier: str) -> responses.FileDeleted:
        """Forget an image."""
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
                    "description": "the answer; with stream=true, chunks as server-sent events",
                    "content": {"text/event-stream": {"schema": {"type": "string"}}},
                }
            }
        },
    )
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation about images."""
        asked, unknown = await _asked(request, strict=strict)
        report(unknown)
        if asked.model not in (None, model):
            notices.once(f"requests name the model {asked.model[:80]!r}; {model!r} answers them")
        options = asked.options(min(DEFAULT_MAX_TOKENS, max(1, vlm.context_length // 4)))
        if options.get("json_schema") is not None:
            await cancel_on_disconnect(check_schema(options["json_schema"]), request)
        chunks = worker.answer(await pictures.messages(asked.messages), options)
        first = await cancel_on_disconnect(anext(chunks), request)
        answer = Answer(model, first, chunks)
        if asked.stream:
            return StreamingResponse(
                answer.events(usage=asked.wants_usage), media_type="text/event-stream"
            )
        whole = await cancel_on_disconnect(answer.whole(logprobs=bool(asked.logprobs)), request)
        return JSONResponse(whole.model_dump())

    app.openapi_schema = openapi.openapi_schema(app, ChatCompletionRequest)
    return app


async def _asked(request: Request, *, strict: bool) -> tuple[ChatCompletionRequest, list[str]]:
    """A conversation, whatever the Content-Type calls its JSON, and the fields that are not known."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        raise RequestError(
            400,
            f"the body is {kind}; send JSON, with images as data URIs or as the ids of files that were "
            f"sent to /v1/files",
            code="invalid_json",
        )
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestError(400, f"the body's Content-Encoding is {encoding[:40]}; send it as it is")
    body = await request.body()

    def checked() -> tuple[ChatCompletionRequest, list[str]]:
        return check(ChatCompletionRequest, parse_json(body), strict=strict)

    if len(body) < LARGE_BODY:
        return checked()
    return await asyncio.to_thread(checked)


def _described(stored: StoredFile) -> responses.File:
    return responses.File(
        id=stored.id,
        bytes=len(stored.data),
        created_at=stored.created,
        filename=stored.name,
        purpose=stored.purpose,
    )


def _handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        address = f"{request.method} {quote(request.url.path)[:100]}"
        code, message = None, str(error.detail)
        if error.status_code == 404:
            paths = ", ".join(path for path in app.openapi()["paths"] if "{" not in path)
            code, message = "not_found", f"no address {address}; there are {paths}"
        elif error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "other methods")
            code, message = "method_not_allowed", f"no {address}; this address takes {allowed}"
        elif error.status_code == 413:
            code = "body_too_large"
        body = error_body(error.status_code, message, code)
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def left(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(failure_body(error), 500)
