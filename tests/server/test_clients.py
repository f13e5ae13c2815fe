"""Clients that people use in front of the server: their own classes where they install, else their requests.

The requests of programs that cannot be installed here are written after what those programs send.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from edgevlm import VLM
from tests.support.serving import EXAMPLES, MODEL, SECONDS, asking, data_uri, serving

COLOR = "What color is it?"
SHAPE = "What shape is it?"
SQUARE = "square.png"


class Seen(BaseModel):
    """Few words, so that even a small model comes to an end."""

    green: bool
    square: bool


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def said() -> tuple[str, str]:
    """What the library answers to both questions, the second in the same conversation."""
    with VLM.from_pretrained(MODEL) as vlm:
        chat = vlm.chat()
        first = chat.send(COLOR, images=EXAMPLES / SQUARE).text
        return first, chat.send(SHAPE).text


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def content(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_openai_loop(client: openai.OpenAI, said: tuple[str, str]) -> None:
    """As OpenAI documents it: the message that was received is appended as it is."""
    messages = asking(COLOR, data_uri(SQUARE))
    found = []
    for question in (SHAPE, None):
        answer = client.chat.completions.create(model=MODEL, messages=messages)
        found.append(answer.choices[0].message.content)
        messages.append(answer.choices[0].message)
        messages.append({"role": "user", "content": question})
    assert tuple(found) == said


def test_openai_loop_with_dumped_messages(client: openai.OpenAI, said: tuple[str, str]) -> None:
    """Every field that the client's types have, those that the server never wrote among them."""
    messages = asking(COLOR, data_uri(SQUARE))
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    for dumped in (
        answer.choices[0].message.model_dump(),
        answer.choices[0].message.to_dict(),
        json.loads(answer.choices[0].message.model_dump_json()),
    ):
        turns = [*messages, dumped, {"role": "user", "content": SHAPE}]
        second = client.chat.completions.create(model=MODEL, messages=turns)
        assert second.choices[0].message.content == said[1]


def test_openai_loop_streamed(client: openai.OpenAI, said: tuple[str, str]) -> None:
    messages = asking(COLOR, data_uri(SQUARE))
    found = []
    for question in (SHAPE, None):
        text = ""
        for chunk in client.chat.completions.create(model=MODEL, messages=messages, stream=True):
            text += chunk.choices[0].delta.content or ""
        found.append(text)
        messages.append({"role": "assistant", "content": text})
        messages.append({"role": "user", "content": question})
    assert tuple(found) == said


def test_openai_stream_helper(client: openai.OpenAI, said: tuple[str, str]) -> None:
    """Its accumulated message is sent back, too."""
    messages = asking(COLOR, data_uri(SQUARE))
    with client.chat.completions.stream(
        model=MODEL, messages=messages, stream_options={"include_usage": True}, logprobs=True
    ) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        completion = stream.get_final_completion()
    message = completion.choices[0].message
    assert ("".join(deltas), message.content) == (said[0], said[0])
    assert completion.usage is not None and completion.usage.completion_tokens > 0
    logprobs = completion.choices[0].logprobs
    assert logprobs is not None and logprobs.content
    messages += [message, {"role": "user", "content": SHAPE}]
    second = client.chat.completions.create(model=MODEL, messages=messages)
    assert second.choices[0].message.content == said[1]


def test_openai_loop_async(address: str, said: tuple[str, str]) -> None:
    async def loop(stream: bool) -> list[str | None]:
        messages = asking(COLOR, data_uri(SQUARE))
        found: list[str | None] = []
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            for question in (SHAPE, None):
                if stream:
                    chunks = await client.chat.completions.create(
                        model=MODEL, messages=messages, stream=True
                    )
                    pieces = [chunk.choices[0].delta.content or "" async for chunk in chunks]
                    message: Any = {"role": "assistant", "content": "".join(pieces)}
                    found.append(message["content"])
                else:
                    answer = await client.chat.completions.create(model=MODEL, messages=messages)
                    message = answer.choices[0].message
                    found.append(message.content)
                messages += [message, {"role": "user", "content": question}]
        return found

    for stream in (False, True):
        assert tuple(asyncio.run(loop(stream))) == said


# The client's models warn about what the client itself put into them.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_openai_parsed_message_is_sent_back(client: openai.OpenAI) -> None:
    messages = asking("Is it a green square?", data_uri(SQUARE))
    parsed = client.chat.completions.parse(model=MODEL, messages=messages, response_format=Seen)
    assert isinstance(parsed.choices[0].message.parsed, Seen)
    messages += [parsed.choices[0].message, {"role": "user", "content": SHAPE}]
    assert client.chat.completions.create(model=MODEL, messages=messages).choices
    turns = [*messages[:1], parsed.choices[0].message.model_dump(), messages[2]]
    assert client.chat.completions.create(model=MODEL, messages=turns).choices


async def _all_content(model: Any, conversations: list[Any]) -> list[str]:
    return [(await model.ainvoke(messages)).content for messages in conversations]


def test_langchain(address: str, said: tuple[str, str]) -> None:
    from langchain_core.messages import BaseMessage, HumanMessage, SystemMessage
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    key = SecretStr("none")
    model = ChatOpenAI(base_url=f"{address}/v1", api_key=key, model=MODEL, max_retries=0)
    text = {"type": "text", "text": COLOR}
    plain = data_uri(SQUARE).rpartition(",")[2]
    asynchronous: list[Any] = []
    for image in (
        {"type": "image_url", "image_url": {"url": data_uri(SQUARE)}},
        {"type": "image", "base64": plain, "mime_type": "image/png"},
    ):
        messages: list[BaseMessage] = [HumanMessage(content=[image, text])]
        first = model.invoke(messages)
        assert first.content == said[0]
        assert first.usage_metadata is not None and first.usage_metadata["output_tokens"] > 0
        messages += [first, HumanMessage(SHAPE)]
        assert model.invoke(messages).content == said[1]
        assert "".join(str(chunk.content) for chunk in model.stream(messages)) == said[1]
        asynchronous.append(messages)
    assert asyncio.run(_all_content(model, asynchronous)) == [said[1]] * 2
    structured = model.with_structured_output(Seen, method="json_schema")
    asked = [SystemMessage("Answer in JSON."), *messages[:1]]
    assert isinstance(structured.invoke(asked), Seen)
    everything = ChatOpenAI(
        base_url=f"{address}/v1",
        api_key=key,
        model="any",
        max_retries=0,
        logprobs=True,
        top_logprobs=2,
        temperature=0,
        seed=1,
        max_completion_tokens=20,
        stop_sequences=["?"],
        frequency_penalty=0,
        presence_penalty=0,
        n=1,
        stream_usage=True,
    )
    assert len(everything.invoke("Hello").response_metadata["logprobs"]["content"]) > 1
    with pytest.raises(openai.BadRequestError, match="this model has no tools"):
        model.bind_tools([Seen]).invoke("Hello")


def test_llama_index(address: str, said: tuple[str, str]) -> None:
    """Its class where it is installed; it wants an older `openai` than the tests."""
    pytest.importorskip("llama_index.llms.openai")
    # Not among the dependencies of the tests: see above.
    from llama_index.core.llms import (  # type: ignore[import-not-found,unused-ignore]
        ChatMessage,
        ImageBlock,
        TextBlock,
    )
    from llama_index.llms.openai import OpenAI  # type: ignore[import-not-found,unused-ignore]

    model = OpenAI(
        api_base=f"{address}/v1", api_key="none", model="gpt-4o-mini", max_retries=0, temperature=0
    )
    image = ImageBlock(image=(EXAMPLES / SQUARE).read_bytes(), image_mimetype="image/png")
    messages = [ChatMessage(role="user", blocks=[image, TextBlock(text=COLOR)])]
    first = model.chat(messages)
    assert first.message.content == said[0]
    messages += [first.message, ChatMessage(role="user", content=SHAPE)]
    assert model.chat(messages).message.content == said[1]
    assert list(model.stream_chat(messages))[-1].message.content == said[1]
    assert asyncio.run(model.achat(messages)).message.content == said[1]
    assert model.complete("Hello").text


def test_requests_of_llama_index(address: str, said: tuple[str, str]) -> None:
    image = {"type": "image_url", "image_url": {"url": data_uri(SQUARE)}}
    sent: dict[str, Any] = {
        "messages": [
            {"role": "user", "content": [image, {"type": "text", "text": COLOR}]},
            {"role": "assistant", "content": said[0]},
            {"role": "user", "content": SHAPE},
        ],
        "model": "gpt-4o-mini",
        "stream": False,
        "temperature": 0.0,
    }
    answer = httpx.post(f"{address}/v1/chat/completions", json=sent, timeout=SECONDS)
    assert content(answer) == said[1]


def test_live_vlm_webui(address: str, said: tuple[str, str]) -> None:
    """A frame of a camera each time, text first; it lists the models to choose from."""
    assert [model["id"] for model in httpx.get(f"{address}/v1/models").json()["data"]] == [MODEL]

    async def frame() -> str:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="EMPTY") as client:
            image: Any = {"type": "image_url", "image_url": {"url": data_uri(SQUARE)}}
            text: Any = {"type": "text", "text": COLOR}
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": [text, image]}],
                max_tokens=512,
                temperature=0.7,
            )
        return str(answer.choices[0].message.content).strip()

    assert asyncio.run(frame()) == said[0]


def test_frigate(client: openai.OpenAI) -> None:
    """Its provider `openai`: several frames with captions, and a description as a strict schema."""
    frames: list[Any] = [{"type": "text", "text": "What is in the pictures?"}]
    for number in range(3):
        frames.append({"type": "text", "text": f"Frame {number}:"})
        frames.append(
            {"type": "image_url", "image_url": {"url": data_uri(SQUARE), "detail": "low"}}
        )
    messages: Any = [{"role": "user", "content": frames}]
    assert sorted(model.id for model in client.models.list().data) == [MODEL]
    plain = client.chat.completions.create(model="gpt-4o", messages=messages, timeout=SECONDS)
    assert plain.choices[0].message.content
    schema = {
        "type": "object",
        "properties": {
            "green": {"type": "boolean"},
            "confidence": {"type": "number", "maximum": 1},
        },
        "required": ["green", "confidence"],
        "additionalProperties": False,
    }
    wanted: Any = {
        "type": "json_schema",
        "json_schema": {"name": "review", "strict": True, "schema": schema},
    }
    described = client.chat.completions.create(
        model="gpt-4o", messages=messages, timeout=SECONDS, response_format=wanted, max_tokens=1024
    )
    assert described.choices[0].finish_reason in ("stop", "length")
    streamed = client.chat.completions.create(
        model="gpt-4o",
        messages=messages,
        timeout=SECONDS,
        stream=True,
        stream_options={"include_usage": True},
    )
    usage = [chunk.usage for chunk in streamed if chunk.usage is not None]
    assert [found.completion_tokens > 0 for found in usage] == [True]


def test_home_assistant(address: str, said: tuple[str, str]) -> None:
    """Its integration for servers that speak as OpenAI's: streams, a user, headers and a provider."""

    async def converse() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            image = {"type": "image_url", "image_url": {"url": data_uri(SQUARE)}}
            messages: Any = [
                {"role": "system", "content": "Answer shortly."},
                {"role": "user", "content": [{"type": "text", "text": COLOR}, image]},
            ]
            found = []
            for question in (SHAPE, ""):
                stream = await client.chat.completions.create(
                    model="any",
                    messages=messages,
                    user="01JCONVERSATION",
                    stream=True,
                    extra_headers={"X-Title": "Home Assistant"},
                    extra_body={"provider": {"require_parameters": True}},
                )
                text = "".join(
                    [
                        chunk.choices[0].delta.content or ""
                        async for chunk in stream
                        if chunk.choices
                    ]
                )
                found.append(text)
                messages.append({"role": "assistant", "content": text})
                messages.append({"role": "user", "content": question})
        return found

    assert tuple(asyncio.run(converse())) == said


def test_home_assistant_vision(address: str, said: tuple[str, str]) -> None:
    """LLM Vision posts by hand: a name before each image, the question last, ``detail`` as set."""
    sent = {
        "model": "gpt-4o-mini",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Image 1:"},
                    {
                        "type": "image_url",
                        "image_url": {"url": data_uri(SQUARE), "detail": "high"},
                    },
                    {"type": "text", "text": COLOR},
                ],
            }
        ],
        "max_tokens": 100,
        "temperature": 0.2,
    }
    answer = httpx.post(
        f"{address}/v1/chat/completions",
        content=json.dumps(sent),
        headers={"Content-type": "application/json", "Authorization": "Bearer none"},
        timeout=SECONDS,
    )
    assert content(answer) == said[0]


def test_curl(address: str, said: tuple[str, str]) -> None:
    """``curl -d`` calls everything a form."""
    sent = {"messages": asking(COLOR, data_uri(SQUARE))}
    answer = httpx.post(
        f"{address}/v1/chat/completions",
        content=json.dumps(sent),
        headers={"Content-Type": "application/x-www-form-urlencoded", "Accept": "*/*"},
        timeout=SECONDS,
    )
    assert content(answer) == said[0]


def test_code_of_the_documentation(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLES.parent)
    text = (EXAMPLES.parent / "docs" / "serving.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.S)
    assert len(blocks) == 3 and "http://127.0.0.1:8080" in blocks[0][0]
    names: dict[str, Any] = {}
    for code, expected in blocks:
        code = code.replace("http://127.0.0.1:8080", address)
        exec(code.replace('"timeout": 0.5', f'"timeout": {SECONDS}'), names)
        assert capsys.readouterr().out.rstrip("\n") == expected.rstrip("\n")
