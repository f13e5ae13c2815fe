"""The sockets that the server listens on, and the loop that answers them."""

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
"""Connections that wait to be accepted."""


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; what connects waits until `serve` runs.

    Args:
        host: an address of this machine, or a name of one.
        port: 0 takes a free one.

    Raises:
        InputError: the port is taken, or this machine has no such address.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host {host} is no address of this machine: {error}") from None
    family, kind, protocol, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":  # a port whose old connections still fade away is free
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise InputError(_reason(host, port, error)) from None
    return listening


def _reason(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is taken by another program; end that one, or take another --port"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"--host {host} is no address of this machine"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights than this user has; take a --port above 1023"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def url(listening: socket.socket, host: str) -> str:
    """Where a client finds a socket, by the name that it was bound by."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listening.getsockname()[1]}/v1"


class _Server(BoundedServer):
    def __init__(
        self, config: uvicorn.Config, limits: Limits, started: Callable[[], object]
    ) -> None:
        super().__init__(config, limits)
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say_started()


def serve(
    app: FastAPI,
    sockets: list[socket.socket],
    limits: Limits,
    started: Callable[[], object] = lambda: None,
) -> None:
    """Answer what comes to `sockets` until a signal ends it; closes them.

    Args:
        started: called once requests are answered.
    """
    config = uvicorn.Config(app, log_level="warning", **connection_options(limits))
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config, limits, started).run(sockets)
