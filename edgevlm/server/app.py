"""The HTTP interface: OpenAI's chat completions, models and files over one model."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Form, Request, Response, UploadFile
from fastapi import File as FormFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

import edgevlm
from edgevlm.results import Chunk, Stats
from edgevlm.server import protocol
from edgevlm.server.body_limit import BodyLimit
from edgevlm.server.errors import RequestError, error_body
from edgevlm.server.files import FileStore, StoredFile
from edgevlm.server.limits import Limits
from edgevlm.server.metrics import Metrics
from edgevlm.server.pictures import PictureReader
from edgevlm.server.worker import Worker
from edgevlm.vlm import VLM

DEFAULT_MAX_TOKENS = 256
"""Of an answer whose request names none; less where the context is small."""

BEARER = HTTPBearer(auto_error=False)

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": protocol.ErrorResponse, "description": description}
    for status, description in {
        400: "the request cannot be used",
        401: "the key is missing or wrong",
        404: "no such model, file or address",
        405: "another method is meant",
        413: "larger than the server accepts",
        500: "the model failed",
        501: "needs a library that the server lacks",
        503: "too many requests wait; Retry-After says when to come again",
    }.items()
}


def create_app(
    vlm: VLM,
    *,
    model: str,
    api_key: str | None = None,
    limits: Limits | None = None,
    remote_addresses: Callable[[str], bool] | None = None,
    trusted_hosts: Sequence[str] | None = None,
) -> FastAPI:
    """The application, which owns `vlm` from its start to its end.

    Args:
        model: the name that requests call it by.
        api_key: what clients have to show; None asks for none.
        remote_addresses: which IP addresses pictures are fetched from; None fetches none.
        trusted_hosts: names in requests' Host headers; None allows any. A server without a key should
            allow its own only, else a web page can make a name point at it and read its answers.
    """
    limits = limits or Limits()
    metrics = Metrics()
    worker = Worker(vlm, limits.queue, metrics)
    metrics.watch(lambda: worker.waiting)
    files = FileStore(limits)
    pictures = PictureReader(limits, files, remote_addresses)
    started = int(time.time())

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(worker.close)
        vlm.close()

    app = FastAPI(
        title="edgevlm",
        version=edgevlm.__version__,
        description="Vision-language models on this machine, as OpenAI's chat completions.",
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
    )
    app.add_middleware(BodyLimit, most_bytes=limits.body_bytes)
    if trusted_hosts is not None:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(trusted_hosts))
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

    @app.get("/health", responses={503: ERRORS[500] | {"description": "the model hangs"}})
    async def health() -> protocol.Health:
        """Whether the server answers, and the request that it works on gets on."""
        stalled = worker.stalled_seconds
        if stalled > limits.stalled_seconds:
            raise RequestError(
                503,
                f"the request that is being answered has not got on for {stalled:.0f} seconds, and "
                f"{worker.waiting} wait for it; end the server and start it again",
                code="stalled",
            )
        return protocol.Health(waiting=worker.waiting)

    @app.get("/metrics", response_class=Response, **guarded)
    async def metrics_text() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models", **guarded)
    async def models() -> protocol.ModelList:
        """The model that is served."""
        return protocol.ModelList(data=[protocol.Model(id=model, created=started)])

    @app.get("/v1/models/{name:path}", **guarded)
    async def one_model(name: str) -> protocol.Model:
        """The model, if it has this name."""
        _check_model(name, model)
        return protocol.Model(id=model, created=started)

    @app.post("/v1/files", **guarded)
    async def upload(
        file: Annotated[UploadFile, FormFile()], purpose: Annotated[str, Form()] = "vision"
    ) -> protocol.File:
        """Keep a picture; messages refer to it as ``{"type": "file", "file": {"file_id": ...}}``."""
        stored = StoredFile(file.filename or "picture", purpose, await file.read())
        pictures.check(stored.data)
        files.add(stored)
        return _described(stored)

    @app.get("/v1/files", **guarded)
    async def all_files() -> protocol.FileList:
        """The pictures that are kept."""
        return protocol.FileList(data=[_described(stored) for stored in files.all()])

    @app.get("/v1/files/{identifier}", **guarded)
    async def one_file(identifier: str) -> protocol.File:
        """One picture's description."""
        return _described(files.get(identifier))

    @app.delete("/v1/files/{identifier}", **guarded)
    async def delete(identifier: str) -> protocol.FileDeleted:
        """Forget a picture."""
        files.remove(identifier)
        return protocol.FileDeleted(id=identifier)

    @app.post(
        "/v1/chat/completions",
        response_model=protocol.ChatCompletion,
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
    async def chat_completions(asked: protocol.ChatCompletionRequest, request: Request) -> Response:
        """Answer a conversation about pictures."""
        _check_model(asked.model, model)
        try:
            options = asked.options(min(DEFAULT_MAX_TOKENS, max(1, vlm.context_length // 4)))
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        chunks = worker.answer(await pictures.messages(asked.messages), options)
        identifier = f"chatcmpl-{secrets.token_hex(12)}"
        first = await _unless_left(anext(chunks), request)
        if asked.stream:
            usage = asked.stream_options is not None and asked.stream_options.include_usage
            return StreamingResponse(
                _events(identifier, model, first, chunks, usage), media_type="text/event-stream"
            )
        whole = await _unless_left(
            _whole(identifier, model, first, chunks, asked.logprobs), request
        )
        return JSONResponse(whole.model_dump())

    app.openapi_schema = _openapi(app)
    return app


def _check_model(asked: str, served: str) -> None:
    if asked != served:
        raise RequestError(
            404, f"no model {asked!r}; this server has {served!r}", code="model_not_found"
        )


def _described(stored: StoredFile) -> protocol.File:
    return protocol.File(
        id=stored.id,
        bytes=len(stored.data),
        created_at=stored.created,
        filename=stored.name,
        purpose=stored.purpose,
    )


async def _unless_left(work: Any, request: Request) -> Any:
    """What `work` returns; it is cancelled if the client leaves meanwhile."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client left", code="client_left")
        return task.result()
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    """Returns when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _whole(
    identifier: str,
    model: str,
    first: Chunk,
    chunks: AsyncGenerator[Chunk, None],
    logprobs: bool | None,
) -> protocol.ChatCompletion:
    """A whole answer."""
    read = [first]
    async for chunk in chunks:
        read.append(chunk)
    last = read[-1]
    finish, stats = _end(last)
    found = [token for chunk in read for token in chunk.logprobs]
    return protocol.ChatCompletion(
        id=identifier,
        created=int(time.time()),
        model=model,
        choices=[
            protocol.Choice(
                message=protocol.AnswerMessage(content="".join(chunk.text for chunk in read)),
                logprobs=protocol.logprobs(found) if logprobs else None,
                finish_reason=finish,
            )
        ],
        usage=protocol.usage(stats),
    )


def _end(chunk: Chunk) -> tuple[Any, Stats]:
    if chunk.finish_reason is None or chunk.stats is None:
        raise RuntimeError("the answer ended without a finish reason")
    return chunk.finish_reason, chunk.stats


async def _events(
    identifier: str,
    model: str,
    first: Chunk,
    chunks: AsyncGenerator[Chunk, None],
    usage: bool,
) -> AsyncIterator[str]:
    """An answer as server-sent events."""

    def event(*choices: protocol.ChunkChoice, stats: Stats | None = None) -> str:
        chunk = protocol.ChatCompletionChunk(
            id=identifier,
            model=model,
            choices=list(choices),
            usage=None if stats is None else protocol.usage(stats),
        )
        return f"data: {chunk.model_dump_json(exclude_none=True)}\n\n"

    async def all_chunks() -> AsyncIterator[Chunk]:
        yield first
        async for chunk in chunks:
            yield chunk

    try:
        yield event(protocol.ChunkChoice(delta=protocol.Delta(role="assistant", content="")))
        async for chunk in all_chunks():
            found = protocol.logprobs(chunk.logprobs) if chunk.logprobs else None
            if chunk.text or found:
                delta = protocol.Delta(content=chunk.text)
                yield event(protocol.ChunkChoice(delta=delta, logprobs=found))
            if chunk.finish_reason is not None:
                delta = protocol.Delta()
                yield event(protocol.ChunkChoice(delta=delta, finish_reason=chunk.finish_reason))
                if usage:
                    yield event(stats=chunk.stats)
        yield "data: [DONE]\n\n"
    except RequestError as error:  # the headers are gone, so the stream says it
        yield f"data: {json.dumps(error.body)}\n\n"
    finally:
        await chunks.aclose()


def _handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse(error.body, error.status, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()[0]
        where = ".".join(map(str, found["loc"][1:]))
        message = f"{where}: {found['msg']}" if where else found["msg"]
        return JSONResponse(error_body(400, message, found["type"], where or None), 400)

    @app.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        code = "body_too_large" if error.status_code == 413 else None
        body = error_body(error.status_code, str(error.detail), code)
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(error_body(500, f"the server failed: {type(error).__name__}"), 500)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The description, without FastAPI's own form of validation errors, which no client gets."""
    described = app.openapi()
    for path in described["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        described["components"]["schemas"].pop(name, None)
    return described
