"""What requests may say: OpenAI's own fields, those of others, and what is said about mistakes."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Iterator
from typing import Any, get_type_hints

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import chat
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from edgevlm import VLM
from edgevlm.server.errors import RequestError
from edgevlm.server.messages import FilePart, ImagePart, ImageUrl, Message, TextPart
from edgevlm.server.requests import ChatCompletionRequest, StreamOptions
from edgevlm.server.validation import RequestModel, parse_json, validate
from tests.support.serving import EXAMPLES, MODEL, SECONDS, asking, data_uri, serving

PIXEL = "data:image/png;base64,AAAA"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(MODEL) as vlm:
        yield vlm


def post(address: str, value: Any) -> httpx.Response:
    content = json.dumps(value)
    return httpx.post(f"{address}/v1/chat/completions", content=content, timeout=SECONDS)


def told(answer: httpx.Response) -> tuple[str, str | None]:
    """Message and place of an error."""
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["message"], error["param"]


def user(content: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}]}


def part(*parts: Any) -> dict[str, Any]:
    return user([{"type": "text", "text": "Look:"}, *parts])


PARTS = (
    'a text, or a list of parts such as [{"type": "text", "text": "What is this?"}], at most 4096'
)
MESSAGE = 'an object such as {"role": "user", "content": "What is this?"}'
MESSAGES = (
    'a list of messages such as [{"role": "user", "content": "What is this?"}], at least one '
    "and at most 4096"
)
ROLES = "'system', 'developer', 'user', 'assistant' or 'tool'"
PART = 'an object such as {"type": "text", "text": "What is this?"}'
TYPES = "'text', 'image_url', 'input_image' or 'file'"
IMAGE = 'an object such as {"url": "data:image/png;base64,..."}'
URL = "a data URI such as 'data:image/png;base64,...' or, if the server fetches images, an http(s) address"
DETAIL = (
    "'low' (one tile), 'high' (split as in training) or 'auto' (as many tiles as its pixels fill)"
)
TOKENS = (
    "an integer from 1, or -1 for as many as fit the context; larger values are lowered to that"
)
TEMPERATURE = "a number from 0 to 2; 0, the default, always takes the most likely token"
BODY = 'a JSON object such as {"messages": [{"role": "user", "content": "What is this?"}]}'
SCHEMA = 'an object such as {"name": "answer", "schema": {"type": "object"}}'
FUNCTION = 'an object such as {"name": "look", "arguments": "{}"}'
TOOL = '{"type": "function", "function": {"name": "look"}}'
CALL = {"function": {"name": "a", "arguments": "{}"}}
CHOICE = "'auto', 'none', 'required' or an object such as " + TOOL
SECONDS_RANGE = "a number of seconds from 0.001 to 1e+06"
THING = "the name of a thing without an article, such as 'red key'"
FIRST = "messages.0.content.1"

MISTAKES: list[tuple[Any, str | None, str | None]] = [
    # the body
    ([], None, f"must be {BODY}, is an empty list"),
    (5, None, f"must be {BODY}, is 5"),
    ("Hello", None, f"must be {BODY}, is 'Hello'"),
    (None, None, f"must be {BODY}, is null"),
    ([user("a")], None, f"must be {BODY}, is a list of 1"),
    # messages
    ({}, "messages", f"is missing; it must be {MESSAGES}"),
    ({"messages": None}, "messages", f"must be {MESSAGES}, is null"),
    ({"messages": []}, "messages", f"must be {MESSAGES}, is an empty list"),
    ({"messages": {}}, "messages", f"must be {MESSAGES}, is an empty object"),
    ({"messages": "What is this?"}, "messages", f"must be {MESSAGES}, is 'What is this?'"),
    ({"messages": ["a"] * 5000}, "messages.0", f"must be {MESSAGE}, is 'a'"),
    ({"messages": user("a")["messages"] * 5000}, "messages", f"must be {MESSAGES}, is a list of 5000"),
    ({"messages": [5]}, "messages.0", f"must be {MESSAGE}, is 5"),
    ({"messages": [[]]}, "messages.0", f"must be {MESSAGE}, is an empty list"),
    ({"messages": [None]}, "messages.0", f"must be {MESSAGE}, is null"),
    # one message
    ({"messages": [{}]}, "messages.0.role", f"is missing; it must be {ROLES}"),
    ({"messages": [{"content": "a"}]}, "messages.0.role", f"is missing; it must be {ROLES}"),
    ({"messages": [{"role": 5, "content": "a"}]}, "messages.0.role", f"must be {ROLES}, is 5"),
    ({"messages": [{"role": "User", "content": "a"}]}, "messages.0.role", f"must be {ROLES}, is 'User'"),
    (
        {"messages": [{"role": "function", "content": "a", "name": "b"}]},
        "messages.0.role",
        f"must be {ROLES}, is 'function'",
    ),
    ({"messages": [{"role": "user"}]}, "messages.0.content", f"is missing; it must be {PARTS}"),
    (user(None), "messages.0.content", f"must be {PARTS}, is null"),
    (user(5), "messages.0.content", f"must be {PARTS}, is 5"),
    (user({}), "messages.0.content", f"must be {PARTS}, is an empty object"),
    (user([]), "messages.0.content", f"must be {PARTS}, is an empty list"),
    (user(True), "messages.0.content", f"must be {PARTS}, is true"),
    (
        user({"type": "text", "text": "a"}),
        "messages.0.content",
        f"must be {PARTS}, is an object",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "a"}]}]},
        "messages.0.tool_calls.0.function",
        f"is missing; it must be {FUNCTION}",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "a", "arguments": "{"}}]}]},
        "messages.0.tool_calls.0.function.arguments",
        "must be the text of a JSON object, is '{'",
    ),
    (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [CALL]}]},
        "messages.0",
        "may have tool_calls only if role is 'assistant'",
    ),
    (user("a") | {"tools": {}}, "tools", "must be a list of functions, is an empty object"),
    (user("a") | {"tool_choice": "look"}, "tool_choice", f"must be {CHOICE}, is 'look'"),
    (user("a") | {"timeout": 0}, "timeout", f"must be {SECONDS_RANGE}, is 0"),
    (user("a") | {"timeout": "1"}, "timeout", f"must be {SECONDS_RANGE}, is '1'"),
    (user("a") | {"detect": " "}, "detect", f"must be {THING}, is ' '"),
    (user("a") | {"detect": "a", "point": "a"}, "point", "and detect exclude each other; send one of them"),
    (
        {"messages": [{"role": "assistant", "content": "a"}], "point": "a"},
        "point",
        "needs a message of the user with the image at the end",
    ),
    (
        {"messages": [{"role": "assistant", "content": "a", "refusal": 5}]},
        "messages.0.refusal",
        "must be a text or null, is 5",
    ),
    # parts
    (part("What?"), FIRST, f"must be {PART}, is 'What?'"),
    (part(5), FIRST, f"must be {PART}, is 5"),
    (part([]), FIRST, f"must be {PART}, is an empty list"),
    (part(None), FIRST, f"must be {PART}, is null"),
    (part({}), f"{FIRST}.type", f"is missing; it must be {TYPES}"),
    (part({"text": "a"}), f"{FIRST}.type", f"is missing; it must be {TYPES}"),
    (part({"type": None}), f"{FIRST}.type", f"must be {TYPES}, is null"),
    (part({"type": ["text"]}), f"{FIRST}.type", f"must be {TYPES}, is a list of 1"),
    (part({"type": "image", "image": PIXEL}), f"{FIRST}.type", f"must be {TYPES}, is 'image'"),
    (part({"type": "input_audio"}), f"{FIRST}.type", f"must be {TYPES}, is 'input_audio'"),
    (part({"type": "video_url"}), f"{FIRST}.type", f"must be {TYPES}, is 'video_url'"),
    (part({"type": "text"}), f"{FIRST}.text", "is missing; it must be a text"),
    (part({"type": "text", "text": None}), f"{FIRST}.text", "must be a text, is null"),
    (part({"type": "text", "text": 5.5}), f"{FIRST}.text", "must be a text, is 5.5"),
    (part({"type": "text", "text": ["a"]}), f"{FIRST}.text", "must be a text, is a list of 1"),
    (part({"type": "image_url"}), f"{FIRST}.image_url", f"is missing; it must be {IMAGE}"),
    (part({"type": "image_url", "url": PIXEL}), f"{FIRST}.image_url", f"is missing; it must be {IMAGE}"),
    (part({"type": "image_url", "image_url": 5}), f"{FIRST}.image_url", f"must be {IMAGE}, is 5"),
    (
        part({"type": "image_url", "image_url": []}),
        f"{FIRST}.image_url",
        f"must be {IMAGE}, is an empty list",
    ),
    (part({"type": "image_url", "image_url": {}}), f"{FIRST}.image_url.url", f"is missing; it must be {URL}"),
    (
        part({"type": "image_url", "image_url": {"url": 5}}),
        f"{FIRST}.image_url.url",
        f"must be {URL}, is 5",
    ),
    (
        part({"type": "image_url", "image_url": {"url": PIXEL, "detail": "original"}}),
        f"{FIRST}.image_url.detail",
        f"must be {DETAIL}, is 'original'",
    ),
    (part({"type": "input_image"}), FIRST, "must have one of image_url and file_id"),
    (
        part({"type": "input_image", "image_url": {"url": PIXEL, "detail": "fine"}}),
        f"{FIRST}.image_url.detail",
        f"must be {DETAIL}, is 'fine'",
    ),
    (
        part({"type": "file"}),
        f"{FIRST}.file",
        'is missing; it must be an object such as {"file_id": "file-..."}',
    ),
    (part({"type": "file", "file": {}}), f"{FIRST}.file", "must have one of file_id and file_data"),
    (
        part({"type": "file", "file": {"file_id": 5}}),
        f"{FIRST}.file.file_id",
        "must be the id of an image that was sent to /v1/files, a text, is 5",
    ),
    # options
    (user("a") | {"model": 5}, "model", None),
    (user("a") | {"max_tokens": 0}, "max_tokens", f"must be {TOKENS}, is 0"),
    (user("a") | {"max_tokens": -2}, "max_tokens", f"must be {TOKENS}, is -2"),
    (user("a") | {"max_tokens": "100"}, "max_tokens", f"must be {TOKENS}, is '100'"),
    (user("a") | {"max_completion_tokens": 1.5}, "max_completion_tokens", f"must be {TOKENS}, is 1.5"),
    (user("a") | {"max_tokens": True}, "max_tokens", f"must be {TOKENS}, is true"),
    (user("a") | {"temperature": 2.5}, "temperature", f"must be {TEMPERATURE}, is 2.5"),
    (user("a") | {"temperature": -1}, "temperature", f"must be {TEMPERATURE}, is -1"),
    (user("a") | {"temperature": "0.7"}, "temperature", f"must be {TEMPERATURE}, is '0.7'"),
    (user("a") | {"temperature": [0]}, "temperature", f"must be {TEMPERATURE}, is a list of 1"),
    (user("a") | {"top_p": 1.1}, "top_p", "must be a number from 0 to 1, is 1.1"),
    (user("a") | {"top_k": 2**31}, "top_k", None),
    (user("a") | {"top_k": 10**60}, "top_k", None),
    (user("a") | {"seed": "7"}, "seed", None),
    (user("a") | {"seed": 1.5}, "seed", None),
    (user("a") | {"stop": 5}, "stop", "must be a text or a list of at most 4 texts, is 5"),
    (user("a") | {"stop": ["a", 5]}, "stop.1", "must be a text, is 5"),
    (user("a") | {"stop": ["a"] * 5}, "stop", "must be a text or a list of at most 4 texts, is a list of 5"),
    (user("a") | {"stream": "yes"}, "stream", "must be true or false, is 'yes'"),
    (user("a") | {"stream": 1}, "stream", "must be true or false, is 1"),
    (user("a") | {"logprobs": 5}, "logprobs", "must be true or false, is 5"),
    (user("a") | {"top_logprobs": 21, "logprobs": True}, "top_logprobs", None),
    (user("a") | {"top_logprobs": 2}, "top_logprobs", "requires logprobs: true"),
    (user("a") | {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens", None),
    (user("a") | {"stream_options": True}, "stream_options", None),
    (
        user("a") | {"stream_options": {"include_usage": "yes"}},
        "stream_options.include_usage",
        "must be true or false, is 'yes'",
    ),
    (user("a") | {"response_format": "json_object"}, "response_format", None),
    (user("a") | {"response_format": {}}, "response_format.type", None),
    (user("a") | {"response_format": {"type": "json"}}, "response_format.type", None),
    (
        user("a") | {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        f"is missing; it must be {SCHEMA}",
    ),
    (
        user("a") | {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
        'is missing; it must be a JSON schema such as {"type": "object"}',
    ),
]  # fmt: skip


@pytest.mark.parametrize(("value", "place", "sentence"), MISTAKES)
def test_mistake_is_told_with_its_place(
    address: str, value: Any, place: str | None, sentence: str | None
) -> None:
    message, parameter = told(post(address, value))
    assert parameter == place
    assert message.startswith(f"{place or 'the body'} ")
    assert len(message) < 260 and message.isprintable()
    if sentence is not None:
        assert message == f"{place or 'the body'} {sentence}"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the request has no body; send a JSON object"),
        (b" \n", "the request has no body; send a JSON object"),
        (b"{", "the body is not JSON: EOF while parsing an object at line 1 column 1"),
        (b"{'messages': []}", "key must be a string at line 1 column 2, found \"'messages'"),
        (b'{"messages": [\n{"role": user}]}', "expected value at line 2 column 10, found 'user}]}'"),
        (b'{"max_tokens": 5,}', "trailing comma at line 1 column 18, found '}'"),
        (b'{"temperature": NaN}', "expected value at line 1 column 17, found 'NaN}'"),
        (b'{"temperature": -Infinity}', "invalid number at line 1 column 18"),
        (b"{} {}", "trailing characters at line 1 column 4"),
        (b'{"a": "\\ud800"}', "hex escape at line 1"),
        (b'{"a": "\xe4"}', "invalid unicode code point at line 1"),
        (b'{"a": "line\nbreak"}', "control character"),
        (b'{"a": ' + b"[" * 10_000, "recursion limit exceeded at line 1"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "number out of range at line 1"),
        (json.dumps(user("a")).encode("utf-16"), "the body is UTF-16 or UTF-32; send JSON in UTF-8"),
        (json.dumps(user("a")).encode("utf-32-le"), "the body is UTF-16 or UTF-32; send JSON in UTF-8"),
        (b"model=a&prompt=b", "expected value at line 1 column 1, found 'model=a&prompt=b'"),
    ],
)  # fmt: skip
def test_broken_body(address: str, body: bytes, words: str) -> None:
    answer = httpx.post(f"{address}/v1/chat/completions", content=body)
    message, parameter = told(answer)
    assert words in message and parameter is None
    assert len(message) < 200 and message.isprintable()


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "application/json",
        "application/JSON; charset=utf-8",
        "application/x-www-form-urlencoded",
        "text/plain",
        "*",
    ],
)
def test_json_is_json_whatever_the_header_calls_it(address: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for bom in (b"", b"\xef\xbb\xbf"):
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            content=bom + json.dumps(user("Hello")).encode(),
            headers=headers,
            timeout=SECONDS,
        )
        assert answer.status_code == 200, answer.text


def test_body_in_another_form(address: str) -> None:
    url = f"{address}/v1/chat/completions"
    form = httpx.post(url, data={"model": MODEL}, files={"image": b"a"})
    assert "send JSON, with images as data URIs" in told(form)[0]
    packed = httpx.post(url, content=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    assert "the Content-Encoding gzip is not supported" in told(packed)[0]


def test_more_values_than_any_request_needs(address: str) -> None:
    for body in (b"[" + b"0," * 2**20 + b"0]", b'{"a": "' + b"," * 2**20 + b'"}'):
        answer = httpx.post(f"{address}/v1/chat/completions", content=body, timeout=SECONDS)
        message, _ = told(answer)
        assert "commas; the limit is 262144" in message
    image = data_uri("square.png")
    many = httpx.post(
        f"{address}/v1/chat/completions",
        json=user("a") | {"metadata": [image] * 100},
        timeout=SECONDS,
    )
    assert many.status_code == 200


def test_last_of_two_equal_keys_counts() -> None:
    value = parse_json(
        b'{"temperature": 5, "temperature": 1, "messages": [{"role": "user", "content": "a"}]}'
    )
    assert validate(ChatCompletionRequest, value, strict=True)[0].temperature == 1


@pytest.mark.parametrize(
    ("image", "field", "status"),
    [
        (
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,!!"}},
            "image_url.url",
            400,
        ),
        ({"type": "image_url", "image_url": {"url": PIXEL}}, "image_url.url", 400),
        ({"type": "image_url", "image_url": ""}, "image_url.url", 400),
        ({"type": "image_url", "image_url": "file:///etc/passwd"}, "image_url.url", 400),
        ({"type": "image_url", "image_url": "http://127.0.0.1/a.png"}, "image_url.url", 400),
        ({"type": "input_image", "image_url": "square.png"}, "image_url", 400),
        ({"type": "input_image", "file_id": "file-1"}, "file_id", 404),
        ({"type": "file", "file": {"file_id": "file-1"}}, "file.file_id", 404),
        ({"type": "file", "file": {"file_data": "AAAA"}}, "file.file_data", 400),
    ],
)
def test_image_that_cannot_be_had_is_told_with_its_place(
    address: str, image: Any, field: str, status: int
) -> None:
    hello = {"role": "user", "content": "Hello"}
    before: list[Any]
    for before in ([], [hello]):
        answer = post(address, {"messages": [*before, *part(image)["messages"]]})
        place = f"messages.{len(before)}.content.1.{field}"
        assert answer.status_code == status
        error = answer.json()["error"]
        assert error["param"] == place
        assert error["message"].startswith(f"{place}: ")
        assert error["message"].isprintable() and len(error["message"]) < 260


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=60)
    | st.sampled_from(["text", "image_url", "input_image", "file", "user", "assistant", "tool"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5)
            | st.sampled_from(
                ["type", "text", "image_url", "url", "role", "content", "file", "schema"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
WHOLE: dict[str, Any] = {
    **part(
        {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
        {"type": "input_image", "image_url": PIXEL},
        {"type": "file", "file": {"file_id": "file-1"}},
    ),
    "stop": ["a"],
    "max_tokens": 5,
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "stream_options": {"include_usage": True},
    "tools": [],
}


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, inner in items:
        yield from places(inner, (*place, name))


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(list(places(WHOLE))), ANYTHING, st.booleans())
def test_anything_anywhere_is_taken_or_told(
    place: tuple[Any, ...], value: Any, strict: bool
) -> None:
    """What is wrong is said where it is, in one short line, whatever it is."""
    whole = copy.deepcopy(WHOLE)
    if place:
        parent = whole
        for step in place[:-1]:
            parent = parent[step]
        parent[place[-1]] = value
    else:
        whole = value
    try:
        validate(ChatCompletionRequest, whole, strict=strict)[0].generation_options(256)
    except RequestError as error:
        told = error.body["error"]
        assert error.status == 400
        assert told["message"].isprintable() and len(told["message"]) < 400
        steps = (told["param"] or "").split(".")
        common = ".".join(map(str, place))
        assert told["param"] is None or common.startswith(steps[0]) or not place
        assert "str:" not in told["message"] and "Input should" not in told["message"]


def known(model: type[RequestModel]) -> set[str]:
    """Every field that a model honours, accepts while it asks for nothing, or takes as a hint."""
    names = {field.alias or name for name, field in model.model_fields.items()}
    return names | set(model.unsupported) | model.ignored


@pytest.mark.parametrize(
    ("model", "described"),
    [
        (ChatCompletionRequest, CompletionCreateParamsNonStreaming),
        (Message, chat.ChatCompletionSystemMessageParam),
        (Message, chat.ChatCompletionDeveloperMessageParam),
        (Message, chat.ChatCompletionUserMessageParam),
        (Message, chat.ChatCompletionAssistantMessageParam),
        (Message, chat.ChatCompletionToolMessageParam),
        (TextPart, chat.ChatCompletionContentPartTextParam),
        (ImagePart, chat.ChatCompletionContentPartImageParam),
        (FilePart, chat.chat_completion_content_part_param.File),
        (ImageUrl, chat.chat_completion_content_part_image_param.ImageURL),
        (StreamOptions, chat.ChatCompletionStreamOptionsParam),
    ],
)
def test_every_field_of_openai_is_known(model: type[RequestModel], described: Any) -> None:
    assert set(get_type_hints(described)) - known(model) == set()


def test_everything_that_a_message_may_hold_is_known() -> None:
    """Clients send back what they read, with all fields that their types have."""
    fields = set(chat.ChatCompletionMessage.model_fields) | set(
        chat.ParsedChatCompletionMessage.model_fields
    )
    assert fields - known(Message) == set()


NOTHING: dict[str, list[Any]] = {
    "audio": [None],
    "frequency_penalty": [None, 0, 0.0],
    "function_call": [None, "none", "auto"],
    "functions": [None, []],
    "logit_bias": [None, {}],
    "logprobs": [None, False],
    "max_completion_tokens": [None],
    "max_tokens": [None],
    "metadata": [None, {}, {"a": "b"}],
    "modalities": [None, ["text"]],
    "model": [None, "", MODEL, "gpt-4o"],
    "moderation": [None],
    "n": [None, 1, 1.0],
    "parallel_tool_calls": [None, True, False],
    "prediction": [None],
    "presence_penalty": [None, 0],
    "prompt_cache_key": [None, "a"],
    "prompt_cache_options": [None, {}],
    "prompt_cache_retention": [None, "in_memory", "24h"],
    "reasoning_effort": [None, "none"],
    "response_format": [None, {"type": "text"}],
    "safety_identifier": [None, "a"],
    "seed": [None],
    "service_tier": [None, "auto", "default"],
    "stop": [None, "", [], [""]],
    "store": [None, False],
    "stream": [None, False],
    "stream_options": [None, {}, {"include_usage": None}, {"include_obfuscation": False}],
    "temperature": [None],
    "tool_choice": [None, "none", "auto"],
    "tools": [None, []],
    "top_logprobs": [None, 0],
    "top_p": [None],
    "user": [None, "somebody"],
    "verbosity": [None, "medium"],
    "web_search_options": [None],
}
"""Values by which OpenAI's fields ask for nothing."""


def test_fields_that_ask_for_nothing(address: str, vlm: VLM) -> None:
    expected = vlm.ask(EXAMPLES / "square.png", "What color is it?").text
    assert set(NOTHING) == set(get_type_hints(CompletionCreateParamsNonStreaming)) - {"messages"}
    rounds = max(map(len, NOTHING.values()))
    for number in range(rounds):
        fields = {name: values[number % len(values)] for name, values in NOTHING.items()}
        messages = asking("What color is it?", data_uri("square.png"))
        answer = post(address, {"messages": messages, **fields})
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"]["content"] == expected
        assert answer.json()["model"] == MODEL


SOMETHING: dict[str, Any] = {
    "audio": {"voice": "alloy", "format": "wav"},
    "frequency_penalty": 0.5,
    "function_call": {"name": "look"},
    "functions": [{"name": "look"}],
    "logit_bias": {"50256": -100},
    "modalities": ["text", "audio"],
    "moderation": {"model": "a"},
    "n": 2,
    "prediction": {"type": "content", "content": "a"},
    "presence_penalty": -1,
    "reasoning_effort": "high",
    "service_tier": "flex",
    "store": True,
    "verbosity": "low",
    "web_search_options": {},
}


def test_what_cannot_be_honoured_is_refused_by_name(address: str) -> None:
    assert set(SOMETHING) == set(ChatCompletionRequest.unsupported)
    for name, value in SOMETHING.items():
        message, parameter = told(post(address, user("Hello") | {name: value}))
        assert parameter == name
        assert message.startswith(f"{name} must be null or ") and "left out (" in message
    fields: dict[str, Any]
    for fields in ({"function_call": {}}, {"audio": {"id": "a"}}):
        history = [{"role": "assistant", "content": "a", **fields}, *user("Hello")["messages"]]
        message, parameter = told(post(address, {"messages": history}))
        assert parameter == f"messages.0.{next(iter(fields))}"


OTHERS = {
    "repeat_penalty": 1.1,
    "keep_alive": "5m",
    "chat_template_kwargs": {"enable_thinking": False},
    "options": {"num_ctx": 4096},
    "mirostat": 0,
    "typical_p": 1.0,
    "cache_prompt": True,
    "id_slot": -1,
    "min_tokens": 0,
    "ignore_eos": False,
    "guided_json": None,
    "think": False,
}
"""Fields of other servers' clients."""


def test_unknown_fields_are_ignored_and_reported_once(
    vlm: VLM, caplog: pytest.LogCaptureFixture
) -> None:
    marked = part({"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}})
    with serving() as address:
        plain = post(address, part({"type": "text", "text": "Hello"})).json()
        for _ in range(2):
            answer = post(address, marked | OTHERS | {"model": "llava"})
            assert answer.json()["choices"] == plain["choices"]
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == len(OTHERS) + 2
    for name in (*OTHERS, "messages.content.cache_control"):
        assert f"unknown field {name} in requests is ignored" in said
    assert f"requests name the model 'llava'; {MODEL!r} answers them" in said


def test_log_has_an_end(caplog: pytest.LogCaptureFixture) -> None:
    with serving() as address:
        for start in range(0, 400, 100):
            fields = {f"field\n{number}": 1 for number in range(start, start + 100)}
            assert post(address, user("Hello") | fields | {"model": "x" * 9999}).status_code == 200
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 200
    assert all(message.isprintable() and len(message) < 200 for message in said)


def test_strict_refuses_unknown_fields_by_name() -> None:
    with serving(strict=True) as address:
        for name, value in OTHERS.items():
            message, parameter = told(post(address, user("Hello") | {name: value}))
            assert message == f"{name} is not a known field; leave it out"
            assert parameter == name
        marked = part({"type": "text", "text": "Hello", "cache_control": {}})
        assert told(post(address, marked))[1] == "messages.0.content.1.cache_control"
        for name, values in NOTHING.items():
            assert post(address, user("Hello") | {name: values[-1]}).status_code == 200


def test_answer_ends_where_the_context_does(address: str, vlm: VLM) -> None:
    """What is asked beyond it is cut, as other servers do."""
    numbers = {
        "type": "json_schema",
        "json_schema": {
            "name": "numbers",
            "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 5000},
        },
    }
    with serving(VLM.from_pretrained(MODEL, context_length=128)) as small:
        for fields in ({"max_tokens": -1}, {"max_tokens": 10**30}, {"max_completion_tokens": 200}):
            answer = post(small, user("Hello") | {"response_format": numbers} | fields).json()
            assert answer["choices"][0]["finish_reason"] == "length"
            assert answer["usage"]["total_tokens"] == 128
        answer = post(small, user("Hello") | {"response_format": numbers, "max_tokens": 7}).json()
        assert answer["usage"]["completion_tokens"] == 7
        message, _ = told(post(small, user("Hello " * 200)))
        assert "positions, but the context has 128" in message


def options(**fields: Any) -> Any:
    return validate(ChatCompletionRequest, user("Hello") | fields, strict=True)[
        0
    ].generation_options(256)


def test_minus_one_is_random_off_or_no_limit(address: str) -> None:
    for unseeded in ({}, {"seed": -1}, {"seed": None}, {"seed": -1.0}):
        assert len({options(**unseeded)["seed"] for _ in range(9)}) == 9
    for seed in (0, 7, 2**32 - 2):
        assert options(seed=seed)["seed"] == seed
    for seed in (-2, 2**63, -(2**63), 10**30):  # any other integer is a seed, too
        assert options(seed=seed)["seed"] == options(seed=seed)["seed"] in range(2**32 - 1)
    assert options(top_k=-1)["top_k"] == options(top_k=0)["top_k"] == 0
    assert options(top_k=5)["top_k"] == 5
    assert options(max_tokens=-1)["max_tokens"] is None
    assert options(max_tokens=5.0)["max_tokens"] == 5
    assert options()["max_tokens"] == 256
    asked = user("Hello") | {"temperature": 2, "top_k": -1, "seed": -1, "max_tokens": -1}
    assert post(address, asked | {"stop": ["a", "e", " "]}).status_code == 200


def test_schema_in_every_form() -> None:
    schema = {"type": "object", "properties": {"green": {"type": "boolean"}}}
    named = {"name": "answer", "schema": schema, "strict": True, "description": None}
    for form in (
        {"type": "json_schema", "json_schema": named},
        {"type": "json_schema", "json_schema": {"schema": schema}},
        {"type": "json_schema", "schema": schema},
        {"type": "json_object", "schema": schema},
    ):
        assert options(response_format=form)["json_schema"] == schema
    for plain in ({"type": "json_object"}, {"type": "json_object", "schema": None}):
        assert options(response_format=plain)["json_schema"] == {"type": "object"}
    for nothing in (None, {"type": "text"}, {"type": "text", "json_schema": None}):
        assert options(response_format=nothing)["json_schema"] is None


def test_image_in_every_form(address: str) -> None:
    uri = data_uri("square.png")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    stored = client.files.create(file=EXAMPLES / "square.png", purpose="vision")
    for image in (
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image_url", "image_url": {"url": uri, "detail": None}},
        {"type": "image_url", "image_url": uri},
        {"type": "input_image", "image_url": uri},
        {"type": "input_image", "image_url": uri, "detail": "auto", "file_id": None},
        {"type": "input_image", "image_url": {"url": uri, "detail": "low"}},
        {"type": "input_image", "file_id": stored.id},
        {"type": "file", "file": {"file_id": stored.id}},
        {"type": "file", "file": {"file_data": uri, "filename": "square.png"}},
    ):
        for text in ("text", "input_text"):
            content = [image, {"type": text, "text": "What color is it?"}]
            answer = post(address, user(content))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["message"]["content"] == "green"


@pytest.mark.parametrize(
    "said",
    [
        {"content": "There is a square.", "refusal": None},
        {"content": None, "refusal": "There is a square."},
        {"refusal": "There is a square."},
        {"content": [{"type": "refusal", "refusal": "There is a square."}]},
        {"content": [{"type": "output_text", "text": "There is a square.", "annotations": []}]},
    ],
)
def test_what_an_assistant_said(address: str, vlm: VLM, said: dict[str, Any]) -> None:
    told: Any = [
        {"role": "user", "content": "What is there?"},
        {"role": "assistant", "content": "There is a square."},
        {"role": "user", "content": "What shape is it?"},
    ]
    expected = vlm.stream_generate(told)
    text = "".join(chunk.text for chunk in expected)
    told[1] = {"role": "assistant", **said}
    answer = post(address, {"messages": told}).json()
    assert answer["choices"][0]["message"]["content"] == text


def test_assistant_that_said_nothing(address: str) -> None:
    said: dict[str, Any]
    for said in ({}, {"content": None}, {"content": ""}, {"content": []}):
        messages = [
            *user("Hello")["messages"],
            {"role": "assistant", **said},
            *user("Hello")["messages"],
        ]
        assert post(address, {"messages": messages}).status_code == 200
