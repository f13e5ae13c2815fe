"""The tab Live without a browser: answers about frames, and errors."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from edgevlm import VLM, EdgeVLMError
from edgevlm.demo import live
from edgevlm.demo.model_pool import ModelPool

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SQUARE, SCENE, CHANGED = (EXAMPLES / f"{name}.png" for name in ("square", "scene", "changed"))
NANO = "edgevlm-nano"
SIDES = ("left", "top", "right", "bottom")


@pytest.fixture(scope="module")
def models() -> Iterator[ModelPool]:
    models = ModelPool(threads=1)
    yield models
    models.close()


def sent(picture: Path = SQUARE, **fields: Any) -> dict[str, Any]:
    """Return a frame as the tab Live sends it."""
    file = io.BytesIO()
    Image.open(picture).convert("RGB").save(file, "JPEG", quality=95)
    return {"image": data_uri(file.getvalue()), "question": "What color is it?"} | fields


def data_uri(data: bytes) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"


def test_live_answers_and_scores(models: ModelPool) -> None:
    watch = live.LiveAnswers(models, {"max_tokens": 20})
    assert watch.answer("page", live.parse_frame(sent(model=NANO))) == {
        "answer": "green",
        "choices": [],
        "boxes": [],
        "points": [],
    }
    frame = live.parse_frame(sent(choices=" red, green,, blue,"))
    assert frame.choices == ("red", "green", "blue")
    scored = watch.answer("page", frame)
    with VLM.from_pretrained(NANO, threads=1) as vlm:
        expected = vlm.score(frame.pixels, frame.question, frame.choices)
    assert scored is not None and scored["answer"] == "green"
    assert dict(scored["choices"]) == pytest.approx(
        {score.text: score.probability for score in expected}, abs=1e-3
    )
    assert watch.active_frame("page") is None, "nothing is kept of a frame that is answered"


def test_live_points_with_boxes(models: ModelPool) -> None:
    watch = live.LiveAnswers(models, {"max_tokens": 20})
    answer = watch.answer("page", live.parse_frame(sent(SCENE, question="Where is the key?")))
    assert answer is not None
    percent = json.loads(answer["answer"])
    assert [round(100 * answer["boxes"][0][side]) for side in SIDES] == percent


def test_live_keeps_no_frame(models: ModelPool) -> None:
    """Neither its embeddings nor a copy of the KV cache, for answers as for scores."""
    watch = live.LiveAnswers(models, {"max_tokens": 20})
    with models.acquire(NANO) as loaded:
        before = loaded.vlm.cache_info()
        for picture in (SCENE, CHANGED, SQUARE):
            watch.answer("page", live.parse_frame(sent(picture)))
            watch.answer("page", live.parse_frame(sent(picture, choices="red, green")))
        after = loaded.vlm.cache_info()
    assert after.encoded_tiles > before.encoded_tiles
    assert (after.tiles, after.conversations) == (before.tiles, before.conversations)


def test_live_stops_within_a_token_and_newer_frames_replace_older_ones(models: ModelPool) -> None:
    """Another stream holds the model, so no answer can end by itself."""
    watch = live.LiveAnswers(models, {"max_tokens": 20})
    found: dict[str, Any] = {}

    def look(name: str) -> None:
        found[name] = watch.answer("page", live.parse_frame(sent()))

    def began() -> live.ActiveFrame:
        while (look := watch.active_frame("page")) is None:
            time.sleep(0.01)
        return look

    with models.acquire(NANO) as loaded:
        holding = loaded.vlm.stream(None, "What?", max_tokens=30)
        next(holding)
        older = threading.Thread(target=look, args=["older"])
        older.start()
        first = began()
        newer = threading.Thread(target=look, args=["newer"])
        newer.start()
        assert first.stopped.wait(30)
        while watch.active_frame("page") is first:
            time.sleep(0.01)
        watch.stop("page")
        watch.stop("another page")
        for thread in (older, newer):
            thread.join(30)
            assert not thread.is_alive(), "it does not wait for the stream that holds the model"
        holding.close()
    assert found == {"older": None, "newer": None}
    look("next")
    assert found["next"]["answer"] == "green"


def claiming(side: int) -> bytes:
    """Return a small JPEG file whose header claims this width and height."""
    file = io.BytesIO()
    Image.open(SQUARE).convert("RGB").save(file, "JPEG")
    data = bytearray(file.getvalue())
    size = (
        data.index(b"\xff\xc0") + 5
    )  # after the marker of the frame header, its length and the depth
    data[size : size + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"question": " \n"}, "question is empty"),
        ({"question": None}, "question is empty"),
        ({"choices": "red"}, "One choice is none"),
        ({"choices": "red, green,red"}, "“red” is there twice"),
        ({"choices": ",".join(map(str, range(100)))}, "100 choices, more than 50"),
        ({"image": None}, "not a JPEG"),
        ({"image": "C:\\frame.jpg"}, "not a JPEG"),
        ({"image": data_uri(SQUARE.read_bytes())}, "not a JPEG"),
        ({"image": "data:image/jpeg;base64,"}, "is empty"),
        ({"image": data_uri(b"\xff\xd8\xff" + bytes(5 * 2**20))}, "more than 4 MB"),
        ({"image": data_uri(claiming(5_000))}, "5000 × 5000 pixels"),
        ({"image": data_uri(claiming(20_000))}, "400000000 pixels"),
        ({"image": sent()["image"][:400]}, "not base64"),
        ({"image": sent()["image"][:403]}, "cannot be read as an image"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_live_says_what_is_wrong_with_a_frame(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(EdgeVLMError, match=problem):
        live.parse_frame(sent(**fields))
