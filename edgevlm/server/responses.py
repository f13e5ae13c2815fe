"""Responses of OpenAI's API as data classes.

They have all fields that OpenAI's own description requires, null if there is no value, so that clients
generated from that description can read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from edgevlm.results import Stats, TokenLogprob

FinishReason = Literal["stop", "length"]
"""Reasons that OpenAI's API has for the end of an answer."""


class ErrorDetail(BaseModel):
    """An error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response with an error."""

    error: ErrorDetail


class Model(BaseModel):
    """A model of the server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edgevlm"


class ModelList(BaseModel):
    """The models of the server."""

    object: Literal["list"] = "list"
    data: list[Model]


class File(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    """Status that clients wait for."""


class FileList(BaseModel):
    """A part of the list of uploaded files."""

    object: Literal["list"] = "list"
    data: list[File]
    first_id: str = Field(description="empty if there are no files")
    last_id: str
    has_more: bool


class FileDeleted(BaseModel):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Health(BaseModel):
    """The state of a server that works."""

    status: Literal["ok"] = "ok"
    waiting: int = Field(description="requests that wait for the one that is being answered")


class TopLogprob(BaseModel):
    """The log-probability of a token."""

    token: str
    logprob: float
    bytes: list[int]


class ChatCompletionTokenLogprob(TopLogprob):
    """The log-probabilities of a token of the answer and of the most likely tokens in its place."""

    top_logprobs: list[TopLogprob]


class Logprobs(BaseModel):
    """The log-probabilities of the tokens of an answer."""

    content: list[ChatCompletionTokenLogprob]
    refusal: None = None


class AnswerMessage(BaseModel):
    """The message of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer of a request."""

    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptDetails(BaseModel):
    """Details of the token count of a prompt."""

    cached_tokens: int


class Usage(BaseModel):
    """Token counts of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(TypedDict, total=False):
    """The fields that a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChunkChoice(BaseModel):
    """The content of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(BaseModel):
    """A chunk of a streamed answer, sent as one event."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None
    """Token counts in the last chunk, null in the others; left out if the request does not ask for it."""


def to_usage(stats: Stats) -> Usage:
    """Return the token counts of an answer."""
    return Usage(
        prompt_tokens=stats.prompt_tokens,
        completion_tokens=stats.answer_tokens,
        total_tokens=stats.prompt_tokens + stats.answer_tokens,
        prompt_tokens_details=PromptDetails(cached_tokens=stats.cached_tokens),
    )


def to_logprobs(tokens: Sequence[TokenLogprob]) -> Logprobs:
    """Return the log-probabilities of tokens in OpenAI's form."""
    return Logprobs(
        content=[
            ChatCompletionTokenLogprob(
                **vars(_to_top_logprob(token)),
                top_logprobs=[_to_top_logprob(other) for other in token.top],
            )
            for token in tokens
        ]
    )


def _to_top_logprob(token: TokenLogprob) -> TopLogprob:
    return TopLogprob(
        token=token.piece.decode("utf-8", "replace"),
        logprob=max(token.logprob, -9999.0),  # OpenAI's value for impossible tokens
        bytes=list(token.piece),
    )
