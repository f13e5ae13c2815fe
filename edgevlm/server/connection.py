"""Connections that have an end: time limits for headers, bodies, idleness and clients that do not read.

uvicorn limits the idle time of a connection only, and any byte begins that anew; here a byte a second is
not enough. Use it as ``uvicorn.Config(app, **connection_options(limits))``.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from edgevlm.server.errors import error_body
from edgevlm.server.limits import MIB, Limits

CHECK_SECONDS = 1.0
"""Between two looks at a connection, at most."""


def connection_options(limits: Limits) -> dict[str, Any]:
    """Arguments of `uvicorn.Config`."""
    return {
        "http": _limited(limits),
        "ws": "none",
        "timeout_keep_alive": limits.idle_seconds,
    }


def _limited(limits: Limits) -> type[H11Protocol]:
    """A class for the connections of one server."""
    arriving = _Arriving()

    class Connection(_Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._limits = limits
            self._all = arriving

    return Connection


class _Arriving:
    """Bytes of all requests that are being read or answered."""

    def __init__(self) -> None:
        self.bytes = 0


class _Connection(H11Protocol):
    """One connection."""

    _limits: Limits
    _all: _Arriving

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._check: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        """When headers, or the rest of a body that nobody wants, began to be waited for."""
        self._answering: Any = None
        """The request that is being read or answered."""
        self._began = 0.0
        self._arrived = 0
        """Of that request: when it began, and its bytes."""
        self._unread = 0
        self._unread_since = 0.0
        """Bytes that wait for the client, and since when it took none of them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._waiting_since = time.monotonic()
        self._schedule()
        if len(self.connections) > self._limits.connections:
            self._refuse(
                503,
                f"{self._limits.connections} connections are open, and no more are taken; "
                f"try again later",
                "too_many_connections",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._release()
        if self._check is not None:
            self._check.cancel()
            self._check = None

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._watch()
        if self._answering is not None:
            self._arrived += len(data)
            self._all.bytes += len(data)
            if self._all.bytes > self._limits.in_flight_bytes:
                self._refuse(
                    503,
                    f"requests of {self._limits.in_flight_bytes // MIB} MiB are being read or "
                    f"answered, and no more are taken; try again later",
                    "too_many_bytes",
                )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP, in the form of the other errors."""
        self._refuse(400, f"{msg.rstrip('.')}: no HTTP/1.1, or headers of more than 16 KiB")

    def _watch(self) -> None:
        """After anything that happened."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self._answering is not self.cycle:
            self._release()
            self._answering = self.cycle
            self._began = time.monotonic()
        if busy:
            self._waiting_since = None
            return
        self._release()
        if self._waiting_since is None and self.timeout_keep_alive_task is None:
            self._waiting_since = time.monotonic()

    def _release(self) -> None:
        """The request that was read or answered is over."""
        self._all.bytes -= self._arrived
        self._arrived = 0
        self._answering = None

    def _schedule(self) -> None:
        limits = self._limits
        shortest = min(
            limits.header_seconds, limits.body_seconds, limits.unread_seconds, 4 * CHECK_SECONDS
        )
        self._check = self.loop.call_later(shortest / 4, self._look)

    def _look(self) -> None:
        """Now and then."""
        limits, now = self._limits, time.monotonic()
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread or not self._unread:
            self._unread_since = now
        self._unread = unread
        if unread and now - self._unread_since > limits.unread_seconds:
            self.transport.abort()
            return
        self._schedule()
        if self.transport.is_closing():
            return
        if self._waiting_since is not None:
            if now - self._waiting_since > limits.header_seconds:
                self._refuse(
                    408,
                    f"no whole request came within {limits.header_seconds:g} seconds",
                    "request_timeout",
                )
        elif self._answering is not None and self._answering.more_body:
            allowed = limits.body_seconds + self._arrived / limits.body_bytes_per_second
            if now - self._began > allowed:
                self._refuse(
                    408,
                    f"the body came too slowly: {self._arrived} bytes in {now - self._began:.0f} seconds; "
                    f"{limits.body_seconds:g} seconds are allowed, and one more for each "
                    f"{limits.body_bytes_per_second} bytes",
                    "request_timeout",
                )

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        """Say so, if no answer has begun, and close the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(error_body(status, message, code)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            if status == 503:
                headers.append((b"retry-after", b"1"))
            reason = STATUS_PHRASES[status]
            response = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
