"""A server that ends in time, whatever still runs.

What hangs may be a thread within a library, which nothing can end but the end of the process.
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

GRACE = 0.9
"""Part of the time that is for requests; then their connections are closed."""

FORCED = 1
"""Exit status where the time was not enough."""


class BoundedServer(uvicorn.Server):
    """Ends at most `Limits.shutdown_seconds` after the first signal, and at once after the second.

    Args:
        config: as for `uvicorn.Server`; how long requests may still take is set here.
    """

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._seconds = limits.shutdown_seconds
        config.timeout_graceful_shutdown = self._seconds

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        grace = loop.call_later(GRACE * self._seconds, self._leave)
        await super().shutdown(sockets)
        grace.cancel()

    def _leave(self) -> None:
        """Close what is still open, so that requests end as if their clients had left."""
        left = list(self.server_state.connections)
        _logger.warning("%d connections are closed before they were answered", len(left))
        for connection in left:
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            _end(128 + sig, f"{signal.Signals(sig).name} came again")
        _bound(self._seconds)
        super().handle_exit(sig, frame)


def _bound(seconds: float) -> None:
    """End this process after so many seconds."""
    what = f"what runs did not end in {seconds:g} seconds"
    timer = threading.Timer(seconds, _end, (FORCED, what))
    timer.daemon = True
    timer.start()
    # Where a library keeps Python from running at all; its own thread ends the process, with status 1.
    devnull = open(os.devnull, "w")  # noqa: SIM115 - until the end
    faulthandler.dump_traceback_later(seconds + 1, exit=True, file=devnull)


def _end(status: int, why: str) -> None:
    with contextlib.suppress(OSError):  # without Python's locks, which may be held by what hangs
        os.write(2, f"edgevlm: {why}; the process ends now\n".encode())
    os._exit(status)
