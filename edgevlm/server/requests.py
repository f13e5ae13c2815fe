"""OpenAI's requests as data: what clients send.

Beside OpenAI's fields a request may have ``top_k``, ``min_p``, ``repetition_penalty`` and
``max_image_tokens``. Every field of OpenAI's is one that is honoured, one that is accepted as long as it
asks for nothing (`RequestModel.neutral`), or a hint that changes no answer (`RequestModel.unused`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, FailFast, Field

from edgevlm.options import MAX_LOGPROBS, GenerationOptions
from edgevlm.server.errors import RequestError
from edgevlm.server.messages import MAX_ITEMS, NO_TOOLS, TEXT_ONLY, Message
from edgevlm.server.validation import Neutral, RequestModel

MAX_STOPS = 4
MAX_TOKENS = 2**31 - 1
SEEDS = 2**32 - 1
"""The library takes seeds below this."""


def _integral(value: Any) -> Any:
    """256.0 is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: int | None) -> int | None:
    if value == 0:
        raise ValueError
    return value


# Bounds stand before the validator: pydantic describes them wrongly behind it.
Integer: TypeAlias = Annotated[int, BeforeValidator(_integral)]
Count: TypeAlias = Annotated[
    int,
    Field(ge=-1, json_schema_extra={"not": {"const": 0}}),
    AfterValidator(_count),
    BeforeValidator(_integral),
]
"""A number of tokens; -1 is no limit."""
TopK: TypeAlias = Annotated[int, Field(ge=-1, le=2**31 - 1), BeforeValidator(_integral)]
TopLogprobs: TypeAlias = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_integral)]
ImageTokens: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_integral)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]

TOKENS = "an integer from 1 up, or -1 for as many as the context leaves; what exceeds that is cut"


class StreamOptions(RequestModel):
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "include_obfuscation": Neutral((None, False), "this server pads no chunks")
    }

    include_usage: bool | None = Field(None, description="true or false")


class JsonSchemaFormat(RequestModel):
    json_schema: dict[str, Any] = Field(
        alias="schema", description='a JSON schema such as {"type": "object"}'
    )

    unused = frozenset({"name", "description", "strict"})


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"] = Field(
        description="'text', 'json_object' or 'json_schema'"
    )
    json_schema: JsonSchemaFormat | None = Field(
        None, description='an object such as {"name": "answer", "schema": {"type": "object"}}'
    )
    bare_schema: dict[str, Any] | None = Field(
        None, alias="schema", description='a JSON schema such as {"type": "object"}'
    )
    """As llama.cpp's server takes it, beside either type."""

    def wanted(self) -> dict[str, Any] | None:
        """The JSON schema of the answer; raises RequestError if it is missing."""
        if self.type == "text":
            return None
        given = self.json_schema.json_schema if self.json_schema else self.bare_schema
        if self.type == "json_object":
            return given or {"type": "object"}
        if given is None:
            raise RequestError(
                400,
                "response_format.json_schema is missing; it must be an object such as "
                '{"name": "answer", "schema": {"type": "object"}}',
                code="invalid_value",
                parameter="response_format.json_schema",
            )
        return given


Stops: TypeAlias = Annotated[list[str], Field(max_length=MAX_STOPS)]


def _stops(value: Any) -> Any:
    """One form for all: a text is a list of one, and what is empty stops nothing."""
    if value is None or isinstance(value, str):
        value = [value] if value else []
    return [stop for stop in value if stop != ""] if isinstance(value, list) else value


class ChatCompletionRequest(RequestModel):
    """A conversation to be answered."""

    expected = 'a JSON object such as {"messages": [{"role": "user", "content": "What is this?"}]}'
    neutral: ClassVar[Mapping[str, Neutral]] = {
        "audio": Neutral((None,), TEXT_ONLY),
        "frequency_penalty": Neutral((None, 0), "this server has repetition_penalty"),
        "function_call": Neutral((None, "none", "auto"), NO_TOOLS),
        "functions": Neutral((None, []), NO_TOOLS),
        "logit_bias": Neutral((None, {}), "this server changes no single token"),
        "modalities": Neutral((None, [], ["text"]), TEXT_ONLY),
        "moderation": Neutral((None,), "this server judges no answers"),
        "n": Neutral((None, 1), "this server gives one answer; ask again for another"),
        "prediction": Neutral((None,), "this server predicts on its own"),
        "presence_penalty": Neutral((None, 0), "this server has repetition_penalty"),
        "reasoning_effort": Neutral((None, "none"), "no model here reasons before it answers"),
        "service_tier": Neutral((None, "auto", "default"), "all requests wait in one queue"),
        "store": Neutral((None, False), "this server keeps no answers"),
        "tool_choice": Neutral((None, "none", "auto"), NO_TOOLS),
        "tools": Neutral((None, []), NO_TOOLS),
        "verbosity": Neutral((None, "medium"), "ask for it in a message"),
        "web_search_options": Neutral((None,), "this server searches nothing"),
    }
    unused = frozenset(
        {
            "metadata",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "user",
        }
    )

    model: str | None = Field(
        None, description="a text; whatever it says, the model that is served answers"
    )
    messages: Annotated[list[Message], FailFast()] = Field(
        min_length=1,
        max_length=MAX_ITEMS,
        description='a list of messages such as [{"role": "user", "content": "What is this?"}], at least '
        f"one and at most {MAX_ITEMS}",
    )
    max_completion_tokens: Count | None = Field(None, description=TOKENS)
    max_tokens: Count | None = Field(None, description=TOKENS)
    temperature: Number | None = Field(
        None,
        ge=0,
        le=2,
        description="a number from 0 to 2; 0, the default, takes the likeliest token each time",
    )
    top_p: Number | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    top_k: TopK | None = Field(None, description="an integer from 1 up, or -1 or 0 for all tokens")
    min_p: Number | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    repetition_penalty: Number | None = Field(
        None, ge=0.01, le=100, description="a number from 0.01 to 100; 1, the default, is off"
    )
    seed: Integer | None = Field(
        None, description="an integer; without it, or with -1, each answer draws its own"
    )
    stop: Annotated[
        list[str],
        FailFast(),
        BeforeValidator(_stops, json_schema_input_type=str | Stops | None),
    ] = Field(
        default_factory=list,
        max_length=MAX_STOPS,
        description=f"a text or a list of at most {MAX_STOPS} texts",
    )
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(
        None, description='an object such as {"include_usage": true}'
    )
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: TopLogprobs | None = Field(
        None,
        description=f"an integer from 0 to {MAX_LOGPROBS}, beside logprobs: true",
    )
    response_format: ResponseFormat | None = Field(
        None, description='an object such as {"type": "text"}'
    )
    max_image_tokens: ImageTokens | None = Field(
        None, description="an integer from 1 up: positions of one image"
    )

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def options(self, default_max_tokens: int) -> GenerationOptions:
        """What the request says of its answer.

        Raises:
            RequestError: fields that contradict each other.
        """
        if self.top_logprobs and not self.logprobs:
            raise _contradiction("top_logprobs", "needs logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise _contradiction(
                "max_tokens", "is the older name of max_completion_tokens; send one of them"
            )
        wanted = self.max_completion_tokens or self.max_tokens or default_max_tokens
        options: GenerationOptions = {
            "max_tokens": None if wanted == -1 else min(wanted, MAX_TOKENS),
            "cap_max_tokens": True,
            "stop": self.stop,
            "json_schema": self.response_format.wanted() if self.response_format else None,
            "max_image_tokens": self.max_image_tokens,
            "seed": secrets.randbelow(SEEDS) if self.seed in (None, -1) else self.seed % SEEDS,
        }
        if self.logprobs:
            options["top_logprobs"] = self.top_logprobs or 0
        if self.temperature is not None:
            options["temperature"] = self.temperature
        if self.top_p is not None:
            options["top_p"] = self.top_p
        if self.top_k is not None:
            options["top_k"] = max(0, self.top_k)
        if self.min_p is not None:
            options["min_p"] = self.min_p
        if self.repetition_penalty is not None:
            options["repetition_penalty"] = self.repetition_penalty
        return options


def _contradiction(field: str, sentence: str) -> RequestError:
    return RequestError(400, f"{field} {sentence}", code="invalid_value", parameter=field)
