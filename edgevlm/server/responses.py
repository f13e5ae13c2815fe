"""Responses of OpenAI's API as data classes.

They have all fields that OpenAI's own description requires, null if there is no value, so that clients
generated from that description can read them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from edgevlm import results
from edgevlm.boxes import Box as FoundBox
from edgevlm.boxes import Point as FoundPoint
from edgevlm.results import Chunk, Stats, TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls"]
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


class Box(BaseModel):
    """A rectangle on the last image."""

    left: float = Field(description="fraction of the width of the image, 0 to 1, as `right`")
    top: float = Field(description="fraction of the height of the image, 0 to 1, as `bottom`")
    right: float
    bottom: float
    pixels: tuple[int, int, int, int] = Field(
        description="left, top, right, bottom of the upright image"
    )
    label: str
    probability: float | None = Field(description="null unless logprobs, detect or point is set")


class Point(BaseModel):
    """A place on the last image."""

    x: float = Field(description="fraction of the width of the image, 0 to 1")
    y: float = Field(description="fraction of the height of the image, 0 to 1")
    pixels: tuple[int, int] = Field(description="column and row of the upright image")
    label: str
    probability: float | None = Field(description="as of a box")


class Deadline(BaseModel):
    """What an answer gave up to end in time."""

    within: float = Field(description="seconds that were left when the model began")
    detail: str | None
    max_image_tokens: int | None
    cut: bool = Field(description="true if the deadline ended the answer")


class Details(BaseModel):
    """What OpenAI's API has no fields for."""

    finish_reason: results.FinishReason = Field(
        description="``length`` and ``deadline`` told apart"
    )
    boxes: list[Box]
    points: list[Point]
    deadline: Deadline | None = Field(description="null for a request without timeout")


class CalledFunction(BaseModel):
    """A tool and its arguments."""

    name: str
    arguments: str = Field(description="a JSON object")


class Call(BaseModel):
    """A call of a tool."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AnswerMessage(BaseModel):
    """The message of an answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[Call] | None = Field(None, description="left out if there are none")


class Choice(BaseModel):
    """The one answer of a request."""

    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason
    edgevlm: Details | None = Field(None, description="left out if it says nothing")


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


class CallDelta(Call):
    """A whole call in a chunk."""

    index: int


class Delta(TypedDict, total=False):
    """The fields that a chunk adds to the message."""

    role: Literal["assistant"]
    content: str
    refusal: None
    tool_calls: list[CallDelta]


class ChunkChoice(BaseModel):
    """The content of a chunk."""

    index: int = 0
    delta: Delta
    logprobs: Logprobs | None
    finish_reason: FinishReason | None
    edgevlm: Details | None = Field(
        None, description="in the chunk with finish_reason; left out if it says nothing"
    )


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


def to_json(answer: ChatCompletion | ChatCompletionChunk) -> dict[str, Any]:
    """Return an answer as JSON, without the details and tool calls that it does not have."""
    written = answer.model_dump(mode="json")
    for choice in written["choices"]:
        if choice["edgevlm"] is None:
            del choice["edgevlm"]
        if "message" in choice and choice["message"]["tool_calls"] is None:
            del choice["message"]["tool_calls"]
    return written


def to_finish_reason(chunk: Chunk) -> FinishReason:
    """Return the reason for the end of an answer in OpenAI's words. A deadline is a limit, too."""
    if chunk.finish_reason != "stop":
        return "length"
    return "tool_calls" if chunk.tool_calls else "stop"


def to_calls(chunk: Chunk) -> list[CallDelta]:
    """Return the tool calls of an answer, with random ids."""
    return [
        CallDelta(
            index=index,
            id=f"call_{secrets.token_hex(12)}",
            function=CalledFunction(
                name=call.name, arguments=json.dumps(call.arguments, ensure_ascii=False)
            ),
        )
        for index, call in enumerate(chunk.tool_calls)
    ]


def to_details(chunk: Chunk, thing: str | None) -> Details | None:
    """Return what the last chunk of an answer has beside OpenAI's fields; None if that is nothing.

    Args:
        thing: what boxes or points were asked for: the label of those that have none. None: nothing was.
    """
    reason, stats = chunk.finish_reason, chunk.stats
    if reason is None or stats is None:
        raise RuntimeError("the answer ended without a finish reason")

    def shared(found: FoundBox | FoundPoint) -> dict[str, Any]:
        return {
            "pixels": found.pixels(),
            "label": found.label or thing or "",
            "probability": found.probability,
        }

    if thing is None and stats.deadline is None and not chunk.boxes and not chunk.points:
        return None
    return Details(
        finish_reason=reason,
        boxes=[
            Box(left=box.left, top=box.top, right=box.right, bottom=box.bottom, **shared(box))
            for box in chunk.boxes
        ],
        points=[Point(x=point.x, y=point.y, **shared(point)) for point in chunk.points],
        deadline=None if stats.deadline is None else Deadline(**vars(stats.deadline)),
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
