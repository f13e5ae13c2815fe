"""The cookie that identifies a browser, and the content security policy.

All pages of a browser send the cookie with every event. So they share their conversations.
"""

from __future__ import annotations

import secrets
from http.cookies import SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgevlm.demo.gradio_setup import gr, session_of

COOKIE = "edgevlm-browser"

POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio's page needs both
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "frame-ancestors 'none'",
        "base-uri 'self'",
        "form-action 'self'",
    )
)
"""Content security policy. An image in the Markdown of an answer would otherwise tell its host about it."""


def browser_of(request: gr.Request) -> str:
    """Return the id of the browser; the session of the page if the browser refuses cookies."""
    return str(request.cookies.get(COOKIE) or session_of(request))


class CookieMiddleware:
    """Sets the cookie for new browsers, and the content security policy for every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle an ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = COOKIE in SimpleCookie(Headers(scope=scope).get("cookie", ""))
        is_new = scope["path"] == "/" and not known

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                if is_new:
                    cookie = (
                        f"{COOKIE}={secrets.token_urlsafe(16)}; Path=/; HttpOnly; SameSite=Strict"
                    )
                    headers.append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, send_with_headers)
