"""JSON texts, token by token, with a vocabulary of all bytes and a few longer tokens."""

from __future__ import annotations

from typing import Any

from edgevlm.runtimes.json_schema.constraint import JsonConstraint

PIECES = [bytes([byte]) for byte in range(256)] + [
    b'{"', b'":', b'","', b"true", b"false", b"null", b"]}", b"00", b"-", b"abc", "é".encode(), b"2026", b"",
]  # fmt: skip
END = len(PIECES) - 1
LONGEST_FIRST = sorted(range(END), key=lambda token: -len(PIECES[token]))


def byte_constraint() -> JsonConstraint:
    """Return a constraint whose forced tokens are bytes."""
    return JsonConstraint(PIECES, [END], lambda text: list(text.encode()))


def token_constraint() -> JsonConstraint:
    """Return a constraint whose forced tokens are as long as possible."""
    return JsonConstraint(PIECES, [END], longest_tokens)


def longest_tokens(text: str) -> list[int]:
    """Return the tokens of a text, each as long as possible."""
    tokens: list[int] = []
    rest = text.encode()
    while rest:
        tokens.append(_longest_token(rest))
        rest = rest[len(PIECES[tokens[-1]]) :]
    return tokens


def _longest_token(text: bytes) -> int:
    return next(token for token in LONGEST_FIRST if text.startswith(PIECES[token]))


def refused_at(texts: JsonConstraint, schema: dict[str, Any], text: bytes) -> int | None:
    """Return the index of the first byte that is not allowed, the end included; None if all are."""
    matcher = texts.matcher(schema)
    for index, byte in enumerate([*text, END]):
        if byte not in matcher.allowed_tokens():
            return index
        if byte != END:
            matcher.accept(byte)
    return None


def is_written(texts: JsonConstraint, schema: dict[str, Any], text: str) -> bool:
    """Return True if a text is allowed as answers are written: forced tokens, the longest ones between."""
    matcher = texts.matcher(schema)
    rest = text.encode()
    while True:
        forced = matcher.accept_forced()
        written = b"".join(PIECES[token] for token in forced)
        if not rest.startswith(written):
            return False
        rest = rest[len(written) :]
        if forced and forced[-1] == END:
            return not rest
        token = _longest_token(rest) if rest else END
        if token not in matcher.allowed_tokens():
            return False
        if token == END:
            return True
        matcher.accept(token)
        rest = rest[len(PIECES[token]) :]
