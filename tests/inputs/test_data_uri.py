"""Data URIs as the URL standard and a browser's engine read them: node's `fetch` and `atob`."""

from __future__ import annotations

import base64
import json
import random
import shutil
import subprocess
from urllib.parse import quote_from_bytes, unquote_to_bytes

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgevlm.errors import ImageError
from edgevlm.inputs.data_uri import decode_base64, decode_data_uri, is_data_uri, shorten

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


def forgiving_decode(data: bytes) -> bytes | None:
    """The standard's "forgiving-base64 decode", step by step; None is its failure."""
    text = [chr(byte) for byte in data if chr(byte) not in "\t\n\f\r "]
    if len(text) % 4 == 0:
        for _ in range(2):
            if text and text[-1] == "=":
                text.pop()
    if len(text) % 4 == 1 or any(character not in ALPHABET for character in text):
        return None
    buffer, bits, output = 0, 0, bytearray()
    for character in text:
        buffer, bits = buffer * 64 + ALPHABET.index(character), bits + 6
        if bits == 24:
            output += buffer.to_bytes(3, "big")
            buffer, bits = 0, 0
    if bits == 12:
        output += (buffer >> 4).to_bytes(1, "big")
    elif bits == 18:
        output += (buffer >> 2).to_bytes(2, "big")
    return bytes(output)


def decoded(uri: str) -> bytes | None:
    """What a data URI holds; None if it is refused."""
    try:
        return decode_data_uri(uri)
    except ImageError as error:
        assert len(str(error)) < 300
        assert "\n" not in str(error)
        return None


@given(st.text(ALPHABET + "=-_ \t\n\f\r%é\0", max_size=40))
@example("QUI=")
@example("QUI")
@example("QU==")
@example("QU=")
@example("QR")
@example("A")
@example("=")
@example("==")
@example("AAAA=")
@example("AAA==")
def test_base64_is_decoded_by_the_standard(text: str) -> None:
    expected = forgiving_decode(text.encode())
    if expected is None:
        with pytest.raises(ImageError, match="is not base64"):
            decode_base64(text)
    else:
        assert decode_base64(text) == expected == decode_base64(text.encode())


@given(st.binary(min_size=1, max_size=300), st.integers(1, 80), st.randoms(use_true_random=False))
def test_wrapped_unpadded_and_percent_encoded(
    data: bytes, width: int, chosen: random.Random
) -> None:
    text = base64.b64encode(data).decode()
    lines = [text[at : at + width] for at in range(0, len(text), width)]
    escaped = "".join(f"%{ord(c):02x}" if chosen.random() < 0.3 else c for c in text)
    for body in (text, text.rstrip("="), "\r\n".join(lines), " \t".join(lines), escaped):
        assert decode_data_uri(f"data:image/png;base64,{body}") == data
    assert decode_data_uri("data:," + quote_from_bytes(data)) == data


@given(st.text("%%%%4aFg1+é", max_size=30))
def test_percent_signs(text: str) -> None:
    assert (decoded("data:," + text) or b"") == unquote_to_bytes(text)


def random_uri(chosen: random.Random) -> str:
    scheme = chosen.choice(["data:", "DATA:", " data:", "\n\tdAtA:", "da\nta:"])
    kind = chosen.choice(["", "image/png", " image/png ", "text/plain;charset=x", ";;", "é", "a b"])
    marks = [";base64", "; base64", ";BASE64", ";base64 ", ";   bAse64", ";base64;", ";base 64", ""]
    body = "".join(
        chosen.choice([*ALPHABET, *"=\t\n\r\f -_%", "%3D", "%2b", "%20", "%0A", "%5F", "é", ","])
        for _ in range(chosen.randrange(9))
    )
    tail = chosen.choice(["", "", "=", "==", "%3D", "#AAAA"])
    return f"{scheme}{kind}{chosen.choice(marks)},{body}{tail}".replace(" #", "#")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_as_a_browser_engine() -> None:
    chosen = random.Random(5)
    uris = [random_uri(chosen) for _ in range(1500)]
    script = """
        const uris = JSON.parse(require("fs").readFileSync(0, "utf-8"));
        const read = async uri => {
            try { return Buffer.from(await (await fetch(uri)).arrayBuffer()).toString("hex"); }
            catch { return null; }
        };
        Promise.all(uris.map(read)).then(found => console.log(JSON.stringify(found)));
    """
    done = subprocess.run(
        ["node", "-e", script], input=json.dumps(uris), capture_output=True, text=True, check=True
    )
    theirs = json.loads(done.stdout)
    assert sum(found is not None for found in theirs) > 300
    assert sum(found is None for found in theirs) > 300
    for uri, found in zip(uris, theirs, strict=True):
        # No data is no image, so it is refused here.
        assert decoded(uri) == (bytes.fromhex(found) if found else None), uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:#,AAAA", "no comma"),
        ("data:image/png;base64,", "is empty"),
        ("data:,", "is empty"),
        ("data:;base64,AA-_", "URL-safe"),
        ("data:;base64,AAAA=A", "'=' at position 4"),
        ("data:;base64,AA%", "'%' at position 2"),
        ("data:;base64,AéA", "'é' at position 1"),
        ("data:;base64,AAAAA", "5 characters"),
        ("data:;base64,\ud800", "position 0"),
    ],
)
def test_what_is_wrong_is_said(uri: str, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_data_uri(uri)


def test_long_texts_are_decoded_and_never_repeated_in_errors() -> None:
    data = bytes(range(256)) * 8192
    text = base64.b64encode(data).decode()
    escaped = "".join(f"%{ord(character):02X}" for character in text)
    assert decode_data_uri("data:;base64," + escaped) == data
    with pytest.raises(ImageError) as caught:
        decode_data_uri("data:;base64," + text + "?")
    assert len(str(caught.value)) < 100
    assert len(shorten("a" * 10**6)) < 100
    assert shorten("it's") == '"it\'s"'


def test_what_is_meant_as_a_data_uri() -> None:
    assert all(map(is_data_uri, ["data:,", "DaTa:x", " \ndata:x"]))
    assert not any(map(is_data_uri, ["data", "data.png", "./data:x", "", "file:data:"]))
