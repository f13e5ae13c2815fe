"""End the server within a time limit.

A thread that hangs inside a native library can only be ended together with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import threading
from types import FrameType

import uvicorn

from edgevlm.server.limits import Limits

_logger = logging.getLogger(__name__)

GRACE_FRACTION = 0.9
"""Fraction of the time limit after which the connections of unfinished requests are closed."""

FORCED_EXIT_STATUS = 1
"""Exit status if the time limit was exceeded."""


class BoundedServer(uvicorn.Server):
    """Ends at most `Limits.shutdown_seconds` after the first signal, and immediately after the second.

    Args:
        config: as for `uvicorn.Server`; the time for running requests is set here.
        limits: the limits of the server.
    """

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._seconds = limits.shutdown_seconds
        config.timeout_graceful_shutdown = self._seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for running requests, but close their connections after a part of the time limit."""
        loop = asyncio.get_running_loop()
        timer = loop.call_later(GRACE_FRACTION * self._seconds, self._close_connections)
        await super().shutdown(sockets)
        timer.cancel()

    def _close_connections(self) -> None:
        """Close open connections, so that requests end as if their clients had disconnected."""
        connections = list(self.server_state.connections)
        _logger.warning("%d connections are closed before they were answered", len(connections))
        for connection in connections:
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal: begin to end, or exit if it is the second one."""
        if self.should_exit:
            _exit(128 + sig, f"{signal.Signals(sig).name} was received again")
        _schedule_exit(self._seconds)
        super().handle_exit(sig, frame)


def _schedule_exit(seconds: float) -> None:
    """Exit from this process after a time."""
    reason = f"the running requests did not end within {seconds:g} seconds"
    timer = threading.Timer(seconds, _exit, (FORCED_EXIT_STATUS, reason))
    timer.daemon = True
    timer.start()
    # If a native library holds the GIL, the thread of faulthandler ends the process, with status 1.
    devnull = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    faulthandler.dump_traceback_later(seconds + 1, exit=True, file=devnull)


def _exit(status: int, reason: str) -> None:
    with contextlib.suppress(
        OSError
    ):  # os.write, since a hanging thread may hold the lock of stderr
        os.write(2, f"edgevlm: {reason}; the process ends now\n".encode())
    os._exit(status)
