"""Refusal of requests that name files which were not uploaded, or files of other hosts.

Gradio does not check all of them: an image without its ``meta`` reaches functions with any path, and Gradio
loads ``/file=http...`` from the network.
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

REMOTE_FILE = re.compile(r"/(file[=/]|proxy[=/])\s*\w+:/", re.IGNORECASE)
"""Paths of this server that stand for files of other hosts."""


class UploadsOnlyMiddleware:
    """Refuses requests that name other files than uploads.

    Args:
        folder: folder of the uploads.
    """

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = os.path.realpath(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] == "http" and REMOTE_FILE.search(scope["path"]):
            await PlainTextResponse("files of other hosts are not loaded", 403)(
                scope, receive, send
            )
            return
        is_form = scope["type"] == "http" and Headers(scope=scope).get(
            "content-type", ""
        ).startswith("multipart/form-data")
        if scope["type"] != "http" or scope["method"] != "POST" or is_form:
            await self._app(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client has disconnected
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        foreign = next((path for path in _paths(body) if not self._uploaded(path)), None)
        if foreign is not None:
            await PlainTextResponse(f"{foreign!r} was not uploaded", 403)(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    def _uploaded(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        try:
            return os.path.realpath(path).startswith(self._folder + os.sep)
        except ValueError:  # a null character
            return False


def _paths(body: bytes) -> Iterator[Any]:
    """Yield the paths in the JSON body of a request."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return  # Gradio refuses the request
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path"):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
