"""What clients cannot do to the server: hold connections for ever, fill its memory, keep it from ending."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from edgevlm import VLM
from edgevlm.server.app import create_app
from edgevlm.server.connection import connection_options
from edgevlm.server.limits import Limits

MODEL = "edgevlm-nano"
SECONDS = 60
"""That a test waits for something at most."""

SHORT = Limits(
    header_seconds=0.5,
    body_seconds=0.5,
    body_bytes_per_second=2_000,
    idle_seconds=0.5,
    unread_seconds=0.5,
    connections=5,
    in_flight_bytes=200_000,
    stalled_seconds=0.3,
)
ROOT = Path(__file__).resolve().parents[2]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(limits: Limits, vlm: VLM | None = None) -> Iterator[int]:
    """Port of a server in a thread, with the connections that ``edgevlm serve`` has."""
    app = create_app(vlm or VLM.from_pretrained(MODEL, threads=1), model=MODEL, limits=limits)
    config = uvicorn.Config(
        app, log_level="error", timeout_graceful_shutdown=5, **connection_options(limits)
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(SHORT) as port:
        yield port


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=SECONDS)


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes the connection, which it has to."""
    read = b""
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            read += data
    return read


def answer(connection: socket.socket) -> bytes:
    """One answer of those that a connection may still bring."""
    read = b""
    while not (found := re.search(rb"content-length: (\d+).*?\r\n\r\n(.*)", read, re.S)) or len(
        found[2]
    ) < int(found[1]):
        data = connection.recv(65536)
        assert data, f"the connection ended after {read!r}"
        read += data
    return read


def drip(connection: socket.socket, data: bytes, every: float = 0.05) -> bytes:
    """Send a byte now and then until the server has enough of it; its answer."""
    for byte in data:
        try:
            connection.send(bytes([byte]))
        except OSError:
            break
        # A byte after the server closed would reset the connection, and its answer could be lost.
        if select.select([connection], [], [], every)[0]:
            break
    else:
        raise AssertionError("the server took all of it")
    return rest(connection)


def error(whole: bytes) -> dict[str, Any]:
    """Of an answer that must be one whole refusal in OpenAI's form."""
    head, _, body = whole.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head.lower()
    found: dict[str, Any] = json.loads(body)["error"]
    return {"status": int(head.split()[1]), **found}


def test_headers_that_never_end(port: int) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 1000
    with connected(port) as connection:
        found = error(drip(connection, request))
    assert found["status"] == 408 and found["code"] == "request_timeout"


@pytest.mark.parametrize("said", [b"", b"\r\n" * 500, b"G"])
def test_connections_without_a_request_are_closed(port: int, said: bytes) -> None:
    with connected(port) as connection:
        if len(said) > 1:
            drip(connection, said)
        else:
            connection.sendall(said)
            rest(connection)


def test_bodies_that_come_too_slowly(port: int) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    )
    with connected(port) as connection:
        connection.sendall(head)
        found = error(drip(connection, b"{" * 1000))
    assert found["status"] == 408 and "1 more" not in found["message"]
    assert "too slowly" in found["message"]


def test_a_slow_body_that_is_fast_enough_is_read(port: int) -> None:
    body = b'{"model": "edgevlm-nano", "messages": []}' + b" " * 20_000
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n"
    with connected(port) as connection:
        connection.sendall((head + "Content-Type: application/json\r\n\r\n").encode())
        for start in range(0, len(body), 2000):
            connection.sendall(body[start : start + 2000])
            time.sleep(0.1)  # a second in all, twice body_seconds
        assert answer(connection).startswith(b"HTTP/1.1 400")


def test_what_nobody_reads_of_a_refused_body_ends_too(port: int) -> None:
    head = b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n"
    with connected(port) as connection:
        connection.sendall(head)
        assert answer(connection).startswith(b"HTTP/1.1 404")
        drip(connection, b"x" * 1000)


def test_a_connection_may_be_used_again_and_not_for_ever(port: int) -> None:
    with connected(port) as connection:
        for _ in range(3):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer(connection).startswith(b"HTTP/1.1 200")

        rest(connection)
    with connected(port) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer(connection)
        found = error(drip(connection, b"GET /health HTTP/1.1\r\nX: " + b"x" * 1000))
    assert found["status"] == 408


def test_a_client_that_does_not_read_is_left(port: int) -> None:
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(port) as connection:
        connection.settimeout(1)
        with contextlib.suppress(OSError):
            for _ in range(2000):  # tens of megabytes of answers
                connection.sendall(asked)
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200

        def closed() -> bool:
            try:
                connection.send(b"G")
            except (ConnectionResetError, BrokenPipeError):
                return True
            except TimeoutError:
                pass
            return False

        until(closed)


def test_connections_are_counted(port: int) -> None:
    with contextlib.ExitStack() as stack:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200)
        for _ in range(SHORT.connections + 1):
            connection = stack.enter_context(connected(port))
        found = error(rest(connection))
        assert found["status"] == 503 and found["code"] == "too_many_connections"
    until(lambda: httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200)


def test_bytes_that_arrive_are_counted(port: int) -> None:
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 150000\r\n\r\n"
    )
    with connected(port) as first, connected(port) as second:
        first.sendall(head + b"x" * 140_000)
        second.sendall(head)
        with contextlib.suppress(OSError):
            second.sendall(b"x" * 140_000)
        (refused, *_), _, _ = select.select([first, second], [], [], SECONDS)
        assert error(rest(refused))["code"] == "too_many_bytes"
    # and they are given back
    until(lambda: httpx.post(f"http://127.0.0.1:{port}/nowhere", content=b"x" * 150_000).is_error)
    again = httpx.post(f"http://127.0.0.1:{port}/nowhere", content=b"x" * 150_000)
    assert again.status_code == 404


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET /\r\n\r\n", b"A" * 70_000]
)
def test_garbage_is_answered_as_other_errors_are(port: int, garbage: bytes) -> None:
    with connected(port) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(garbage + b"\r\n\r\n")
        found = error(rest(connection))
    assert found["status"] == 400 and found["type"] == "invalid_request_error"


def test_health_tells_a_model_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = VLM.from_pretrained(MODEL, threads=1)
    going, working = threading.Event(), threading.Event()
    generate = vlm.stream_generate

    def hangs(*arguments: Any, **options: Any) -> Any:
        working.set()
        going.wait()
        return generate(*arguments, **options)

    monkeypatch.setattr(vlm, "stream_generate", hangs)
    with serving(dataclasses.replace(SHORT, idle_seconds=SECONDS), vlm) as port:
        url = f"http://127.0.0.1:{port}"
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        answers: list[httpx.Response] = []
        asking = threading.Thread(
            target=lambda: answers.append(
                httpx.post(f"{url}/v1/chat/completions", json=body, timeout=SECONDS)
            )
        )
        asking.start()
        try:
            assert working.wait(SECONDS)
            until(lambda: httpx.get(f"{url}/health").status_code == 503)
            assert httpx.get(f"{url}/health").json()["error"]["code"] == "stalled"
        finally:
            going.set()
            asking.join()
        assert answers[0].status_code == 200
        assert httpx.get(f"{url}/health").json() == {"status": "ok", "waiting": 0}


HANGING = """
import sys, time
from dataclasses import dataclass

import edgevlm.cli.serve
from edgevlm.cli import main
from edgevlm.vlm import VLM
from tests.support.streams import as_stream

@as_stream
def hangs(*arguments, **options):
    print("hangs", flush=True)
    time.sleep(1000)
    yield

@dataclass(frozen=True)
class Limits(edgevlm.cli.serve.Limits):
    shutdown_seconds: int = int(sys.argv[1])

VLM.stream_generate = hangs
edgevlm.cli.serve.Limits = Limits
sys.exit(main(["serve", "--port", sys.argv[2], "--threads", "1"]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize(("seconds", "signals", "status"), [(2, 1, 1), (500, 2, 128 + 15)])
def test_the_server_ends_in_time_whatever_hangs(
    tmp_path: Path, seconds: int, signals: int, status: int
) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, str(script), str(seconds), str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        text=True,
    )
    url = f"http://127.0.0.1:{port}"

    def up() -> bool:
        assert process.poll() is None, process.stderr and process.stderr.read()
        with contextlib.suppress(httpx.ConnectError):
            return httpx.get(f"{url}/health").status_code == 200
        return False

    try:
        until(up)
        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        with httpx.Client(timeout=SECONDS) as client:
            threading.Thread(
                target=_ask_in_vain, args=(client, f"{url}/v1/chat/completions", body), daemon=True
            ).start()
            assert process.stdout is not None and process.stdout.readline() == "hangs\n"
            for _ in range(signals):
                process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            assert process.wait(SECONDS) == status
        said = process.stderr.read() if process.stderr is not None else ""
        assert "ends now" in said and "Traceback" not in said
    finally:
        process.kill()
        process.communicate()


def _ask_in_vain(client: httpx.Client, url: str, body: dict[str, Any]) -> None:
    with contextlib.suppress(httpx.HTTPError):
        client.post(url, json=body)
