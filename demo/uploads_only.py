"""No file is read for a client but those that were uploaded, and none is fetched from another host.

Gradio checks most of what a client names, not all: a picture without its ``meta`` reaches functions with any
path, and ``/file=http...`` is fetched from the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

ELSEWHERE = re.compile(r"/(file[=/]|proxy[=/])\s*\w+:/", re.IGNORECASE)
"""Addresses of this server that stand for other hosts' files."""


class UploadsOnlyMiddleware:
    """Refuse requests that name other files.

    Args:
        folder: where uploads are.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = os.path.realpath(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and ELSEWHERE.search(scope["path"]):
            await PlainTextResponse("files of other hosts are not fetched", 403)(
                scope, receive, send
            )
            return
        form = scope["type"] == "http" and Headers(scope=scope).get("content-type", "").startswith(
            "multipart/form-data"
        )
        if scope["type"] != "http" or scope["method"] != "POST" or form:
            await self._app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client is gone
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        foreign = next((path for path in _paths(body) if not self._uploaded(path)), None)
        if foreign is not None:
            await PlainTextResponse(f"{foreign!r} was not uploaded", 403)(scope, receive, send)
            return
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, again, send)

    def _uploaded(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        try:
            return os.path.realpath(path).startswith(self._folder + os.sep)
        except ValueError:  # a null character
            return False


def _paths(body: bytes) -> Iterator[Any]:
    """What the files of a request's JSON are called."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return  # Gradio refuses it
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path"):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
