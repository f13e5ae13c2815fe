"""Access control: which host names and which web pages can use the server.

A browser lets a web page send requests to any server, and only protects the responses. So requests of a page
are refused unless its origin is allowed or is the origin of the server itself. Requests with an unknown host
name are refused, too: the owner of that name could otherwise make a page of theirs look like a page of the
server (DNS rebinding).
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.errors import InputError
from edgevlm.server.errors import error_body, failure_body
from edgevlm.server.notices import Notices

ANY_ORIGIN = "*"
FILE_ORIGIN = "null"
"""Origin of a page that was opened as a file, as browsers write it."""

ALLOWED_METHODS = "GET, POST, DELETE"
PREFLIGHT_MAX_AGE = 600
"""Seconds for which a browser may cache the answer to a preflight request."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_SHOWN_CHARACTERS = 100
"""Limit of characters of a name that a message repeats."""


def host_name(text: str) -> str:
    """Return the name in a Host header without its port, such as ``localhost`` or ``[::1]``."""
    name, bracket, _ = text.partition("]")
    if not bracket:
        name = text.partition(":")[0]
    return (name + bracket).rstrip(".").lower()


def parse_origin(text: str) -> str:
    """Return an origin as browsers write it.

    Raises:
        InputError: the text is not an origin.
    """
    if text in (ANY_ORIGIN, FILE_ORIGIN):
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{text!r} is not an origin: {error}") from None
    if not parts.scheme or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InputError(
            f"an origin is a scheme, a host and optionally a port, such as http://localhost:5173, or "
            f"{FILE_ORIGIN} for pages opened as files, or {ANY_ORIGIN} for all; is {text!r}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    is_default = port is None or port == _DEFAULT_PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if is_default else f":{port}")


class AccessControl:
    """ASGI middleware that checks the Host and Origin headers, and answers CORS preflight requests.

    Args:
        app: the application.
        hosts: allowed names in the Host header; None: all.
        origins: allowed origins, as `parse_origin` returns them; the server's own is always allowed.
        notices: the log of refused origins.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str] | None,
        origins: Sequence[str],
        notices: Notices,
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else frozenset(map(host_name, hosts))
        self._origins = frozenset(origins)
        self._notices = notices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection as ASGI applications do."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        origin = headers.get("origin")
        if self._hosts is not None and host_name(host) not in self._hosts:
            await self._refuse_host(host)(scope, receive, send)
            return
        own_origins = (f"http://{host}".lower(), f"https://{host}".lower())
        if origin is None or origin.lower() in own_origins:
            await self._app(scope, receive, send)
            return
        if origin not in self._origins and ANY_ORIGIN not in self._origins:
            await self._refuse_origin(origin)(scope, receive, send)
            return

        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._add_headers(MutableHeaders(scope=message), origin)
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _answer_preflight(headers)(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            if not started:  # Starlette's own response would not have the headers
                failed = JSONResponse(failure_body(error), 500)
                await failed(scope, receive, send_with_headers)
            raise

    def _add_headers(self, headers: MutableHeaders, origin: str) -> None:
        if ANY_ORIGIN in self._origins:
            headers["Access-Control-Allow-Origin"] = ANY_ORIGIN
        else:
            headers["Access-Control-Allow-Origin"] = origin
            headers.add_vary_header("Origin")
        headers["Access-Control-Expose-Headers"] = "Retry-After"

    def _refuse_host(self, host: str) -> Response:
        name = host_name(host)[:_MAX_SHOWN_CHARACTERS]
        message = (
            f"the host name {name!r} is not allowed; to allow it, start the server with --allow-host {name}"
            if name
            else "the request has no Host header; send the name of the server in it"
        )
        return JSONResponse(error_body(400, message, "host_not_allowed"), 400)

    def _refuse_origin(self, origin: str) -> Response:
        origin = origin[:_MAX_SHOWN_CHARACTERS]
        message = (
            f"web pages of the origin {origin!r} are not allowed; to allow them, start the server with "
            f"--allow-origin {origin}"
        )
        self._notices.warn_once(message)  # a page cannot read why it was refused
        return JSONResponse(error_body(403, message, "origin_not_allowed"), 403)


def _answer_preflight(headers: Headers) -> Response:
    allowed = {
        "Access-Control-Allow-Methods": ALLOWED_METHODS,
        "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE),
    }
    if requested := headers.get("access-control-request-headers"):
        allowed["Access-Control-Allow-Headers"] = requested
    if "access-control-request-private-network" in headers:
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)
