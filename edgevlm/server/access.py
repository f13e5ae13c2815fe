"""Which names and which web pages may reach the server.

A browser lets a page send requests to any server and asks only whether the page may read the answers. So
what a page sends is refused here, unless its origin is allowed or is the server's own; and a request that
calls the server by another name is refused, because whoever owns that name can make a page of theirs the
server's own.
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
"""What browsers call the origin of a page that was opened as a file."""

METHODS = "GET, POST, DELETE"
PREFLIGHT_SECONDS = 600
"""That a browser remembers what a page may do."""
_PORTS = {"http": 80, "https": 443}
_SHOWN = 100
"""Characters of a name that a message repeats."""


def host_name(text: str) -> str:
    """A Host header's name, without its port: ``localhost``, ``[::1]``."""
    name, bracket, _ = text.partition("]")
    if not bracket:
        name = text.partition(":")[0]
    return (name + bracket).rstrip(".").lower()


def origin(text: str) -> str:
    """An origin as browsers write it.

    Raises:
        InputError: it is none.
    """
    if text in (ANY_ORIGIN, FILE_ORIGIN):
        return text
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{text!r} is no origin: {error}") from None
    if not parts.scheme or not parts.hostname or parts.path.strip("/") or parts.query:
        raise InputError(
            f"an origin is a scheme, a host and perhaps a port, such as http://localhost:5173, or "
            f"{FILE_ORIGIN} for pages opened as files, or {ANY_ORIGIN} for all; is {text!r}"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    usual = port is None or port == _PORTS.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if usual else f":{port}")


class Access:
    """ASGI middleware: checks the Host header and the Origin header, and answers browsers' preflights.

    Args:
        hosts: names that requests may call the server by; None for any.
        origins: of pages that may use it, as `origin` writes them, beside the server's own.
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
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        page = headers.get("origin")
        if self._hosts is not None and host_name(host) not in self._hosts:
            await self._foreign_host(host)(scope, receive, send)
            return
        if page is None or page.lower() in (f"http://{host}".lower(), f"https://{host}".lower()):
            await self._app(scope, receive, send)
            return
        if page not in self._origins and ANY_ORIGIN not in self._origins:
            await self._foreign_page(page)(scope, receive, send)
            return

        started = False

        async def send_allowed(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._allow(MutableHeaders(scope=message), page)
            await send(message)

        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            await _preflight(headers)(scope, receive, send_allowed)
            return
        try:
            await self._app(scope, receive, send_allowed)
        except Exception as error:
            if not started:  # what Starlette answers itself would lack the headers
                failed = JSONResponse(failure_body(error), 500)
                await failed(scope, receive, send_allowed)
            raise

    def _allow(self, headers: MutableHeaders, page: str) -> None:
        if ANY_ORIGIN in self._origins:
            headers["Access-Control-Allow-Origin"] = ANY_ORIGIN
        else:
            headers["Access-Control-Allow-Origin"] = page
            headers.add_vary_header("Origin")
        headers["Access-Control-Expose-Headers"] = "Retry-After"

    def _foreign_host(self, host: str) -> Response:
        name = host_name(host)[:_SHOWN]
        message = (
            f"this server is not called {name!r}; start it with --allow-host {name} if it should be"
            if name
            else "the request has no Host header, which says what the server is called"
        )
        return JSONResponse(error_body(400, message, "host_not_allowed"), 400)

    def _foreign_page(self, page: str) -> Response:
        page = page[:_SHOWN]
        message = f"pages of {page!r} may not use this server; start it with --allow-origin {page}"
        self._notices.once(message)  # a page does not see why it was refused
        return JSONResponse(error_body(403, message, "origin_not_allowed"), 403)


def _preflight(headers: Headers) -> Response:
    allowed = {
        "Access-Control-Allow-Methods": METHODS,
        "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
    }
    if wanted := headers.get("access-control-request-headers"):
        allowed["Access-Control-Allow-Headers"] = wanted
    if "access-control-request-private-network" in headers:
        allowed["Access-Control-Allow-Private-Network"] = "true"
    return Response(status_code=204, headers=allowed)
