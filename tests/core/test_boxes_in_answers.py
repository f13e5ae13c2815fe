"""Boxes and points of whole answers, with a sampler that chooses what the model writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevlm import VLM, InputError, Point
from edgevlm.runtimes.protocols import Sampler
from tests.conftest import picture
from tests.support.oracle import BUNDLES

MARKERS = ("<|box_start|>", "<|box_end|>", "<|object_ref_start|>", "<|object_ref_end|>")
BOX = "<|object_ref_start|>a cat<|object_ref_end|><|box_start|>(100,200),(300,400)<|box_end|>"


class Script:
    """A sampler that writes given tokens."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = iter(tokens)

    def sample(self) -> int:
        return next(self._tokens)

    def forced(self, limit: int) -> list[int]:
        return []

    def close(self) -> None:
        pass


class Writer:
    """A model that writes what it is told, about whatever it sees.

    Args:
        vlm: a model, whose last special tokens have the names `MARKERS`.
    """

    def __init__(self, vlm: VLM) -> None:
        self.vlm = vlm
        self._special = {token.text: token.id for token in vlm.manifest.prompt.special_tokens}
        self._decoder: Any = vlm._engine._decoder

    def tokens(self, text: str) -> list[int]:
        """Return token ids of a text with special tokens in it."""
        at = min(((text.index(one), one) for one in MARKERS if one in text), default=None)
        if at is None:
            return list(self._decoder.tokenize(text)) if text else []
        start, marker = at
        rest = text[start + len(marker) :]
        return [*self.tokens(text[:start]), self._special[marker], *self.tokens(rest)]

    def write(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let all following answers be this text."""
        tokens = [*self.tokens(text), self.vlm.manifest.prompt.end_token_ids[0]]

        def sampler(*_: object) -> Sampler:
            return Script(tokens)

        monkeypatch.setattr(self._decoder, "sampler", sampler)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Writer]:
    folder = shutil.copytree(BUNDLES / "smolvlm", tmp_path_factory.mktemp("boxes") / "bundle")
    path = Path(folder, "manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    for token, marker in zip(manifest["prompt"]["special_tokens"][-10:], MARKERS, strict=False):
        assert token["text"].startswith("<row_")
        token["text"] = marker
    manifest["usage"] = {
        "location_format": {"kind": "box-tokens", "scale": 1000},
        "tasks": {"en": {"detect": "Where is the {thing}?", "point": "Point to {thing}."}},
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with VLM.from_pretrained(folder, threads=1) as vlm:
        yield Writer(vlm)


def test_special_tokens_are_read_though_the_text_lacks_them(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(f"Here is {BOX} and {BOX}", monkeypatch)
    answer = writer.vlm.ask(picture(0, 60, 40), "Where?", top_logprobs=0)
    assert answer.text.count("(100,200),(300,400)") == 2 and "box_start" not in answer.text
    first, second = answer.boxes
    assert (first.left, first.top, first.right, first.bottom) == (0.1, 0.2, 0.3, 0.4)
    assert first.label == second.label == "a cat" and first.image_size == (60, 40)
    coordinates = writer.tokens("<|box_start|>(100,200),(300,400)<|box_end|>")
    ids = list(answer.token_ids)
    start = ids.index(coordinates[0])
    assert ids[start : start + len(coordinates)] == coordinates
    logprobs = [one.logprob for one in answer.logprobs[start : start + len(coordinates)]]
    assert first.probability == pytest.approx(math.exp(np.mean(logprobs)))
    assert answer.points == ()
    plain = writer.vlm.ask(picture(0, 60, 40), "Where?", repetition_penalty=1.1)
    assert [box.probability for box in plain.boxes] == [None, None]


def test_every_way_of_asking_has_boxes_on_the_last_image(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(BOX, monkeypatch)
    options: Any = {"top_logprobs": 0}
    large, small = picture(0, 60, 40), picture(1, 30, 20)
    assert writer.vlm.ask([large, small], "Where?", **options).boxes[0].image_size == (30, 20)
    assert writer.vlm.ask(None, "Where?", **options).boxes == ()
    *others, last = writer.vlm.stream(large, "Where?", **options)
    assert last.boxes[0].pixels() == (6, 8, 18, 16)
    assert all(chunk.boxes == () for chunk in others)
    chat = writer.vlm.chat()
    assert chat.send("Where?", [small, large], **options).boxes[0].pixels() == (6, 8, 18, 16)
    assert chat.send("And now?", **options).boxes[0].image_size == (60, 40)
    parts = [{"type": "image", "image": small}, {"type": "text", "text": "Where?"}]
    message = {"role": "user", "content": parts}
    assert writer.vlm.generate([message], **options).boxes[0].image_size == (30, 20)


def test_an_answer_that_is_cut_off_has_its_complete_boxes(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(BOX * 3, monkeypatch)
    number = len(writer.tokens(BOX))
    for tokens, expected in ((number, 1), (2 * number - 1, 1), (2 * number, 2)):
        answer = writer.vlm.ask(picture(0), "Where?", max_tokens=tokens, top_logprobs=0)
        assert answer.finish_reason == "length" and len(answer.boxes) == expected


def test_detect_and_point(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = "<|box_start|>(1,2),(3,4)<|box_end|>"
    writer.write(BOX + "<|object_ref_start|><|object_ref_end|>" + bare, monkeypatch)
    found = writer.vlm.detect(picture(0), "tom cat")
    assert [box.label for box in found] == ["a cat", "tom cat"]
    assert all(box.probability is not None and 0 < box.probability <= 1 for box in found)
    assert writer.vlm.point(picture(0), "the tail") == [], "this format has no points"
    assert writer.vlm.detect(picture(0), "cat", max_tokens=3) == []
    with pytest.raises(InputError, match="language must be one of en for this model, is 'ru'"):
        writer.vlm.detect(picture(0), "кот", language="ru")
    writer.write("There is no cat.", monkeypatch)
    assert writer.vlm.detect(picture(0), "cat") == []


def test_a_model_without_boxes_says_what_to_do(smolvlm: VLM) -> None:
    assert smolvlm.ask(picture(0), "Where?", max_tokens=3).boxes == ()
    for ask in (smolvlm.detect, smolvlm.point):
        with pytest.raises(InputError, match="writes no boxes and no points; use one for which"):
            ask(picture(0), "cat")


def test_points_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(BUNDLES / "smolvlm", tmp_path / "bundle")
    path = Path(folder, "manifest.json")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["usage"] = {
        "location_format": {
            "kind": "json",
            "box_keys": ["bbox_2d"],
            "point_keys": ["point_2d"],
            "label_key": "label",
            "scale": None,
        },
        "tasks": {"en": {"point": "Point to {thing}."}},
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with VLM.from_pretrained(folder, threads=1) as vlm:
        Writer(vlm).write('[{"point_2d": [16, 48]}]', monkeypatch)
        # The overview of a tiled image is 64 x 64 pixels, whatever the aspect ratio of the image.
        (point,) = vlm.point(picture(0, 200, 100), "the handle")
        assert (point.x, point.y, point.label) == (0.25, 0.75, "the handle")
        assert point.pixels() == (50, 75) and isinstance(point, Point)
