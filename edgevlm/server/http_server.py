"""The listening socket, and the loop that answers requests."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from edgevlm.errors import InputError
from edgevlm.server.connection import connection_options
from edgevlm.server.limits import Limits
from edgevlm.server.shutdown import BoundedServer

BACKLOG = 2048
"""Limit of connections that wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket. Clients that connect wait until `serve` runs.

    Args:
        host: an address of this machine, or a name of it.
        port: the port; 0: a free one.

    Raises:
        InputError: the port is in use or not allowed, or this machine has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host} is not an address of this machine: {error}") from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # ignore old connections in the state TIME_WAIT
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(_explain(host, port, error)) from None
    return listening


def _explain(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use by another program; end that program, or use another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is not an address of this machine"
    if error.errno == errno.EACCES:
        return f"this user has no permission for port {port}; use a --port above 1023"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def base_url(listening: socket.socket, host: str) -> str:
    """Return the base URL for clients of a listening socket.

    Args:
        listening: the socket.
        host: the address or name that it was bound to.
    """
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/v1"


class _Server(BoundedServer):
    def __init__(
        self, config: uvicorn.Config, limits: Limits, on_start: Callable[[], object]
    ) -> None:
        super().__init__(config, limits)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_start()


def serve(
    app: FastAPI,
    sockets: list[socket.socket],
    limits: Limits,
    on_start: Callable[[], object] = lambda: None,
) -> None:
    """Answer requests until a signal ends the server, and close the sockets.

    Args:
        app: the application.
        sockets: listening sockets.
        limits: the limits of the server.
        on_start: called when the server begins to answer.
    """
    config = uvicorn.Config(app, log_level="warning", **connection_options(limits))
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, limits, on_start).run(sockets)
