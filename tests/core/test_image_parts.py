"""Image parts of messages: all forms of an image part give the model the same image."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import VLM
from edgevlm.errors import ImageError, PromptError
from edgevlm.results import PromptTile
from tests.conftest import picture
from tests.support.image_writers import png

PIXELS = np.asarray(picture(5))
DATA = png(PIXELS)


def tiles(vlm: VLM, *parts: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the tiles that the model gets for image parts."""
    content = [*({"type": "image", **part} for part in parts), {"type": "text", "text": "What?"}]
    prompt = vlm.prompt([{"role": "user", "content": content}])
    return [part.pixels for part in prompt.parts if isinstance(part, PromptTile)]


def test_every_spelling_shows_the_same(smolvlm: VLM, tmp_path: Path) -> None:
    path = tmp_path / "a b.png"
    path.write_bytes(DATA)
    text = base64.b64encode(DATA).decode()
    expected = tiles(smolvlm, {"image": PIXELS})
    parts: list[dict[str, Any]] = [
        {"image": io.BytesIO(DATA)},
        {"image": f"data:image/png;base64,{text}"},
        {"path": str(path)},
        {"path": path},
        {"url": path.as_uri()},
        {"url": f"data:;base64,{text}"},
        {"base64": text},
    ]
    for part in parts:
        np.testing.assert_array_equal(tiles(smolvlm, part), expected)
    assert len(tiles(smolvlm, *parts[1:])) == len(expected) * (len(parts) - 1)


def test_one_image_may_cost_less(smolvlm: VLM) -> None:
    assert len(tiles(smolvlm, {"image": PIXELS, "detail": "low"})) == 1


@pytest.mark.parametrize(
    ("part", "error"),
    [
        ({}, PromptError),
        ({"image": PIXELS, "base64": "AAAA"}, PromptError),
        ({"url": "https://example.com/a.png"}, ImageError),
        ({"url": "relative.png"}, ImageError),
    ],
    ids=["none", "two", "http", "path as url"],
)
def test_parts_that_show_nothing(smolvlm: VLM, part: dict[str, Any], error: type) -> None:
    with pytest.raises(error) as caught:
        tiles(smolvlm, part)
    assert len(str(caught.value)) < 200


def test_an_open_file_is_one_image_for_every_call(smolvlm: VLM) -> None:
    expected = smolvlm.ask(PIXELS, "What?", max_tokens=3).text
    assert smolvlm.ask(io.BytesIO(DATA), "What?", max_tokens=3).text == expected
    assert smolvlm.chat().send("What?", io.BytesIO(DATA), max_tokens=3).text == expected
    np.testing.assert_array_equal(
        smolvlm.encode_image(io.BytesIO(DATA)), smolvlm.encode_image(PIXELS)
    )
    scores = [smolvlm.score(image, "What?", ["a", "b"]) for image in (PIXELS, io.BytesIO(DATA))]
    assert scores[0] == scores[1]
