"""OpenAI's responses as data: what clients get.

Every field that OpenAI's own description requires is there, null where it says nothing, so that clients
generated from that description can read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from edgevlm.results import FinishReason, Stats, TokenLogprob


class _ResponseModel(BaseModel):
    """Something that clients get."""


class ErrorDetail(_ResponseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(_ResponseModel):
    error: ErrorDetail


class Model(_ResponseModel):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edgevlm"


class ModelList(_ResponseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class File(_ResponseModel):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    """Clients wait for it."""


class FileList(_ResponseModel):
    object: Literal["list"] = "list"
    data: list[File]
    first_id: str = Field(description="empty if there are none")
    last_id: str
    has_more: bool


class FileDeleted(_ResponseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Health(_ResponseModel):
    status: Literal["ok"] = "ok"
    waiting: int = Field(description="requests that wait for the one that is answered")


class Candidate(_ResponseModel):
    token: str
    logprob: float
    bytes: list[int]


class TokenChoice(Candidate):
    top_logprobs: list[Candidate]


class Logprobs(_ResponseModel):
    content: list[TokenChoice]
    refusal: None = None


class AnswerMessage(_ResponseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(_ResponseModel):
    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptDetails(_ResponseModel):
    cached_tokens: int


class Usage(_ResponseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(_ResponseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(TypedDict, total=False):
    """What a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChunkChoice(_ResponseModel):
    index: int = 0
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_ResponseModel):
    """A piece of an answer, as one event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None
    """In all chunks of a stream whose request asked for it, null in all but the last; else left out."""


def usage(stats: Stats) -> Usage:
    return Usage(
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.answer_tokens,
        total_tokens=stats.prompt_tokens + stats.answer_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=stats.cached_tokens),
    )


def logprobs(found: Sequence[TokenLogprob]) -> Logprobs:
    return Logprobs(
        content=[
            TokenChoice(
                **vars(_candidate(token)), top_logprobs=[_candidate(other) for other in token.top]
            )
            for token in found
        ]
    )


def _candidate(token: TokenLogprob) -> Candidate:
    return Candidate(
        token=token.piece.decode("utf-8", "replace"),
        logprob=max(token.logprob, -9999.0),  # as OpenAI writes what is as good as impossible
        bytes=list(token.piece),
    )
