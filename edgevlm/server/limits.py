"""What a request may cost at most."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 2**10
MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """Past any of these a request is refused with the figure; nothing is cut short silently."""

    body_bytes: int = 32 * MIB
    """Of one request, pictures included."""
    pictures: int = 16
    """Of one conversation."""
    pixels: int = 33_177_600
    """Of one picture: 8K video."""
    request_pixels: int = 4 * 33_177_600
    """Of all pictures of one conversation together; each pixel takes three bytes of memory."""
    queue: int = 32
    """Requests that wait for the one that is answered."""
    stored_bytes: int = 256 * MIB
    """Of all uploaded files together."""
    stored_files: int = 1000
    fetch_seconds: float = 10.0
    """For one remote picture, from the first byte to the last."""
    connections: int = 256
    """Open at once, whatever comes through them."""
    in_flight_bytes: int = 256 * MIB
    """Of all requests that are being read or answered together."""
    header_seconds: float = 20.0
    """From the beginning of a connection, or of a further request, to the end of its headers."""
    body_seconds: float = 30.0
    """For a body, beside the time that it takes at `body_bytes_per_second`."""
    body_bytes_per_second: int = 16 * KIB
    """What a connection has to bring at least, once `body_seconds` are over."""
    idle_seconds: float = 60.0
    """Between two requests of a connection."""
    unread_seconds: float = 60.0
    """That a client may take nothing of an answer that waits for it."""
    stalled_seconds: float = 120.0
    """Without any progress of the request that is being answered; then `/health` says so. A slow machine
    may work so long on four tiles of a picture."""
    shutdown_seconds: int = 30
    """For what runs when the server is told to end."""
