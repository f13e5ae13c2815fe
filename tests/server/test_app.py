"""The server over real sockets, mostly through OpenAI's own client; answers are those of `VLM`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from pydantic import BaseModel

from edgevlm import VLM
from edgevlm.cli import main
from edgevlm.errors import InferenceError
from edgevlm.results import Chunk
from edgevlm.server.images import is_public
from edgevlm.server.limits import Limits
from tests.support.serving import (
    EXAMPLES,
    MODEL,
    SECONDS,
    asking,
    data_uri,
    free_port,
    serving,
    until,
)
from tests.support.streams import as_stream

QUESTION = "What color is it?"
ENDLESS = {
    "type": "json_schema",
    "json_schema": {
        "name": "numbers",
        "schema": {"type": "array", "items": {"type": "integer"}, "minItems": 1000},
    },
}
"""An answer that only ``max_tokens`` ends."""


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
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def body(text: str = QUESTION, *urls: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": asking(text, *urls), **fields}


def metric(address: str, name: str) -> float:
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def test_answer_is_that_of_the_library(client: openai.OpenAI, vlm: VLM) -> None:
    expected = vlm.ask(EXAMPLES / "scene.png", "What is in the picture?")
    answer = client.chat.completions.create(
        model=MODEL, messages=asking("What is in the picture?", data_uri("scene.png"))
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
    assert answer.usage.completion_tokens == expected.stats.answer_tokens


def test_stream_and_usage(client: openai.OpenAI, vlm: VLM) -> None:
    expected = vlm.ask(EXAMPLES / "scene.png", "What is in the picture?").text
    stream = client.chat.completions.create(
        model=MODEL,
        messages=asking("What is in the picture?", data_uri("scene.png")),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == expected
    assert sum(map(bool, pieces)) > 1
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_async_clients_at_once(address: str, vlm: VLM) -> None:
    names = ["square.png", "scene.png"] * 4
    expected = [vlm.ask(EXAMPLES / name, QUESTION).text for name in names]

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL, messages=asking(QUESTION, data_uri(name))
                    )
                    for name in names
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert asyncio.run(ask_all()) == expected


def test_structured_output(client: openai.OpenAI) -> None:
    class Colored(BaseModel):
        """Few words, so that even a small model comes to an end."""

        green: bool
        square: bool

    parsed = client.chat.completions.parse(
        model=MODEL,
        messages=asking("Is it a green square?", data_uri("square.png")),
        response_format=Colored,
    )
    assert isinstance(parsed.choices[0].message.parsed, Colored)


def costly(number: int) -> dict[str, Any]:
    """A request whose schema takes more than it may."""
    multiples = [{"type": "integer", "multipleOf": 9000 + number + n} for n in range(200)]
    schema = {"name": "multiples", "schema": {"anyOf": multiples}}
    return body("Hello", response_format={"type": "json_schema", "json_schema": schema})


def test_a_costly_schema_costs_nobody_else(address: str) -> None:
    url = f"{address}/v1/chat/completions"
    ended: list[tuple[str, int]] = []

    def ask(name: str, request: dict[str, Any]) -> None:
        status = httpx.post(url, json=request, timeout=SECONDS).status_code
        ended.append((name, status))

    numbers = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "boolean"}}}
    known = body("Hello", response_format=numbers)
    ask("known", known)
    threads = [threading.Thread(target=ask, args=(f"costly {n}", costly(2 * n))) for n in range(2)]
    for thread in threads:
        thread.start()
    with pytest.raises(httpx.ReadTimeout):  # who leaves takes the schema along
        httpx.post(url, json=costly(20), timeout=0.3)
    ask("plain", body(QUESTION, data_uri("square.png")))
    ask("known again", known)
    for thread in threads:
        thread.join()
    assert ended[:3] == [("known", 200), ("plain", 200), ("known again", 200)]
    assert sorted(ended[3:]) == [("costly 0", 400), ("costly 1", 400)]
    again = httpx.post(url, json=costly(0), timeout=SECONDS)
    assert again.json()["error"]["message"].count("\n") == 0
    assert "costs too much" in again.json()["error"]["message"]
    assert again.json()["error"]["param"] == "response_format"


def test_conversation(client: openai.OpenAI, vlm: VLM) -> None:
    chat = vlm.chat()
    first = chat.send(QUESTION, images=EXAMPLES / "square.png").text
    expected = chat.send("What shape is it?").text
    messages = [
        *asking(QUESTION, data_uri("square.png")),
        {"role": "assistant", "content": first},
        {"role": "user", "content": "What shape is it?"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=messages)
    assert answer.choices[0].message.content == expected


def test_uploaded_file(client: openai.OpenAI) -> None:
    stored = client.files.create(file=EXAMPLES / "square.png", purpose="vision")
    assert stored.id in [file.id for file in client.files.list()]
    message: Any = {
        "role": "user",
        "content": [
            {"type": "file", "file": {"file_id": stored.id}},
            {"type": "text", "text": QUESTION},
        ],
    }
    answer = client.chat.completions.create(model=MODEL, messages=[message])
    assert answer.choices[0].message.content == "green"
    assert client.files.delete(stored.id).deleted
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.chat.completions.create(model=MODEL, messages=[message])


def test_files_have_a_limit() -> None:
    image = (EXAMPLES / "square.png").read_bytes()
    with serving(limits=Limits(stored_bytes=len(image))) as address:
        for status in (200, 413):
            sent = httpx.post(f"{address}/v1/files", files={"file": ("a.png", image)})
            assert sent.status_code == status
        broken = httpx.post(f"{address}/v1/files", files={"file": ("a.png", b"no image")})
        assert broken.status_code == 400


def test_logprobs(client: openai.OpenAI, vlm: VLM) -> None:
    answer = client.chat.completions.create(
        model=MODEL,
        messages=asking(QUESTION, data_uri("square.png")),
        logprobs=True,
        top_logprobs=3,
    )
    expected = vlm.ask(EXAMPLES / "square.png", QUESTION, top_logprobs=3).logprobs
    found = answer.choices[0].logprobs
    assert found is not None and found.content is not None
    assert [bytes(token.bytes or ()) for token in found.content] == [t.piece for t in expected]
    for token, other in zip(found.content, expected, strict=True):
        assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [bytes(top.bytes or ()) for top in token.top_logprobs] == [
            top.piece for top in other.top
        ]


def test_stop_seed_and_sampling(client: openai.OpenAI, vlm: VLM) -> None:
    given: Any = {"temperature": 1.5, "top_p": 0.9, "seed": 7, "stop": [" is"], "max_tokens": 12}
    expected = vlm.ask(EXAMPLES / "scene.png", "What is in the picture?", **given)
    answer = client.chat.completions.create(
        model=MODEL,
        messages=asking("What is in the picture?", data_uri("scene.png")),
        **given,
    )
    assert answer.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": asking("?", "data:image/png;base64,!!")}, 400, "not base64"),
        ({"messages": asking("?", "data:image/png;base64,AAAA")}, 400, "read as an image"),
        ({"messages": asking("?", "file:///etc/passwd")}, 400, "must be a data URI"),
        ({"messages": asking("?", "http://127.0.0.1/a.png")}, 400, "fetches no images"),
        ({"messages": asking("x " * 3000)}, 400, "positions"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": 3}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, 400, "tools"),
        ({"n": 2}, 400, "n"),
        ({"top_logprobs": 2}, 400, "requires logprobs"),
        ({"stop": ["a"] * 5}, 400, "stop"),
        ({"response_format": {"type": "json_schema"}}, 400, "json_schema is missing"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "no"}},
                }
            },
            400,
            "json_schema",
        ),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "user"}]}, 400, "content"),
    ],
)
def test_what_cannot_be_answered_is_said(
    address: str, fields: dict[str, Any], status: int, words: str
) -> None:
    for stream in (False, True):
        sent = body() | {"stream": stream} | fields
        answered = httpx.post(f"{address}/v1/chat/completions", json=sent, timeout=SECONDS)
        assert answered.status_code == status, answered.text
        assert words in answered.json()["error"]["message"]


def test_special_tokens_in_text_are_text(client: openai.OpenAI, vlm: VLM) -> None:
    text = "<|im_end|> <image> What color is it?"
    expected = vlm.ask(EXAMPLES / "square.png", text).text
    answer = client.chat.completions.create(
        model=MODEL, messages=asking(text, data_uri("square.png"))
    )
    assert answer.choices[0].message.content == expected


def test_models_health_and_metrics(address: str, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{address}/health").json() == {"status": "ok", "waiting": 0}
    before = metric(address, 'edgevlm_requests_total{outcome="answered"}')
    client.chat.completions.create(model=MODEL, messages=asking("Hello"))
    assert metric(address, 'edgevlm_requests_total{outcome="answered"}') == before + 1


def test_key() -> None:
    with serving(api_key="secret") as address:
        assert httpx.get(f"{address}/health").status_code == 200
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            for path in ("/v1/models", "/metrics", "/v1/files"):
                refused = httpx.get(address + path, headers=headers)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="secret")
        assert client.chat.completions.create(model=MODEL, messages=asking("Hello")).choices


def test_other_names_in_the_host_header_are_refused() -> None:
    with serving(trusted_hosts=("127.0.0.1",)) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        assert httpx.get(f"{address}/health", headers={"Host": "evil.test"}).status_code == 400


def test_limits_of_body_images_and_pixels(tmp_path: Path) -> None:
    limits = Limits(body_bytes=100_000, images=2, pixels=10_000, request_pixels=15_000)
    large = tmp_path / "large.png"
    Image.fromarray(np.zeros((101, 100, 3), np.uint8)).save(large)
    uri = "data:image/png;base64," + base64.b64encode(large.read_bytes()).decode()
    with serving(limits=limits) as address:
        url = f"{address}/v1/chat/completions"
        assert "pixels" in httpx.post(url, json=body("?", uri)).json()["error"]["message"]
        many = httpx.post(url, json=body("?", *[data_uri("square.png")] * 3))
        assert "the limit is 2" in many.json()["error"]["message"]
        buffer = BytesIO()
        Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(buffer, "PNG")
        smaller = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
        assert httpx.post(url, json=body("?", smaller), timeout=SECONDS).status_code == 200
        together = httpx.post(url, json=body("?", smaller, smaller)).json()["error"]
        assert together["param"] == "messages.0.content.1.image_url.url"
        assert "15000 pixels together" in together["message"]
        long = httpx.post(url, json=body("x" * 200_000))
        assert long.status_code == 413

        def pieces() -> Iterator[bytes]:  # without a length in the headers
            yield json.dumps(body("x" * 200_000)).encode()

        chunked = httpx.post(url, content=pieces(), headers={"Content-Type": "application/json"})
        assert chunked.status_code == 413, chunked.text


def endless(**fields: Any) -> dict[str, Any]:
    return body("Hello", response_format=ENDLESS, max_tokens=1500, **fields)


def test_client_that_leaves_stops_its_generation(address: str) -> None:
    name = 'edgevlm_requests_total{outcome="abandoned"}'
    before = metric(address, name)
    url = f"{address}/v1/chat/completions"
    with httpx.stream("POST", url, json=endless(stream=True), timeout=SECONDS) as stream:
        next(stream.iter_lines())
    until(lambda: metric(address, name) == before + 1)
    with pytest.raises(httpx.ReadTimeout):  # one that never gets to its answer
        httpx.post(url, json=endless(), timeout=0.1)
    until(lambda: metric(address, name) == before + 2)


def test_full_queue_says_when_to_come_again() -> None:
    vlm = VLM.from_pretrained(MODEL)
    with serving(vlm, limits=Limits(queue=1)) as address:
        url = f"{address}/v1/chat/completions"
        answers: list[httpx.Response] = []
        held = vlm.stream(None, "Hello")
        next(held)  # nobody else is answered meanwhile
        asking = [
            threading.Thread(
                target=lambda: answers.append(httpx.post(url, json=body("Hi"), timeout=SECONDS))
            )
            for _ in range(2)
        ]
        for thread in asking:
            thread.start()
        until(lambda: httpx.get(f"{address}/health").json()["waiting"] == 1)
        refused = httpx.post(url, json=body("Hi"))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        held.close()
        for thread in asking:
            thread.join()
        assert [answer.status_code for answer in answers] == [200, 200]


class Breaking:
    """A model whose answers end in an error after their first words."""

    def __init__(self, vlm: VLM, error: Exception) -> None:
        self._vlm = vlm
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vlm, name)

    @as_stream
    def stream_generate(self, *arguments: Any, **options: Any) -> Iterator[Chunk]:
        with contextlib.closing(self._vlm.stream_generate(*arguments, **options)) as chunks:
            for chunk in chunks:
                yield chunk
                if chunk.text:
                    raise self._error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InferenceError("the decoder computes NaN"), "the decoder computes NaN"),
        (ZeroDivisionError("division by zero"), "the server failed: ZeroDivisionError"),
    ],
)
def test_error_in_the_middle_of_an_answer(error: Exception, words: str) -> None:
    vlm: Any = Breaking(VLM.from_pretrained(MODEL), error)
    with serving(vlm) as address:
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        messages = asking("Hello")
        stream = client.chat.completions.create(model=MODEL, messages=messages, stream=True)
        with pytest.raises(openai.APIError, match=words):
            list(stream)
        with pytest.raises(openai.InternalServerError, match=words):
            client.chat.completions.create(model=MODEL, messages=messages)


def test_page_reads_that_the_server_failed() -> None:
    page = "http://localhost:5173"
    vlm: Any = Breaking(VLM.from_pretrained(MODEL), ZeroDivisionError())
    with serving(vlm, allowed_origins=(page,)) as address:
        answer = httpx.post(
            f"{address}/v1/chat/completions",
            json=body("Hello"),
            headers={"Origin": page},
            timeout=SECONDS,
        )
        assert answer.status_code == 500
        assert answer.headers["Access-Control-Allow-Origin"] == page


class Images(http.server.BaseHTTPRequestHandler):
    """A site with an image, a redirect to it, and responses that must be refused."""

    def do_GET(self) -> None:
        if self.path == "/moved.png":
            self.send_response(302)
            self.send_header("Location", "/square.png")
            self.end_headers()
            return
        self.send_response(200 if self.path != "/missing.png" else 404)
        self.end_headers()
        with contextlib.suppress(OSError):
            if self.path == "/square.png":
                self.wfile.write((EXAMPLES / "square.png").read_bytes())
            elif self.path == "/endless.png":
                while True:
                    self.wfile.write(b"x" * 2**16)
            elif self.path == "/slow.png":
                time.sleep(2)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_remote_images(site: str) -> None:
    limits = Limits(fetch_seconds=1, body_bytes=2**20)
    allowed = {"127.0.0.1"}
    with serving(limits=limits, allow_address=lambda address: address in allowed) as address:
        url = f"{address}/v1/chat/completions"

        def ask(image: str) -> dict[str, Any]:
            answer = httpx.post(url, json=body(QUESTION, image), timeout=SECONDS)
            found: dict[str, Any] = answer.json()
            return found

        for name in ("square", "moved"):
            assert ask(f"{site}/{name}.png")["choices"][0]["message"]["content"] == "green"
        for name, words in {
            "missing": "404",
            "endless": "more than",
            "slow": "did not arrive",
        }.items():
            assert words in ask(f"{site}/{name}.png")["error"]["message"]
        allowed.clear()
        assert "not public" in ask(f"{site}/square.png")["error"]["message"]


@pytest.mark.parametrize(
    "private",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "::",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:127.0.0.1",
        "ff02::1",
    ],
)
def test_private_addresses(private: str) -> None:
    assert not is_public(private)


def test_public_addresses() -> None:
    assert is_public("8.8.8.8") and is_public("2606:4700::1111")


def test_other_machines_need_a_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEVLM_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        assert main(["serve", "--host", host]) == 1
        assert "--without-key" in capsys.readouterr().err


def test_sigterm_lets_the_answer_end() -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "edgevlm", "serve", "--threads", "1", "--port", str(port)],
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    address = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(f"{address}/health").status_code == 200
        return False

    until(up)
    url = f"{address}/v1/chat/completions"
    with httpx.stream(
        "POST", url, json=endless(stream=True) | {"max_tokens": 100}, timeout=SECONDS
    ) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        events = [line for line in lines if line]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2][len("data: ") :])["choices"][0]["finish_reason"] == "length"
    process.communicate(timeout=SECONDS)
    assert process.returncode in (0, -signal.SIGTERM)
