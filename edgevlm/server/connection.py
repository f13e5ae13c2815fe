"""Connections with time limits for headers, bodies, idle times and clients that do not read.

uvicorn limits only the idle time of a connection, and each byte restarts that time. A client that sends one
byte per second would keep a connection forever. Use this module as
``uvicorn.Config(app, **connection_options(limits))``.
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

MAX_CHECK_SECONDS = 1.0
"""Longest time between two checks of a connection."""


def connection_options(limits: Limits) -> dict[str, Any]:
    """Return arguments of `uvicorn.Config`."""
    return {
        "http": _connection_class(limits),
        "ws": "none",
        "timeout_keep_alive": limits.idle_seconds,
    }


def _connection_class(limits: Limits) -> type[H11Protocol]:
    """Return a class for the connections of one server."""
    in_flight = _InFlight()

    class Connection(_Connection):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._limits = limits
            self._in_flight = in_flight

    return Connection


class _InFlight:
    """Received bytes of all requests that are being read or answered."""

    def __init__(self) -> None:
        self.bytes = 0


class _Connection(H11Protocol):
    """One connection."""

    _limits: Limits
    _in_flight: _InFlight

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._waiting_since: float | None = None
        """Time since which the connection waits for headers, or for the rest of an ignored body."""
        self._active_cycle: Any = None
        """Request that is being read or answered."""
        self._active_since = 0.0
        self._received = 0
        """Start time of that request, and its received bytes."""
        self._unread = 0
        self._unread_since = 0.0
        """Bytes that the client has not read, and the time since which it has read none of them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        super().connection_made(transport)
        self._waiting_since = time.monotonic()
        self._schedule()
        if len(self.connections) > self._limits.connections:
            self._refuse(
                503,
                f"{self._limits.connections} connections are open, which is the limit; "
                f"try again later",
                "too_many_connections",
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._release()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        self._update_state()
        if self._active_cycle is not None:
            self._received += len(data)
            self._in_flight.bytes += len(data)
            if self._in_flight.bytes > self._limits.in_flight_bytes:
                self._refuse(
                    503,
                    f"requests of {self._limits.in_flight_bytes // MIB} MiB are being read or "
                    f"answered, which is the limit; try again later",
                    "too_many_bytes",
                )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._update_state()

    def send_400_response(self, msg: str) -> None:
        """Answer data that is not HTTP in the form of the other errors."""
        self._refuse(400, f"{msg.rstrip('.')}: not HTTP/1.1, or headers of more than 16 KiB")

    def _update_state(self) -> None:
        """Find out whether the connection waits or is busy; called after each event."""
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy and self._active_cycle is not self.cycle:
            self._release()
            self._active_cycle = self.cycle
            self._active_since = time.monotonic()
        if busy:
            self._waiting_since = None
            return
        self._release()
        if self._waiting_since is None and self.timeout_keep_alive_task is None:
            self._waiting_since = time.monotonic()

    def _release(self) -> None:
        """Stop counting the bytes of the request that is over."""
        self._in_flight.bytes -= self._received
        self._received = 0
        self._active_cycle = None

    def _schedule(self) -> None:
        limits = self._limits
        shortest = min(
            limits.header_seconds,
            limits.body_seconds,
            limits.unread_seconds,
            4 * MAX_CHECK_SECONDS,
        )
        self._timer = self.loop.call_later(shortest / 4, self._check_times)

    def _check_times(self) -> None:
        """Close the connection if a time limit has passed."""
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
                    f"no complete request arrived within {limits.header_seconds:g} seconds",
                    "request_timeout",
                )
        elif self._active_cycle is not None and self._active_cycle.more_body:
            allowed = limits.body_seconds + self._received / limits.body_bytes_per_second
            if (elapsed := now - self._active_since) > allowed:
                self._refuse(
                    408,
                    f"the body arrived too slowly: {self._received} bytes in {elapsed:.0f} seconds; "
                    f"{limits.body_seconds:g} seconds are allowed, and one more for each "
                    f"{limits.body_bytes_per_second} bytes",
                    "request_timeout",
                )

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        """Send an error if no response has begun, and close the connection."""
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
