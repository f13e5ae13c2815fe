"""Requests of OpenAI's API as data classes.

A request may also have the fields of `ChatCompletionRequest` that OpenAI's API does not have. Each field of
OpenAI's is used, or is accepted only with values that ask for nothing (`RequestModel.unsupported`), or is a
hint that never changes an answer (`RequestModel.ignored`).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, FailFast, Field

from edgevlm.options import MAX_LOGPROBS, MAX_WITHIN, MIN_WITHIN, GenerationOptions
from edgevlm.server.errors import RequestError
from edgevlm.server.messages import MAX_ITEMS, NO_FUNCTIONS, TEXT_ONLY, Message
from edgevlm.server.validation import RequestModel, UnsupportedField
from edgevlm.tool_calls import MODES

MAX_STOPS = 4
MAX_TOKENS = 2**31 - 1
SEED_RANGE = 2**32 - 1
"""The sampler accepts seeds from 0 to below this."""


def _to_integer(value: Any) -> Any:
    """Convert a float such as 256.0, which is an integer in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse_zero(value: int | None) -> int | None:
    if value == 0:
        raise ValueError
    return value


# The bounds are before the validator, since pydantic describes them wrongly after it.
Integer: TypeAlias = Annotated[int, BeforeValidator(_to_integer)]
TokenCount: TypeAlias = Annotated[
    int,
    Field(ge=-1, json_schema_extra={"not": {"const": 0}}),
    AfterValidator(_refuse_zero),
    BeforeValidator(_to_integer),
]
"""A number of tokens; -1: no limit."""
TopK: TypeAlias = Annotated[int, Field(ge=-1, le=2**31 - 1), BeforeValidator(_to_integer)]
TopLogprobs: TypeAlias = Annotated[int, Field(ge=0, le=MAX_LOGPROBS), BeforeValidator(_to_integer)]
ImageTokens: TypeAlias = Annotated[int, Field(ge=1, le=2**31 - 1), BeforeValidator(_to_integer)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(ge=MIN_WITHIN, le=MAX_WITHIN)]
Thing: TypeAlias = Annotated[str, Field(pattern=r"\S")]

THING = "the name of a thing without an article, such as 'red key'"
TOKENS = (
    "an integer from 1, or -1 for as many as fit the context; larger values are lowered to that"
)


class StreamOptions(RequestModel):
    """Options of a streamed answer."""

    unsupported: ClassVar[Mapping[str, UnsupportedField]] = {
        "include_obfuscation": UnsupportedField((None, False), "this server pads no chunks")
    }

    include_usage: bool | None = Field(None, description="true or false")


class JsonSchemaFormat(RequestModel):
    """A JSON schema with a name."""

    json_schema: dict[str, Any] = Field(
        alias="schema", description='a JSON schema such as {"type": "object"}'
    )

    ignored = frozenset({"name", "description", "strict"})


class ResponseFormat(RequestModel):
    """The format of the answer: text or JSON."""

    type: Literal["text", "json_object", "json_schema"] = Field(
        description="'text', 'json_object' or 'json_schema'"
    )
    json_schema: JsonSchemaFormat | None = Field(
        None, description='an object such as {"name": "answer", "schema": {"type": "object"}}'
    )
    bare_schema: dict[str, Any] | None = Field(
        None, alias="schema", description='a JSON schema such as {"type": "object"}'
    )
    """Schema without a name, with either JSON type, as in the server of llama.cpp."""

    def answer_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema of the answer, or None for text.

        Raises:
            RequestError: the type is ``json_schema``, and there is no schema.
        """
        if self.type == "text":
            return None
        schema = self.json_schema.json_schema if self.json_schema else self.bare_schema
        if self.type == "json_object":
            return schema or {"type": "object"}
        if schema is None:
            raise RequestError(
                400,
                "response_format.json_schema is missing; it must be an object such as "
                '{"name": "answer", "schema": {"type": "object"}}',
                code="invalid_value",
                parameter="response_format.json_schema",
            )
        return schema


class NamedFunction(RequestModel):
    """The name of a function."""

    name: str = Field(description="the name of one of tools")


class NamedTool(RequestModel):
    """A tool that the answer has to call."""

    type: Literal["function"] = Field(description="'function'")
    function: NamedFunction = Field(description='an object such as {"name": "look"}')


def _to_named_tool(value: Any) -> Any:
    """Convert the name of a mode to the object that names a tool, so that errors have one form."""
    if isinstance(value, str) and value in MODES:
        return NamedTool(type="function", function=NamedFunction(name=value))
    return value


ToolChoice: TypeAlias = Annotated[
    NamedTool,
    BeforeValidator(
        _to_named_tool, json_schema_input_type=NamedTool | Literal["auto", "none", "required"]
    ),
]

Stops: TypeAlias = Annotated[list[str], Field(max_length=MAX_STOPS)]


def _to_stops(value: Any) -> Any:
    """Convert a text or null to a list, and remove empty texts, which stop nothing."""
    if value is None or isinstance(value, str):
        value = [value] if value else []
    return [stop for stop in value if stop != ""] if isinstance(value, list) else value


class ChatCompletionRequest(RequestModel):
    """A conversation that the model answers."""

    expected = 'a JSON object such as {"messages": [{"role": "user", "content": "What is this?"}]}'
    unsupported: ClassVar[Mapping[str, UnsupportedField]] = {
        "audio": UnsupportedField((None,), TEXT_ONLY),
        "frequency_penalty": UnsupportedField((None, 0), "this server has repetition_penalty"),
        "function_call": UnsupportedField((None, "none", "auto"), NO_FUNCTIONS),
        "functions": UnsupportedField((None, []), NO_FUNCTIONS),
        "logit_bias": UnsupportedField(
            (None, {}), "this server does not change the probability of single tokens"
        ),
        "modalities": UnsupportedField((None, [], ["text"]), TEXT_ONLY),
        "moderation": UnsupportedField((None,), "this server does not moderate answers"),
        "n": UnsupportedField(
            (None, 1), "this server gives one answer; send the request again for another"
        ),
        "prediction": UnsupportedField((None,), "this server predicts tokens by itself"),
        "presence_penalty": UnsupportedField((None, 0), "this server has repetition_penalty"),
        "reasoning_effort": UnsupportedField(
            (None, "none"), "the models of this server do not reason"
        ),
        "service_tier": UnsupportedField(
            (None, "auto", "default"), "all requests wait in one queue"
        ),
        "store": UnsupportedField((None, False), "this server stores no answers"),
        "verbosity": UnsupportedField((None, "medium"), "ask for it in a message instead"),
        "web_search_options": UnsupportedField((None,), "this server has no web search"),
    }
    ignored = frozenset(
        {
            "metadata",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "user",
        }
    )

    model: str | None = Field(
        None, description="a text; it is not used, since the server has one model"
    )
    messages: Annotated[list[Message], FailFast()] = Field(
        min_length=1,
        max_length=MAX_ITEMS,
        description='a list of messages such as [{"role": "user", "content": "What is this?"}], at least '
        f"one and at most {MAX_ITEMS}",
    )
    max_completion_tokens: TokenCount | None = Field(None, description=TOKENS)
    max_tokens: TokenCount | None = Field(None, description=TOKENS)
    temperature: Number | None = Field(
        None,
        ge=0,
        le=2,
        description="a number from 0 to 2; 0, the default, always takes the most likely token",
    )
    top_p: Number | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    top_k: TopK | None = Field(None, description="an integer from 1, or -1 or 0 for all tokens")
    min_p: Number | None = Field(None, ge=0, le=1, description="a number from 0 to 1")
    repetition_penalty: Number | None = Field(
        None,
        ge=0.01,
        le=100,
        description="a number from 0.01 to 100; 1, the default, has no effect",
    )
    seed: Integer | None = Field(
        None, description="an integer; without it, or with -1, each answer has a random seed"
    )
    stop: Annotated[
        list[str],
        FailFast(),
        BeforeValidator(_to_stops, json_schema_input_type=str | Stops | None),
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
        description=f"an integer from 0 to {MAX_LOGPROBS}, together with logprobs: true",
    )
    response_format: ResponseFormat | None = Field(
        None, description='an object such as {"type": "text"}'
    )
    tools: list[Any] | None = Field(None, description="a list of functions")
    tool_choice: ToolChoice | None = Field(
        None,
        description="'auto', 'none', 'required' or an object such as "
        '{"type": "function", "function": {"name": "look"}}',
    )
    parallel_tool_calls: bool | None = Field(None, description="true or false")
    max_image_tokens: ImageTokens | None = Field(
        None, description="an integer from 1: the limit of positions for one image"
    )
    timeout: Seconds | None = Field(
        None, description=f"a number of seconds from {MIN_WITHIN:g} to {MAX_WITHIN:g}"
    )
    """Time from the arrival of the request to the end of its answer."""
    detect: Thing | None = Field(None, description=THING)
    """A thing whose boxes on the last image are wanted."""
    point: Thing | None = Field(None, description=THING)
    """A thing on which points are wanted."""

    def location_task(self) -> tuple[Literal["detect", "point"], str] | None:
        """Return the task of `detect` or `point` and its thing; None if there is neither.

        Raises:
            RequestError: there are both, or the last message is not one of the user.
        """
        if self.detect is not None and self.point is not None:
            raise _contradiction("point", "and detect exclude each other; send one of them")
        field: Literal["detect", "point"] = "point" if self.detect is None else "detect"
        thing = self.point if self.detect is None else self.detect
        if thing is None:
            return None
        if self.messages[-1].role != "user":
            raise _contradiction(field, "needs a message of the user with the image at the end")
        return field, thing

    @property
    def include_usage(self) -> bool:
        """True if a streamed answer ends with its token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def generation_options(self, default_max_tokens: int) -> GenerationOptions:
        """Return the settings of the request for `VLM.stream_generate`.

        Args:
            default_max_tokens: the limit of the answer if the request has none.

        Raises:
            RequestError: two fields contradict each other.
        """
        if self.top_logprobs and not self.logprobs:
            raise _contradiction("top_logprobs", "requires logprobs: true")
        if None not in (self.max_tokens, self.max_completion_tokens) and (
            self.max_tokens != self.max_completion_tokens
        ):
            raise _contradiction(
                "max_tokens", "is the older name of max_completion_tokens; send one of them"
            )
        limit = self.max_completion_tokens or self.max_tokens or default_max_tokens
        seed = -1 if self.seed is None else self.seed
        options: GenerationOptions = {
            "max_tokens": None if limit == -1 else min(limit, MAX_TOKENS),
            "cap_max_tokens": True,
            "stop": self.stop,
            "json_schema": self.response_format.answer_schema() if self.response_format else None,
            "max_image_tokens": self.max_image_tokens,
            "within": self.timeout,
            "seed": secrets.randbelow(SEED_RANGE) if seed == -1 else seed % SEED_RANGE,
        }
        if self.tools:
            options["tools"] = self.tools
            options["parallel_tool_calls"] = self.parallel_tool_calls is not False
        if self.tool_choice is not None:
            options["tool_choice"] = self.tool_choice.function.name
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
