"""Refuse requests with a body that is too large, before it is in memory."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.server.errors import error_body


class BodyLimit:
    """ASGI middleware that limits the size of a body. It counts the received bytes, too.

    Args:
        app: the application.
        max_bytes: the limit for one body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._message = f"the body has more than {max_bytes} bytes; send smaller images"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection as ASGI applications do."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._max_bytes:
            refused = JSONResponse(error_body(413, self._message, "body_too_large"), 413)
            await refused(scope, receive, send)
            return
        received = 0

        async def counting_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise HTTPException(413, self._message)
            return message

        await self._app(scope, counting_receive, send)
