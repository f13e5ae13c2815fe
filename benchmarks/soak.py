"""Test the server with misbehaving clients: ``python -m benchmarks.soak [--seconds 600] [--seed 0]``.

It starts ``edgevlm serve`` with the built-in model. Good clients ask questions with known answers and check
the answers. Bad clients disconnect early, send partial requests, garbage, bodies that are too large, invalid
schemas and images, or do not read the response. The result has the outcomes of each behavior, unexpected
outcomes, and the server's memory, sockets and threads before and after. The exit status is 1 after an
unexpected outcome.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from edgevlm.runtimes import system

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = "edgevlm-nano"
CHAT = "/v1/chat/completions"

GOOD, BAD = 3, 10
"""Number of good and bad clients."""

PATIENCE = 120.0
"""Longest time for an answer in seconds; a longer one is a hang."""

BOMBS = (100_000, 700_000)
"""Numbers of characters of special tokens in one message."""

BAD_SCHEMAS: tuple[Any, ...] = (
    {"type": "nonsense"},
    {"$ref": "#"},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
    {"pattern": "("},
    {"type": "integer", "multipleOf": 9_999_991},
    {"not": {}},
    {"enum": []},
    {"uniqueItems": True},
    {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(1000)}},
    {"allOf": [{"type": "integer", "multipleOf": 9973}, {"multipleOf": 9967}]},
)


@dataclass
class Found:
    """Outcomes of a run."""

    answers: int = 0
    """Right answers of the good clients."""
    busy: int = 0
    """Responses 503 to the good clients."""
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)

    def note(self, name: str, outcome: str, expected: tuple[str, ...]) -> None:
        """Count an outcome; 503 is always expected, because the queue may be full."""
        self.outcomes.setdefault(name, Counter())[outcome] += 1
        if outcome not in (*expected, "503"):
            self.unexpected.append(f"{name}: {outcome}")


def image(name: str) -> dict[str, Any]:
    data = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def asking(*content: Any, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], **fields}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


QUESTIONS: tuple[dict[str, Any], ...] = (
    asking(image("square.png"), text("What color is it?")),
    asking(image("shapes.png"), text("What color is the shape at the top left?")),
    asking(image("scene.png"), text("Where is the key?")),
    asking(image("scene.png"), image("changed.png"), text("What changed?")),
    asking(image("square.png"), text("What is in the picture?"), stream=True),
    asking(image("square.png"), text("What shape is it?"), timeout=600),
    asking(
        image("square.png"),
        text("What color is it?"),
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "color", "schema": {"enum": ["red", "green", "blue"]}},
        },
    ),
)


async def answer(http: httpx.AsyncClient, body: dict[str, Any]) -> tuple[int, str]:
    """Return status and text of an answer."""
    response = await http.post(CHAT, json=body)
    if response.status_code != httpx.codes.OK:
        return response.status_code, response.text[:300]
    if not body.get("stream"):
        return 200, response.json()["choices"][0]["message"]["content"]
    events = [line[len("data: ") :] for line in response.text.splitlines() if line]
    if events[-1] != "[DONE]":
        return 200, f"a stream that ended with {events[-1]!r}"
    chunks = [json.loads(event)["choices"] for event in events[:-1]]
    return 200, "".join(chunk[0]["delta"].get("content") or "" for chunk in chunks if chunk)


class Soak:
    """All clients of one run."""

    def __init__(self, port: int, seconds: float, seed: int) -> None:
        self.found = Found()
        self._port = port
        self._url = f"http://127.0.0.1:{port}"
        self._seconds = seconds
        self._end = 0.0
        self._seed = seed
        self._files: list[str] = []
        self._right: list[str] = []

    async def run(self) -> None:
        """Run all clients until the time is over."""
        async with self._client() as http:
            for body in QUESTIONS:
                status, content = await answer(http, body)
                if status != httpx.codes.OK:
                    raise RuntimeError(f"the server does not answer: {status} {content}")
                self._right.append(content)
        self._end = time.monotonic() + self._seconds
        good = [self._good(index) for index in range(GOOD)]
        bad = [self._bad(index) for index in range(BAD)]
        await asyncio.gather(*good, *bad)

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self._url, timeout=PATIENCE)

    async def _good(self, index: int) -> None:
        choose = random.Random(f"good {self._seed} {index}")
        async with self._client() as http:
            while time.monotonic() < self._end:
                which = choose.randrange(len(QUESTIONS))
                try:
                    status, content = await answer(http, QUESTIONS[which])
                except httpx.HTTPError as error:
                    self.found.unexpected.append(f"a good client: {type(error).__name__} {error}")
                    continue
                if status == httpx.codes.SERVICE_UNAVAILABLE:
                    self.found.busy += 1
                    await asyncio.sleep(1)
                elif (status, content) == (200, self._right[which]):
                    self.found.answers += 1
                else:
                    self.found.unexpected.append(
                        f"question {which} was answered {status} {content!r}"
                    )

    async def _bad(self, index: int) -> None:
        choose = random.Random(f"bad {self._seed} {index}")
        behaviors: list[Callable[[random.Random], Awaitable[None]]] = [
            self.leaves_at_once,
            self.sends_a_partial_request,
            self.drips,
            self.sends_garbage,
            self.sends_too_much,
            self.asks_for_a_bad_schema,
            self.sends_a_bad_image,
            self.spells_special_tokens,
            self.uploads,
            self.does_not_read,
            self.leaves_in_the_middle,
            self.uses_other_methods,
            self.speaks_an_older_http,
            self.pipelines,
            self.keeps_a_connection,
            self.sends_bad_json,
            self.opens_many_connections,
            self.has_no_time,
        ]
        while time.monotonic() < self._end:
            behavior = choose.choice(behaviors)
            try:
                await asyncio.wait_for(behavior(choose), PATIENCE)
            except asyncio.TimeoutError:
                self.found.note(behavior.__name__, "a hang", ())
            except (OSError, httpx.HTTPError, asyncio.IncompleteReadError) as error:
                self.found.note(behavior.__name__, f"{type(error).__name__} {error}", ())

    # Behaviors of bad clients ------------------------------------------------------------------

    async def leaves_at_once(self, choose: random.Random) -> None:
        async with self._connection():
            await asyncio.sleep(choose.random() * 0.1)
        self.found.note("leaves_at_once", "left", ("left",))

    async def sends_a_partial_request(self, choose: random.Random) -> None:
        whole = self._request(QUESTIONS[choose.randrange(len(QUESTIONS))])
        async with self._connection() as (_, writer):
            writer.write(whole[: choose.randrange(len(whole) - 1)])
            await writer.drain()
            await asyncio.sleep(choose.random())
        self.found.note("sends_a_partial_request", "left", ("left",))

    async def drips(self, choose: random.Random) -> None:
        """Send single bytes slowly, in the headers or the body, until one side closes the connection."""
        whole = self._request(QUESTIONS[0])
        start = choose.choice([0, 40, whole.index(b"\r\n\r\n") + 10])
        async with self._connection() as (reader, writer):
            writer.write(whole[:start])
            outcome = "left"
            end = min(self._end, time.monotonic() + choose.random() * 45)
            for byte in whole[start:]:
                if time.monotonic() > end:
                    break
                writer.write(bytes([byte]))
                with contextlib.suppress(asyncio.TimeoutError):
                    outcome = await asyncio.wait_for(self._status(reader), 0.5)
                    break
        self.found.note("drips", outcome, ("left", "408", "closed"))

    async def sends_garbage(self, choose: random.Random) -> None:
        garbage = choose.choice(
            [
                choose.randbytes(choose.randrange(1, 5000)) + b"\r\n\r\n",
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + choose.randbytes(500),
                b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
                b"GET /health HTTP/9.9\r\n\r\n",
                b"POST /v1/files HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
                b"POST /v1/files HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            ]
        )
        async with self._connection() as (reader, writer):
            with contextlib.suppress(OSError):
                writer.write(garbage)
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
            outcome = await self._status(reader)
        self.found.note("sends_garbage", outcome, ("400", "closed"))

    async def sends_too_much(self, choose: random.Random) -> None:
        """Send a body of more than 32 MiB, with or without a Content-Length."""
        size = 40 * 2**20
        with_length = choose.random() < 0.5
        length = f"Content-Length: {size}" if with_length else "Transfer-Encoding: chunked"
        head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\n{length}\r\n\r\n"
        piece = b" " * 2**16
        if not with_length:
            piece = b"%x\r\n" % len(piece) + piece + b"\r\n"
        async with self._connection() as (reader, writer):
            writer.write(head.encode())
            status = asyncio.ensure_future(self._status(reader))
            with contextlib.suppress(OSError):
                for _ in range(size // 2**16):
                    if status.done():
                        break
                    writer.write(piece)
                    await writer.drain()
            outcome = await status
        self.found.note("sends_too_much", outcome, ("413", "closed"))

    async def asks_for_a_bad_schema(self, choose: random.Random) -> None:
        schema = choose.choice(BAD_SCHEMAS)
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        await self._asks("asks_for_a_bad_schema", asking(text("Hi"), response_format=form), "400")

    async def sends_a_bad_image(self, choose: random.Random) -> None:
        file = (EXAMPLES / "square.png").read_bytes()
        data = choose.choice([file[: choose.randrange(60)], choose.randbytes(1000), b"", b"GIF89a"])
        url = "data:image/png;base64," + base64.b64encode(data).decode()
        url = choose.choice(
            [url, url[:-1] + "*", "https://example.org/a.png", "file:///etc/passwd"]
        )
        part = {"type": "image_url", "image_url": {"url": url}}
        await self._asks("sends_a_bad_image", asking(part, text("?")), "400")

    async def spells_special_tokens(self, choose: random.Random) -> None:
        token = choose.choice(["<image>", "<|im_end|>", "<end_of_utterance>", "<", "\x00", "é"])
        words = token * (choose.choice(BOMBS) // len(token))
        await self._asks("spells_special_tokens", asking(text(words)), "400")

    async def uploads(self, choose: random.Random) -> None:
        """Upload a file, and sometimes delete an earlier one."""
        async with self._client() as http:
            good = choose.random() < 0.5
            data = (EXAMPLES / "square.png").read_bytes() if good else choose.randbytes(5000)
            response = await http.post("/v1/files", files={"file": ("a.png", data)})
            self.found.note("uploads", str(response.status_code), ("200",) if good else ("400",))
            if response.status_code == httpx.codes.OK:
                self._files.append(response.json()["id"])
            if len(self._files) > choose.randrange(40):
                response = await http.delete(f"/v1/files/{self._files.pop(0)}")
                self.found.note("forgets a file", str(response.status_code), ("200",))

    async def does_not_read(self, choose: random.Random) -> None:
        async with self._connection(limit=1024) as (_, writer):
            body = asking(text("Tell me everything."), stream=True, max_tokens=200)
            for _ in range(choose.randrange(1, 4)):
                writer.write(self._request(body))
            await asyncio.sleep(choose.random() * 5)
        self.found.note("does_not_read", "left", ("left",))

    async def leaves_in_the_middle(self, choose: random.Random) -> None:
        body = QUESTIONS[choose.randrange(len(QUESTIONS))] | {"stream": choose.random() < 0.5}
        async with self._connection() as (reader, writer):
            writer.write(self._request(body))
            await writer.drain()
            if body["stream"]:
                await reader.read(choose.randrange(1, 2000))
            else:
                await asyncio.sleep(choose.random() * 0.2)
        self.found.note("leaves_in_the_middle", "left", ("left",))

    async def uses_other_methods(self, choose: random.Random) -> None:
        method = choose.choice(["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"])
        path = choose.choice([CHAT, "/health", "/nowhere", "/v1/models", "/../../etc/passwd"])
        async with self._client() as http:
            response = await http.request(method, path, content=b"x" * choose.randrange(1000))
        self.found.note("uses_other_methods", str(response.status_code), ("400", "404", "405"))

    async def speaks_an_older_http(self, choose: random.Random) -> None:
        async with self._connection() as (reader, writer):
            writer.write(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            outcome = await self._status(reader)
            await reader.read()
        self.found.note("speaks_an_older_http", outcome, ("200",))

    async def pipelines(self, choose: random.Random) -> None:
        times = choose.randrange(2, 30)
        async with self._connection() as (reader, writer):
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * times)
            outcomes = {await self._status(reader) for _ in range(times)}
        for outcome in outcomes:
            self.found.note("pipelines", outcome, ("200",))

    async def keeps_a_connection(self, choose: random.Random) -> None:
        async with self._client() as http:
            for _ in range(choose.randrange(50)):
                response = await http.get(choose.choice(["/health", "/metrics", "/v1/files"]))
                self.found.note("keeps_a_connection", str(response.status_code), ("200",))

    async def sends_bad_json(self, choose: random.Random) -> None:
        content = choose.choice(
            [
                b"{",
                b"[" * 100_000,
                b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
                b"\xff\xfe",
                b'{"model": "' + MODEL.encode() + b'", "messages": []}',
                b'{"messages": [{"role": "user", "content": 5}]}',
                b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1e400}',
                b"null",
                b"9" * 10_000,
            ]
        )
        async with self._client() as http:
            headers = {"content-type": "application/json"}
            response = await http.post(CHAT, content=content, headers=headers)
        self.found.note("sends_bad_json", str(response.status_code), ("400",))

    async def opens_many_connections(self, choose: random.Random) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(choose.randrange(15)):
                await stack.enter_async_context(self._connection())
            await asyncio.sleep(choose.random())
        self.found.note("opens_many_connections", "left", ("left",))

    async def has_no_time(self, choose: random.Random) -> None:
        body = asking(image("scene.png"), text("Where is the key?"), stream=choose.random() < 0.5)
        body["timeout"] = choose.choice([0.001, 0.02, 0.1, 0.5])
        async with self._client() as http:
            response = await http.post(CHAT, json=body)
        late = response.status_code == 504 or '"code": "DeadlineError"' in response.text
        outcome = "late" if late else str(response.status_code)
        self.found.note("has_no_time", outcome, ("200", "late"))

    # Helpers -----------------------------------------------------------------------------------

    async def _asks(self, name: str, body: dict[str, Any], expected: str) -> None:
        async with self._client() as http:
            response = await http.post(CHAT, json=body)
        if response.status_code == int(expected):
            message = response.json()["error"]["message"]
            if len(message) > 1000 or "Traceback" in message or "site-packages" in message:
                self.found.unexpected.append(f"{name}: a message such as {message[:200]!r}")
        self.found.note(name, str(response.status_code), (expected,))

    def _request(self, body: dict[str, Any]) -> bytes:
        data = json.dumps(body).encode()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    @contextlib.asynccontextmanager
    async def _connection(self, limit: int = 2**16) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=limit)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _status(self, reader: asyncio.StreamReader) -> str:
        """Read the next response; return its status, or ``closed`` if there is none."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return "closed"
        lengths = [
            int(line.partition(b":")[2])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ]
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(lengths[0] if lengths else 0)
        return head.split()[1].decode()


async def watch(process: int, held: list[float]) -> None:
    """Append the memory of a process in megabytes once a second until it is cancelled."""
    while True:
        memory = system.resident_memory(process)
        if memory is not None:
            held.append(memory / 1e6)
        await asyncio.sleep(1)


def holds(process: int) -> dict[str, int]:
    """Return the sockets and threads of a process; empty if the system does not report them."""
    folder = Path(f"/proc/{process}")
    if not folder.exists():
        return {}
    sockets = 0
    for descriptor in (folder / "fd").iterdir():
        with contextlib.suppress(OSError):
            sockets += str(descriptor.readlink()).startswith("socket:")
    return {"sockets": sockets, "threads": len(list((folder / "task").iterdir()))}


async def idle(port: int) -> None:
    """Wait until the server has no request."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE) as http:
        for _ in range(600):
            if (await http.get("/health")).json() == {"status": "ok", "waiting": 0}:
                break
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)


async def soak(port: int, process: int, seconds: float, seed: int) -> dict[str, Any]:
    before = holds(process)
    held: list[float] = []
    watching = asyncio.ensure_future(watch(process, held))
    clients = Soak(port, seconds, seed)
    await clients.run()
    await idle(port)
    watching.cancel()
    found = clients.found
    return {
        "seconds": seconds,
        "seed": seed,
        "good_answers": found.answers,
        "good_told_to_come_again": found.busy,
        "unexpected": len(found.unexpected),
        "first_unexpected": found.unexpected[:20],
        "outcomes": {name: dict(counts) for name, counts in sorted(found.outcomes.items())},
        "memory_mb": {
            "start": held[0] if held else None,
            "peak": max(held, default=None),
            "after": held[-1] if held else None,
        },
        "before": before,
        "after": holds(process),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "edgevlm", "serve", "--port", str(port)]
    with subprocess.Popen(command) as server:
        try:
            for _ in range(600):
                with contextlib.suppress(httpx.ConnectError):
                    httpx.get(f"http://127.0.0.1:{port}/health")
                    break
                time.sleep(0.1)
            found = asyncio.run(soak(port, server.pid, options.seconds, options.seed))
            server.terminate()
            found["exit_status"] = server.wait(60)
        finally:
            server.kill()
    print(json.dumps(found, indent=2))
    return 1 if found["unexpected"] or not found["good_answers"] else 0


if __name__ == "__main__":
    sys.exit(main())
