"""What only this server has: deadlines, boxes and points; and how content and tool calls are told apart."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import httpx
import openai
import pytest
from PIL import Image

from edgevlm import VLM, Box, Chunk, Deadline, Stats
from edgevlm.boxes import find_box
from edgevlm.errors import DeadlineError
from edgevlm.server.answers import PendingAnswer
from edgevlm.tool_calls import ToolCall
from tests.support.serving import EXAMPLES, MODEL, SECONDS, asking, data_uri, serving
from tests.support.streams import as_stream

COLOR = "What color is it?"
ZEROS: dict[str, Any] = {name: 0 for name in Stats.__dataclass_fields__ if name != "deadline"}
STATS = Stats(**ZEROS)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(MODEL) as vlm:
        yield vlm


@pytest.fixture
def client(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=2, timeout=SECONDS)


def ask(client: openai.OpenAI, text: str, *names: str, **extra: Any) -> Any:
    """Ask with fields of this server, as a user of OpenAI's client does."""
    return client.chat.completions.create(
        model=MODEL,
        messages=asking(text, *map(data_uri, names)),
        logprobs=extra.pop("logprobs", openai.omit),
        stream=extra.pop("stream", False),
        extra_body=extra,
    )


def own(choice: Any) -> Any:
    """Return the fields of this server."""
    return choice.model_extra["edgevlm"]


def test_an_answer_in_time_is_that_without_a_deadline(client: openai.OpenAI, vlm: VLM) -> None:
    expected = vlm.ask(EXAMPLES / "square.png", COLOR).text
    answer = ask(client, COLOR, "square.png", timeout=SECONDS)
    (choice,) = answer.choices
    assert (choice.message.content, choice.finish_reason) == (expected, "stop")
    deadline = own(choice)["deadline"]
    assert deadline["cut"] is False and 0 < deadline["within"] <= SECONDS
    plain = ask(client, COLOR, "square.png")
    assert plain.choices[0].message.content == expected and not plain.choices[0].model_extra


def test_a_deadline_cuts_the_answer() -> None:
    """``length`` is what clients know; the field of this server has the word."""
    vlm = VLM.from_pretrained(MODEL)
    given: list[dict[str, Any]] = []

    def cut(messages: Any, **options: Any) -> Iterator[Chunk]:
        given.append(options)
        yield Chunk("", ())
        yield Chunk("[1, 2", (1, 2))
        stats = dataclasses.replace(
            STATS, deadline=Deadline(options["within"], "low", None, cut=True)
        )
        yield Chunk("", (), finish_reason="deadline", stats=stats)

    vlm.stream_generate = as_stream(cut)  # type: ignore[method-assign,assignment]
    with serving(vlm) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        for stream in (False, True):
            answer = ask(client, "Count.", timeout=20, stream=stream)
            chunks = list(answer) if stream else [answer]
            choice = chunks[-1].choices[0]
            assert choice.finish_reason == "length"
            within = given[-1]["within"]
            assert 0 < within < 20
            assert own(choice) == {
                "finish_reason": "deadline",
                "boxes": [],
                "points": [],
                "deadline": {
                    "within": within,
                    "detail": "low",
                    "max_image_tokens": None,
                    "cut": True,
                },
            }


def test_no_token_in_time_is_status_504(client: openai.OpenAI, address: str) -> None:
    """OpenAI's client would repeat it, unless the server says no."""
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, COLOR, "scene.png", timeout=0.001)
    assert (caught.value.status_code, caught.value.code) == (504, "DeadlineError")
    assert "0.001 s of this request" in caught.value.message
    assert caught.value.response.request.headers["x-stainless-retry-count"] == "0"
    answer = ask(client, COLOR, "square.png")  # the server goes on
    assert answer.choices[0].message.content
    assert "edgevlm_waiting_requests 0.0" in httpx.get(f"{address}/metrics").text


def test_time_in_the_queue_counts() -> None:
    """Who waits behind a long answer gets the error at the deadline, not when the turn comes."""
    begun, release = threading.Event(), threading.Event()
    vlm = VLM.from_pretrained(MODEL)

    def slow(messages: Any, **options: Any) -> Iterator[Chunk]:
        begun.set()
        assert release.wait(SECONDS)
        yield Chunk("", (), finish_reason="stop", stats=STATS)

    vlm.stream_generate = as_stream(slow)  # type: ignore[method-assign,assignment]
    with serving(vlm) as address:
        url = f"{address}/v1/chat/completions"
        body = {"messages": asking(COLOR, data_uri("square.png"))}
        statuses: list[int] = []
        first = threading.Thread(
            target=lambda: statuses.append(httpx.post(url, json=body, timeout=SECONDS).status_code)
        )
        first.start()
        assert begun.wait(SECONDS)
        late = httpx.post(url, json=body | {"timeout": 0.1}, timeout=SECONDS)
        assert (late.status_code, statuses) == (504, [])
        assert late.json()["error"]["code"] == "DeadlineError"
        release.set()
        first.join()
        assert statuses == [200]


def test_an_error_in_a_stream_is_an_event() -> None:
    vlm = VLM.from_pretrained(MODEL)

    def late(messages: Any, **options: Any) -> Iterator[Chunk]:
        yield Chunk("", ())
        raise DeadlineError("the 0.5 s of this request (within) were over")

    vlm.stream_generate = as_stream(late)  # type: ignore[method-assign,assignment]
    with serving(vlm) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.APIError) as caught:
            list(ask(client, COLOR, timeout=20, stream=True))
        assert caught.value.code == "DeadlineError"
        with pytest.raises(openai.InternalServerError) as failed:
            ask(client, COLOR, timeout=20)
        assert failed.value.status_code == 504
        metrics = httpx.get(f"{address}/metrics").text
        assert 'edgevlm_requests_total{outcome="DeadlineError"} 2.0' in metrics


def test_sixteen_clients_with_and_without_deadlines(client: openai.OpenAI, vlm: VLM) -> None:
    """Each gets the answer of the library, or 504; nobody waits for ever."""
    names = ["square.png", "scene.png"] * 8
    timeouts = [None, SECONDS, 0.001, 0.05] * 4
    expected = {name: vlm.ask(EXAMPLES / name, COLOR).text for name in set(names)}

    async def one(async_client: openai.AsyncOpenAI, name: str, timeout: float | None) -> str | int:
        extra = {} if timeout is None else {"timeout": timeout}
        try:
            answer = await async_client.chat.completions.create(
                model=MODEL, messages=asking(COLOR, data_uri(name)), extra_body=extra
            )
        except openai.InternalServerError as error:
            return error.status_code
        (choice,) = answer.choices
        return "cut" if choice.finish_reason == "length" else choice.message.content or ""

    async def everybody() -> list[str | int]:
        async with openai.AsyncOpenAI(
            base_url=client.base_url, api_key="none", timeout=SECONDS
        ) as async_client:
            return await asyncio.gather(
                *(
                    one(async_client, name, timeout)
                    for name, timeout in zip(names, timeouts, strict=True)
                )
            )

    found = asyncio.run(everybody())
    for name, timeout, answer in zip(names, timeouts, found, strict=True):
        if timeout in (None, SECONDS):
            assert answer == expected[name]
        elif timeout == 0.001:
            assert answer == 504
        else:
            assert answer in (504, "cut", expected[name])


def written_box(text: str | None) -> Box:
    """Return the box that an answer names in percent."""
    sides = find_box(text or "")
    assert sides is not None
    left, top, right, bottom = (side / 100 for side in sides)
    return Box(left, top, right, bottom)


def test_boxes_of_any_answer(client: openai.OpenAI) -> None:
    """The boxes are those that the text names, on the pixels of the picture."""
    question = "Where is the cat?"
    with Image.open(EXAMPLES / "scene.png") as image:
        size = image.size
    for logprobs in (False, True):
        (choice,) = ask(client, question, "scene.png", logprobs=logprobs).choices
        (found,) = own(choice)["boxes"]
        assert own(choice)["points"] == [] and own(choice)["deadline"] is None
        box = written_box(choice.message.content)
        sides = found["left"], found["top"], found["right"], found["bottom"]
        assert sides == (box.left, box.top, box.right, box.bottom)
        assert tuple(found["pixels"]) == box.pixels(*size)
        if not logprobs:
            assert found["probability"] is None
            continue
        content = choice.logprobs.content  # the box is the whole answer
        mean = sum(one.logprob for one in content) / len(content)
        assert found["probability"] == pytest.approx(math.exp(mean), rel=1e-3)
    chunks = list(ask(client, question, "scene.png", stream=True))
    box = written_box("".join(chunk.choices[0].delta.content or "" for chunk in chunks))
    assert own(chunks[-1].choices[0])["boxes"][0]["pixels"] == list(box.pixels(*size))
    assert not any(chunk.choices[0].model_extra for chunk in chunks[:-1])


def test_detect_is_that_of_the_library(client: openai.OpenAI, vlm: VLM) -> None:
    for thing in ("key", "house"):
        expected = vlm.detect(EXAMPLES / "scene.png", thing)
        messages: Any = asking("x", data_uri("scene.png"))
        del messages[0]["content"][-1]  # the question is the model's
        answer = client.chat.completions.create(
            model=MODEL, messages=messages, extra_body={"detect": thing}
        )
        (choice,) = answer.choices
        assert choice.logprobs is None
        found = own(choice)["boxes"]
        assert [(tuple(one["pixels"]), one["label"]) for one in found] == [
            (box.pixels(), thing) for box in expected
        ]
        assert [one["probability"] for one in found] == [
            pytest.approx(box.probability, rel=1e-3) for box in expected
        ]
    with pytest.raises(openai.BadRequestError, match="no question for the task point") as caught:
        ask(client, "?", "scene.png", point="key")
    assert caught.value.param == "point"


def test_a_wrong_schema_is_found_before_the_images(address: str) -> None:
    """As `VLM.extract` does; the image here could not be read."""
    for schema, said in (
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not is not supported"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, ""),
        ({"$ref": "#/$defs/Missing"}, "Missing"),
    ):
        body = {
            "messages": asking("?", "data:image/png;base64,AAAA"),
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": schema},
            },
        }
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=SECONDS)
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "response_format"), error
        assert said in error["message"]


def chunks_of(text: str, size: int, *calls: ToolCall) -> Iterator[Chunk]:
    for start in range(0, len(text), size):
        yield Chunk(text[start : start + size], (1,))
    yield Chunk("", (), finish_reason="stop", stats=STATS, tool_calls=calls)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("text", "content", "called"),
    [
        ("It is <b>.", "It is <b>.", False),
        ("A <tool_cal", "A <tool_cal", False),
        ('<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "", True),
        ('Yes.\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call>', "Yes.\n", True),
        ('Yes.\n<tool_call>\n{"name": "lo', "Yes.\n", False),
    ],
)
def test_content_ends_where_a_call_begins(text: str, content: str, called: bool, size: int) -> None:
    calls = [ToolCall("look", {})] if called else []

    def pending() -> PendingAnswer:
        chunks = chunks_of(text, size, *calls)

        async def others() -> AsyncGenerator[Chunk, None]:
            for chunk in chunks:
                yield chunk

        return PendingAnswer("m", next(chunks), others(), call_begin="<tool_call>\n")

    async def read() -> tuple[Any, list[Any]]:
        whole = await pending().collect()
        events = [event async for event in pending().events(usage=False)]
        return whole, [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    whole, events = asyncio.run(read())
    (choice,) = whole.choices
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == content
    assert (choice.message.content or "") == content
    assert [delta["tool_calls"][0]["function"] for delta in deltas if "tool_calls" in delta] == [
        {"name": "look", "arguments": "{}"} for _ in calls
    ]
    assert choice.finish_reason == ("tool_calls" if called else "stop")
    assert events[-1]["choices"][0]["finish_reason"] == choice.finish_reason
