"""What a request may cost at most."""

from __future__ import annotations

from dataclasses import dataclass

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
    queue: int = 32
    """Requests that wait for the one that is answered."""
    stored_bytes: int = 256 * MIB
    """Of all uploaded files together."""
    stored_files: int = 1000
    fetch_seconds: float = 10.0
    """For one remote picture, from the first byte to the last."""
    shutdown_seconds: int = 30
    """For what runs when the server is told to end."""
