"""How other libraries' errors are quoted in ours."""

from __future__ import annotations

LONGEST = 300
"""Characters of another library's message; what follows is advice about that library."""


def one_line(error: BaseException) -> str:
    """An error's message on one line, with its type if the message alone says little."""
    message = " ".join(str(error).split())
    if not message or isinstance(error, (KeyError, IndexError, TypeError, AttributeError)):
        message = f"{type(error).__name__}: {message}".rstrip(": ")
    return message if len(message) <= LONGEST else f"{message[:LONGEST]}..."
