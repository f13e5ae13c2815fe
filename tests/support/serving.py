"""A server in a thread on a real socket, for tests."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from edgevlm import VLM
from edgevlm.server.app import create_app
from edgevlm.server.http_server import bind
from tests.support.openai_description import CheckedAnswers

MODEL = "edgevlm-nano"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SECONDS = 60
"""Longest time that a test waits, in seconds."""


def data_uri(name: str) -> str:
    """Return the data URI of one of the example images."""
    data = base64.b64encode((EXAMPLES / name).read_bytes()).decode()
    return f"data:image/png;base64,{data}"


def asking(text: str, *urls: str, detail: str | None = None) -> Any:
    """Return messages that ask about images."""
    extra = {} if detail is None else {"detail": detail}
    images = [{"type": "image_url", "image_url": {"url": url, **extra}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def serving(vlm: VLM | None = None, **options: Any) -> Iterator[str]:
    """Run a server in a thread; yield its address, and check all its responses at the end."""
    app = create_app(vlm or VLM.from_pretrained(MODEL), model=MODEL, **options)
    checked = CheckedAnswers(app)
    listening = bind("127.0.0.1", 0)
    config = uvicorn.Config(checked, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
    assert checked.mistakes == []
