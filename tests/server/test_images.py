"""The server reads images as the library does: what it takes is decoded, what it refuses it names alike."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from edgevlm.errors import EdgeVLMError
from edgevlm.inputs.images import load_image
from tests.support.image_writers import chunk, png
from tests.support.serving import MODEL, serving

SQUARE = Path(__file__).resolve().parents[2] / "examples" / "square.png"
DATA = SQUARE.read_bytes()
TEXT = base64.b64encode(DATA).decode()
QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


def ask(address: str, url: str) -> httpx.Response:
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    return httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60)


def answer(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize(
    "body",
    [
        TEXT.rstrip("="),
        "\r\n".join(TEXT[at : at + 76] for at in range(0, len(TEXT), 76)),
        TEXT.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D"),
        f" {TEXT[:9]}\t{TEXT[9:]} ",
    ],
    ids=["no padding", "wrapped", "percent signs", "blanks"],
)
def test_base64_as_browsers_accept_it(address: str, body: str) -> None:
    assert answer(ask(address, f"DATA:image/png; BASE64,{body}")) == "green"


def files() -> dict[str, bytes]:
    """Files that say the same in another form."""
    pixels = load_image(SQUARE)
    exif = Image.Exif()
    exif[0x0112] = 1
    found = {
        "16 bits": png(pixels.astype(np.uint16) * 257),
        "broken EXIF": png(pixels, before=[chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff")]),
        "long text": png(pixels, before=[chunk(b"zTXt", b"key\0\7none")]),
    }
    file = io.BytesIO()
    import pillow_heif

    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=90)
    return found | {"HEIC": file.getvalue()}


@pytest.mark.parametrize("name", ["16 bits", "broken EXIF", "long text", "HEIC"])
def test_what_is_taken_is_decoded(address: str, name: str) -> None:
    data = files()[name]
    assert answer(ask(address, "data:;base64," + base64.b64encode(data).decode())) == "green"
    response = httpx.post(
        f"{address}/v1/files",
        files={"file": ("photo", data)},
        data={"purpose": "vision"},
        timeout=60,
    )
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    "data",
    [
        b"no image",
        DATA[:20],
        DATA[: len(DATA) // 2],
        png(np.zeros((4, 4), np.uint8))[:45],
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    ],
    ids=range(5),
)
def test_what_is_refused_is_named_as_the_library_names_it(address: str, data: bytes) -> None:
    with pytest.raises(EdgeVLMError) as caught:
        load_image(data)
    response = ask(address, "data:;base64," + base64.b64encode(data).decode())
    message = response.json()["error"]["message"]
    assert response.status_code == 400
    # The place stands before it, unless it is found when the image is decoded.
    assert message.removeprefix("messages.0.content.0.image_url.url: ") == str(caught.value)
    assert "object at 0x" not in response.text


def test_a_data_uri_that_is_none_is_not_repeated(address: str) -> None:
    for uri, words in (
        ("data:image/png;base64," + "A" * 400_000 + "_", "URL-safe"),
        ("data:image/png;base64" + "A" * 400_000, "no comma"),
        ("data:,", "is empty"),
    ):
        response = ask(address, uri)
        assert response.status_code == 400
        assert words in response.json()["error"]["message"]
        assert len(response.text) < 500
