"""Answers for clients: as one JSON object, or as server-sent events."""

from __future__ import annotations

import asyncio
import dataclasses
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
    logprobs: bool = False
    """True: the client wants the log-probabilities of the tokens."""
    thing: str | None = None
    """Label of boxes and points that have none."""
    call_begin: str | None = None
    """Text with which a tool call begins; the content ends before it. None: the request has no tools."""
    id: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    """Random id of the answer."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix time in seconds."""

    async def collect(self) -> responses.ChatCompletion:
        """Wait for the whole answer."""
        chunks = [chunk async for chunk in self._all_chunks()]
        last = chunks[-1]
        content = "".join(chunk.text for chunk in chunks)
        calls = responses.to_calls(last)
        tokens = [token for chunk in chunks for token in chunk.logprobs]
        return responses.ChatCompletion(
            id=self.id,
            created=self.created,
            model=self.model,
            choices=[
                responses.Choice(
                    message=responses.AnswerMessage(
                        content=content or (None if calls else ""),
                        tool_calls=[responses.Call(**dict(call)) for call in calls] or None,
                    ),
                    logprobs=responses.to_logprobs(tokens) if self.logprobs else None,
                    finish_reason=responses.to_finish_reason(last),
                    edgevlm=responses.to_details(last, self.thing),
                )
            ],
            usage=responses.to_usage(_stats_of(last)),
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
            written = responses.to_json(chunk)
            if not usage:
                del written["usage"]
            return f"data: {json.dumps(written, ensure_ascii=False)}\n\n"

        def delta_event(
            delta: responses.Delta,
            logprobs: responses.Logprobs | None = None,
            finish_reason: responses.FinishReason | None = None,
            edgevlm: responses.Details | None = None,
        ) -> str:
            return event(
                responses.ChunkChoice(
                    delta=delta, logprobs=logprobs, finish_reason=finish_reason, edgevlm=edgevlm
                )
            )

        try:
            yield delta_event({"role": "assistant", "content": "", "refusal": None})
            async for chunk in self._all_chunks():
                tokens = chunk.logprobs if self.logprobs else ()
                logprobs = responses.to_logprobs(tokens) if tokens else None
                if chunk.text or logprobs:
                    yield delta_event({"content": chunk.text}, logprobs)
                if chunk.finish_reason is not None:
                    if calls := responses.to_calls(chunk):
                        yield delta_event({"tool_calls": calls})
                    reason = responses.to_finish_reason(chunk)
                    yield delta_event({}, None, reason, responses.to_details(chunk, self.thing))
                    if usage:
                        yield event(stats=_stats_of(chunk))
            yield "data: [DONE]\n\n"
        except RequestError as error:
            yield f"data: {json.dumps(error.body)}\n\n"
        except Exception as error:  # the worker has logged it
            yield f"data: {json.dumps(failure_body(error))}\n\n"
        finally:
            await self.chunks.aclose()

    async def _all_chunks(self) -> AsyncIterator[Chunk]:
        """Yield all chunks. Their texts are the content, without the texts of tool calls."""
        held = ""
        async for chunk in self._raw_chunks():
            if self.call_begin is not None:
                content, held = _split_content(held + chunk.text, self.call_begin)
                if chunk.finish_reason is not None and not held.startswith(self.call_begin):
                    content, held = content + held, ""
                chunk = dataclasses.replace(chunk, text=content)
            yield chunk

    async def _raw_chunks(self) -> AsyncIterator[Chunk]:
        yield self.first
        async for chunk in self.chunks:
            yield chunk


def _split_content(text: str, begin: str) -> tuple[str, str]:
    """Split a text into what is content for certain, and the rest, in which a call has begun or may begin."""
    place = text.find(begin)
    if place < 0:
        lengths = range(min(len(begin), len(text)), 0, -1)
        place = next((len(text) - n for n in lengths if begin.startswith(text[-n:])), len(text))
    return text[:place], text[place:]


def _stats_of(chunk: Chunk) -> Stats:
    if chunk.stats is None:
        raise RuntimeError("the answer ended without a finish reason")
    return chunk.stats
