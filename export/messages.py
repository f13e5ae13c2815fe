"""Quote errors of other libraries in messages of ours."""

from __future__ import annotations

LONGEST = 300
"""Characters of a quoted message; the rest is advice about that library."""


def one_line(error: BaseException) -> str:
    """Return the message of an error on one line, with its type if the message alone says little."""
    message = " ".join(str(error).split())
    if not message or isinstance(error, (KeyError, IndexError, TypeError, AttributeError)):
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
