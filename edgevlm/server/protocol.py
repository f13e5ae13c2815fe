"""OpenAI's chat completions as data: what clients send, checked, and what they get.

Beside OpenAI's fields a request may have ``top_k``, ``min_p``, ``repetition_penalty`` and
``max_image_tokens``. A field that this server does not know is refused, not ignored, and so is a known one
with a value that it cannot honour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

from edgevlm.generation import MOST_LOGPROBS, GenerationOptions
from edgevlm.results import FinishReason, Stats, TokenLogprob

MOST_STOPS = 4

Number: TypeAlias = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class _Given(BaseModel):
    """Something that clients send."""

    model_config = ConfigDict(extra="forbid")


class TextPart(_Given):
    type: Literal["text"]
    text: StrictStr


class ImageUrl(_Given):
    url: StrictStr = Field(
        description="a data URI such as data:image/png;base64,..., or, if the server allows it, "
        "an http(s) address"
    )
    detail: Literal["low", "high", "auto"] | None = Field(
        None, description="one tile, split as in training, or as far as the pixels go"
    )


class ImagePart(_Given):
    type: Literal["image_url"]
    image_url: ImageUrl


class FileReference(_Given):
    file_id: StrictStr = Field(description="of a picture sent to /v1/files")


class FilePart(_Given):
    type: Literal["file"]
    file: FileReference


Part: TypeAlias = Annotated[TextPart | ImagePart | FilePart, Field(discriminator="type")]


class Message(_Given):
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[Part], Field(min_length=1)]
    name: StrictStr | None = Field(None, description="not shown to the model")


class StreamOptions(_Given):
    include_usage: StrictBool = False


class JsonSchemaFormat(_Given):
    name: StrictStr = "answer"
    description: StrictStr | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: StrictBool | None = None


class ResponseFormat(_Given):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class ChatCompletionRequest(_Given):
    """A conversation to be answered."""

    model: StrictStr
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1, le=2**31 - 1)
    max_tokens: StrictInt | None = Field(None, ge=1, le=2**31 - 1, description="an older name")
    temperature: Number | None = Field(
        None, ge=0, le=2, description="0, the default, takes the likeliest token each time"
    )
    top_p: Number | None = Field(None, ge=0, le=1)
    top_k: StrictInt | None = Field(None, ge=0, le=2**31 - 1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, ge=0.01, le=100)
    seed: StrictInt | None = Field(None, ge=0, le=2**32 - 2)
    stop: StrictStr | list[StrictStr] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    logprobs: StrictBool | None = None
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LOGPROBS)
    response_format: ResponseFormat | None = None
    max_image_tokens: StrictInt | None = Field(None, ge=1, le=2**31 - 1)
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    user: StrictStr | None = Field(None, description="not used")
    metadata: dict[str, Any] | None = Field(None, description="not used")

    def options(self, default_max_tokens: int) -> GenerationOptions:
        """What the request says of its answer.

        Raises:
            ValueError: fields that contradict each other.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise ValueError("max_tokens is the older name of max_completion_tokens; send one")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > MOST_STOPS:
            raise ValueError(f"stop may have {MOST_STOPS} texts, has {len(stops)}")
        options: GenerationOptions = {
            "max_tokens": self.max_completion_tokens or self.max_tokens or default_max_tokens,
            "stop": stops,
            "json_schema": self._json_schema(),
            "max_image_tokens": self.max_image_tokens,
        }
        if self.logprobs:
            options["top_logprobs"] = self.top_logprobs or 0
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.top_p is not None:
            options["top_p"] = self.top_p
        if self.top_k is not None:
            options["top_k"] = self.top_k
        if self.min_p is not None:
            options["min_p"] = self.min_p
        if self.repetition_penalty is not None:
            options["repetition_penalty"] = self.repetition_penalty
        if self.seed is not None:
            options["seed"] = self.seed
        return options

    def _json_schema(self) -> dict[str, Any] | None:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return None
        if wanted.type == "json_object":
            return {"type": "object"}
        if wanted.json_schema is None:
            raise ValueError("response_format json_schema needs its json_schema")
        return wanted.json_schema.json_schema


class _Told(BaseModel):
    """Something that clients get."""


class ErrorDetail(_Told):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(_Told):
    error: ErrorDetail


class Model(_Told):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "edgevlm"


class ModelList(_Told):
    object: Literal["list"] = "list"
    data: list[Model]


class File(_Told):
    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str


class FileList(_Told):
    object: Literal["list"] = "list"
    data: list[File]
    has_more: Literal[False] = False
    """Else OpenAI's client asks for the next page, for ever."""


class FileDeleted(_Told):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class Health(_Told):
    status: Literal["ok"] = "ok"
    waiting: int = Field(description="requests that wait for the one that is answered")


class Candidate(_Told):
    token: str
    logprob: float
    bytes: list[int]


class TokenChoice(Candidate):
    top_logprobs: list[Candidate]


class Logprobs(_Told):
    content: list[TokenChoice]


class AnswerMessage(_Told):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(_Told):
    index: int = 0
    message: AnswerMessage
    logprobs: Logprobs | None
    finish_reason: FinishReason


class PromptDetails(_Told):
    cached_tokens: int


class Usage(_Told):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatCompletion(_Told):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(_Told):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(_Told):
    index: int = 0
    delta: Delta
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletionChunk(_Told):
    """A piece of an answer, as one event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int = Field(default_factory=lambda: int(time.time()))
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


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
