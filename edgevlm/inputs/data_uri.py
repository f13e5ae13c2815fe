"""Data URIs and base64, as browsers read them.

By the URL standard and the Fetch standard of the WHATWG: a "data: URL" is percent-decoded first, then read as
"forgiving base64", which skips white space and does without the padding. The URL-safe alphabet is refused,
as it is there.
"""

from __future__ import annotations

import binascii
import re

from edgevlm.errors import ImageError

_WHITE_SPACE = b"\t\n\f\r "
_CONTROLS_AND_SPACE = "".join(map(chr, range(0x21)))
_BASE64_TYPE = re.compile(r"; *base64\Z", re.IGNORECASE | re.ASCII)
_NOT_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")


def is_data_uri(text: str) -> bool:
    """Whether a text is meant as a data URI."""
    return text[:64].lstrip(_CONTROLS_AND_SPACE)[:5].lower() == "data:"


def decode_data_uri(uri: str) -> bytes:
    """What a data URI holds, in base64 or percent-encoded.

    Raises:
        ImageError: no comma, no base64 where it is announced, or no data.
    """
    text = uri.strip(_CONTROLS_AND_SPACE)
    for ignored in "\t\n\r":
        text = text.replace(ignored, "")
    head, comma, body = text.partition("#")[0].partition(",")
    if not comma:
        raise ImageError(
            f"the data URI {shortened(uri)} has no comma; it must be data:image/png;base64,..."
        )
    data = _percent_decoded(body.encode("utf-8", "surrogatepass"))
    if _BASE64_TYPE.search(head.rstrip(" \f")):
        data = decode_base64(data, "the data URI")
    if not data:
        raise ImageError(f"the data URI {shortened(uri)} is empty: nothing follows its comma")
    return data


def decode_base64(text: str | bytes, name: str = "the base64 text") -> bytes:
    """The bytes of a base64 text; white space and missing padding do not matter.

    Raises:
        ImageError: a character that base64 does not have, or a length that it cannot have.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    data = data.translate(None, _WHITE_SPACE)
    if len(data) % 4 == 0:
        data = data[: len(data) - (data.endswith(b"=") + data.endswith(b"=="))]
    wrong = _NOT_BASE64.search(data)
    if wrong is not None:
        character = data[wrong.start() : wrong.start() + 4].decode("utf-8", "replace")[0]
        why = f"{character!r} at position {wrong.start()} is not of its alphabet"
        if character in "-_":
            why += " but of the URL-safe one; write + for - and / for _"
        elif character == "=":
            why = f"'=' at position {wrong.start()} stands before the end, or once too often"
        raise ImageError(f"{name} is not base64: {why}")
    if len(data) % 4 == 1:
        raise ImageError(
            f"{name} is not base64: {len(data)} characters cannot be, one is missing or one too many"
        )
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def shortened(value: str | bytes, length: int = 60) -> str:
    """The `repr` of a text, cut if it is long, for messages."""
    if len(value) <= 2 * length:
        return repr(value)
    kind = "bytes" if isinstance(value, bytes) else "characters"
    return f"{value[:length]!r}... ({len(value):,} {kind})"


def _percent_decoded(data: bytes) -> bytes:
    """``%41`` becomes ``A``; what is no such sequence stays."""
    if b"%" not in data:
        return data
    import numpy as np  # not at the top, since the command line imports this module to parse its input

    digits = np.full(256, 16, np.uint8)  # the value of each hexadecimal digit, 16 for what is none
    for value, digit in enumerate("0123456789abcdef"):
        digits[[ord(digit), ord(digit.upper())]] = value
    given = np.frombuffer(data, np.uint8)
    values = digits[given]
    high, low = values[1:-1], values[2:]
    escapes = (given[:-2] == ord("%")) & (high < 16) & (low < 16)
    decoded, kept = given.copy(), np.ones(len(given), bool)
    decoded[:-2][escapes] = high[escapes] * 16 + low[escapes]
    kept[1:-1][escapes] = kept[2:][escapes] = False
    return decoded[kept].tobytes()
