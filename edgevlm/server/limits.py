"""Limits of the server."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 2**10
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Limits of the server. A request that exceeds one is refused, and the error names the limit."""

    body_bytes: int = 32 * MIB
    """Bytes of one request, images included."""
    images: int = 16
    """Images of one conversation."""
    pixels: int = 33_177_600
    """Pixels of one image; a frame of 8K video fits."""
    request_pixels: int = 4 * 33_177_600
    """Pixels of all images of one conversation; each takes three bytes of memory."""
    queue: int = 32
    """Requests that wait for the one that is being answered."""
    stored_bytes: int = 256 * MIB
    """Bytes of all uploaded files."""
    stored_files: int = 1000
    """Number of uploaded files."""
    fetch_seconds: float = 10.0
    """Time to fetch one remote image."""
    connections: int = 256
    """Connections that are open at the same time."""
    in_flight_bytes: int = 256 * MIB
    """Bytes of all requests that are being read or answered."""
    header_seconds: float = 20.0
    """Time from the start of a connection, or of a further request, to the end of the headers."""
    body_seconds: float = 30.0
    """Time for a body, in addition to its length divided by `body_bytes_per_second`."""
    body_bytes_per_second: int = 16 * KIB
    """Slowest speed of a body after `body_seconds`."""
    idle_seconds: float = 60.0
    """Time between two requests of a connection."""
    unread_seconds: float = 60.0
    """Time for which a client may read nothing of its answer."""
    stalled_seconds: float = 120.0
    """Time without progress of a request, after which `/health` reports an error. A slow machine may take
    this long for four tiles of an image."""
    shutdown_seconds: int = 30
    """Time for running requests when the server ends."""
