"""Answers on their way to a client: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from edgevlm.results import Chunk, FinishReason, Stats
from edgevlm.server import responses
from edgevlm.server.errors import RequestError, failure_body


async def cancel_on_disconnect(work: Any, request: Request) -> Any:
    """What `work` returns; it is cancelled if the client leaves meanwhile."""
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client left", code="client_left")
        return task.result()
    finally:
        for pending in (task, left):
            pending.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """Returns when the client has gone; the body has been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Answer:
    """One answer of a model.

    Args:
        model: the name that it is served by.
        first: its first chunk, which tells that the request can be answered.
        chunks: the others.
    """

    model: str
    first: Chunk
    chunks: AsyncGenerator[Chunk, None]
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    async def whole(self, *, logprobs: bool) -> responses.ChatCompletion:
        """All of it at once."""
        read = [chunk async for chunk in self._all()]
        finish, stats = _end(read[-1])
        found = [token for chunk in read for token in chunk.logprobs]
        return responses.ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                responses.Choice(
                    message=responses.AnswerMessage(content="".join(chunk.text for chunk in read)),
                    logprobs=responses.logprobs(found) if logprobs else None,
                    finish_reason=finish,
                )
            ],
            usage=responses.usage(stats),
        )

    async def events(self, *, usage: bool) -> AsyncIterator[str]:
        """Server-sent events; an error after the first of them is one of them, as the headers are gone.

        Args:
            usage: end with an event that says what the answer cost.
        """

        def event(*choices: responses.ChunkChoice, stats: Stats | None = None) -> str:
            chunk = responses.ChatCompletionChunk(
                id=self.id,
                created=self.created,
                model=self.model,
                choices=list(choices),
                usage=None if stats is None else responses.usage(stats),
            )
            return f"data: {chunk.model_dump_json(exclude=None if usage else {'usage'})}\n\n"

        def piece(
            delta: responses.Delta,
            logprobs: responses.Logprobs | None = None,
            finish_reason: FinishReason | None = None,
        ) -> str:
            return event(
                responses.ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=finish_reason)
            )

        try:
            yield piece({"role": "assistant", "content": "", "refusal": None})
            async for chunk in self._all():
                found = responses.logprobs(chunk.logprobs) if chunk.logprobs else None
                if chunk.text or found:
                    yield piece({"content": chunk.text}, found)
                if chunk.finish_reason is not None:
                    finish, stats = _end(chunk)
                    yield piece({}, finish_reason=finish)
                    if usage:
                        yield event(stats=stats)
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
        except Exception as error:  # the worker has logged it
            yield f"data: {json.dumps(failure_body(error))}\n\n"
        finally:
            await self.chunks.aclose()

    async def _all(self) -> AsyncIterator[Chunk]:
        yield self.first
        async for chunk in self.chunks:
            yield chunk


def _end(chunk: Chunk) -> tuple[FinishReason, Stats]:
    if chunk.finish_reason is None or chunk.stats is None:
        raise RuntimeError("the answer ended without a finish reason")
    return chunk.finish_reason, chunk.stats
