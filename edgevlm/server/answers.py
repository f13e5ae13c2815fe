"""Answers for clients: as one JSON object, or as server-sent events."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from edgevlm.results import Chunk, Stats
from edgevlm.server import responses
from edgevlm.server.errors import RequestError, failure_body


async def cancel_on_disconnect(work: Any, request: Request) -> Any:
    """Await `work` and return its result, but cancel it if the client disconnects.

    Args:
        work: an awaitable.
        request: the request of the client; its body has been read.

    Raises:
        RequestError: the client disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((task, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RequestError(499, "the client disconnected", code="client_left")
        return task.result()
    finally:
        for pending in (task, disconnect):
            pending.cancel()
        await asyncio.gather(task, disconnect, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    """Wait until the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class PendingAnswer:
    """An answer of the model that has begun."""

    model: str
    """Name of the model for clients."""
    first: Chunk
    """First chunk; it proves that the request can be answered."""
    chunks: AsyncGenerator[Chunk, None]
    """The other chunks."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    """Random id of the answer."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""

    async def collect(self, *, logprobs: bool) -> responses.ChatCompletion:
        """Wait for the whole answer.

        Args:
            logprobs: add the log-probabilities of its tokens.
        """
        chunks = [chunk async for chunk in self._all_chunks()]
        finish_reason, stats = _end_of(chunks[-1])
        tokens = [token for chunk in chunks for token in chunk.logprobs]
        return responses.ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                responses.Choice(
                    message=responses.AnswerMessage(
                        content="".join(chunk.text for chunk in chunks)
                    ),
                    logprobs=responses.to_logprobs(tokens) if logprobs else None,
                    finish_reason=finish_reason,
                )
            ],
            usage=responses.to_usage(stats),
        )

    async def events(self, *, usage: bool) -> AsyncIterator[str]:
        """Yield server-sent events.

        An error after the first event is an event, too, since the status was sent before.

        Args:
            usage: end with an event that has the token counts.
        """

        def event(*choices: responses.ChunkChoice, stats: Stats | None = None) -> str:
            chunk = responses.ChatCompletionChunk(
                id=self.id,
                created=self.created,
                model=self.model,
                choices=list(choices),
                usage=None if stats is None else responses.to_usage(stats),
            )
            return f"data: {chunk.model_dump_json(exclude=None if usage else {'usage'})}\n\n"

        def delta_event(
            delta: responses.Delta,
            logprobs: responses.Logprobs | None = None,
            finish_reason: responses.FinishReason | None = None,
        ) -> str:
            return event(
                responses.ChunkChoice(delta=delta, logprobs=logprobs, finish_reason=finish_reason)
            )

        try:
            yield delta_event({"role": "assistant", "content": "", "refusal": None})
            async for chunk in self._all_chunks():
                logprobs = responses.to_logprobs(chunk.logprobs) if chunk.logprobs else None
                if chunk.text or logprobs:
                    yield delta_event({"content": chunk.text}, logprobs)
                if chunk.finish_reason is not None:
                    finish_reason, stats = _end_of(chunk)
                    yield delta_event({}, finish_reason=finish_reason)
                    if usage:
                        yield event(stats=stats)
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
        except Exception as error:  # the worker has logged it
            yield f"data: {json.dumps(failure_body(error))}\n\n"
        finally:
            await self.chunks.aclose()

    async def _all_chunks(self) -> AsyncIterator[Chunk]:
        yield self.first
        async for chunk in self.chunks:
            yield chunk


def _end_of(chunk: Chunk) -> tuple[responses.FinishReason, Stats]:
    if chunk.finish_reason is None or chunk.stats is None:
        raise RuntimeError("the answer ended without a finish reason")
    return "stop" if chunk.finish_reason == "stop" else "length", chunk.stats
