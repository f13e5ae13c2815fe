"""What tells one browser from another, and what its answers must not load.

A cookie names the browser: all its pages send it with every event, so what the demo keeps of a browser is
the same in each of its tabs.
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
"""Content security policy: an answer's Markdown may hold pictures, which would tell their host of it."""


def browser_of(request: gr.Request) -> str:
    """The name of the browser that sent this; that of its page where it refuses cookies."""
    return str(request.cookies.get(COOKIE) or session_of(request))


class CookieMiddleware:
    """Give a name to each browser that has none, and the policy with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        known = COOKIE in SimpleCookie(Headers(scope=scope).get("cookie", ""))
        name_it = scope["path"] == "/" and not known

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                if name_it:
                    cookie = (
                        f"{COOKIE}={secrets.token_urlsafe(16)}; Path=/; HttpOnly; SameSite=Strict"
                    )
                    headers.append("set-cookie", cookie)
            await send(message)

        await self._app(scope, receive, answer)
