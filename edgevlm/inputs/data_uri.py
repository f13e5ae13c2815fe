"""Data URIs and base64, decoded as browsers do.

The rules are those of the WHATWG's URL and Fetch standards. A "data: URL" is percent-decoded first, and then
decoded as "forgiving base64", which ignores white space and needs no padding. The URL-safe alphabet of base64
is refused, as the standards require.
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
    """Return True if a text begins as a data URI does."""
    return text[:64].lstrip(_CONTROLS_AND_SPACE)[:5].lower() == "data:"


def decode_data_uri(uri: str) -> bytes:
    """Return the bytes of a data URI, which may be base64 or percent-encoded.

    Raises:
        ImageError: the URI has no comma or no data, or its base64 is wrong.
    """
    text = uri.strip(_CONTROLS_AND_SPACE)
    for ignored in "\t\n\r":
        text = text.replace(ignored, "")
    head, comma, body = text.partition("#")[0].partition(",")
    if not comma:
        raise ImageError(
            f"the data URI {shorten(uri)} has no comma; it must be data:image/png;base64,..."
        )
    data = _percent_decode(body.encode("utf-8", "surrogatepass"))
    if _BASE64_TYPE.search(head.rstrip(" \f")):
        data = decode_base64(data, "the data URI")
    if not data:
        raise ImageError(f"the data URI {shorten(uri)} is empty: nothing follows its comma")
    return data


def decode_base64(text: str | bytes, name: str = "the base64 text") -> bytes:
    """Return the bytes of a base64 text. White space and missing padding are accepted.

    Args:
        text: the base64 text.
        name: the name of the text in error messages.

    Raises:
        ImageError: a character is not in the alphabet of base64, or the length is impossible.
    """
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    data = data.translate(None, _WHITE_SPACE)
    if len(data) % 4 == 0:
        data = data[: len(data) - (data.endswith(b"=") + data.endswith(b"=="))]
    wrong = _NOT_BASE64.search(data)
    if wrong is not None:
        character = data[wrong.start() : wrong.start() + 4].decode("utf-8", "replace")[0]
        why = f"{character!r} at position {wrong.start()} is not in its alphabet"
        if character in "-_":
            why += " but in the URL-safe one; write + for - and / for _"
        elif character == "=":
            why = f"'=' at position {wrong.start()} is not at the end, or there are too many"
        raise ImageError(f"{name} is not base64: {why}")
    if len(data) % 4 == 1:
        raise ImageError(
            f"{name} is not base64: {len(data)} characters is an impossible length; a character is "
            f"missing, or there is one too many"
        )
    return binascii.a2b_base64(data + b"=" * (-len(data) % 4))


def shorten(value: str | bytes, length: int = 60) -> str:
    """Return the `repr` of a text for messages, shortened to `length` if it is much longer."""
    if len(value) <= 2 * length:
        return repr(value)
    kind = "bytes" if isinstance(value, bytes) else "characters"
    return f"{value[:length]!r}... ({len(value):,} {kind})"


def _percent_decode(data: bytes) -> bytes:
    """Decode sequences such as ``%41``; leave all other bytes as they are."""
    if b"%" not in data:
        return data
    import numpy as np  # here, since the command line imports this module before it needs numpy

    digits = np.full(256, 16, np.uint8)  # the value of each hexadecimal digit; 16: not a digit
    for value, digit in enumerate("0123456789abcdef"):
        digits[[ord(digit), ord(digit.upper())]] = value
    encoded = np.frombuffer(data, np.uint8)
    values = digits[encoded]
    high, low = values[1:-1], values[2:]
    escapes = (encoded[:-2] == ord("%")) & (high < 16) & (low < 16)
    decoded, kept = encoded.copy(), np.ones(len(encoded), bool)
    decoded[:-2][escapes] = high[escapes] * 16 + low[escapes]
    kept[1:-1][escapes] = kept[2:][escapes] = False
    return decoded[kept].tobytes()
