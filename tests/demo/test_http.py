"""The demo over HTTP, with Gradio's own client."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from edgevlm import VLM, Box, Bundle, BundleError, ContextError, InputError
from edgevlm.demo import conversation, markup
from edgevlm.demo.app import build, launch
from edgevlm.demo.chat import EXAMPLE_IMAGES, EXAMPLES
from edgevlm.demo.inside import facts, locations_on_image
from edgevlm.demo.model_pool import MAX_LOADED, ModelPool
from edgevlm.demo.streaming import ActiveStreams, AnswerRecord, AnswerStream
from edgevlm.inputs.images import load_image
from edgevlm.local_bundles import remember
from edgevlm.results import TokenLogprob

REPOSITORY = Path(__file__).resolve().parents[2]
SQUARE = REPOSITORY / "examples" / "square.png"
SCENE = REPOSITORY / "examples" / "scene.png"
NANO = "edgevlm-nano"


@pytest.fixture(scope="module")
def models() -> Iterator[ModelPool]:
    models = ModelPool(threads=1)
    yield models
    models.close()


@pytest.fixture(scope="module")
def address(models: ModelPool) -> Iterator[str]:
    page = build(models, {"max_tokens": 20})
    yield launch(page)
    page.close(verbose=False)


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the local exports `one`, `two` and `three`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("three", "two", "one"):
        shutil.copytree(Bundle.open(NANO).folder, tmp_path / name)
        remember(tmp_path / name)
    return tmp_path


def asked(text: str, *pictures: Path) -> dict[str, Any]:
    """Return the value of the question box."""
    return {"text": text, "files": [handle_file(picture) for picture in pictures]}


def said(history: list[Any]) -> str:
    return conversation.text_of(history[-1])


def question(text: str, picture: Path | None = SQUARE) -> list[dict[str, Any]]:
    paths = [] if picture is None else [str(picture)]
    return [conversation.as_message(conversation.user_turn(text, paths))]


def test_conversation_about_an_uploaded_picture(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    client = Client(address, verbose=False)
    history, _ = client.predict(asked("What color is it?", SQUARE), [], api_name="/chat")
    assert said(history) == "green"
    with VLM.from_pretrained(NANO, threads=1) as vlm:
        chat = vlm.chat()
        chat.send("What color is it?", images=[SQUARE])
        expected = chat.send("What shape is it?").text
    picture = {"type": "file", "file": handle_file(SQUARE)}
    before = [
        {"role": "user", "content": [picture, {"type": "text", "text": "What color is it?"}]},
        conversation.assistant_turn("green"),
    ]
    history, _ = client.predict(asked("What shape is it?"), before, api_name="/chat")
    assert said(history) == expected and len(history) == 4


def test_port_that_is_taken_is_an_error(address: str, models: ModelPool) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    page = build(models, {})
    with pytest.raises(InputError, match=f"port {port} cannot be used"):
        launch(page, port)


def test_answer_streams(address: str) -> None:
    client = Client(address, verbose=False)
    steps = list(client.submit(asked("What is in the picture?", SQUARE), [], api_name="/chat"))
    pieces = [said(history) for history, _ in steps if len(history) > 1]
    assert len(pieces) > 1
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(pieces))
    assert pieces[-1] == "There is a green square."


def test_broken_picture_is_a_message_and_the_page_lives_on(address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SQUARE.read_bytes()[:200])
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match="cannot be"):
        client.predict(asked("What is it?", broken), [], api_name="/chat")
    history, _ = client.predict(asked("What color is it?", SQUARE), [], api_name="/chat")
    assert said(history) == "green"


def test_both_spellings_of_a_turn() -> None:
    expected = {
        "role": "user",
        "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}],
    }
    sent = [{"path": "a.png"}, "What is it?"]
    shown = [
        {"type": "file", "file": {"path": "a.png"}, "alt_text": None},
        {"type": "text", "text": "What is it?"},
    ]
    for content in (sent, shown):
        assert conversation.as_message({"role": "user", "content": content}) == expected
    assert conversation.as_message({"role": "assistant", "content": "red"})["content"] == [
        {"type": "text", "text": "red"}
    ]


def test_a_conversation_as_a_file_has_its_pictures_inside() -> None:
    history = [
        conversation.user_turn("What color is it?", [str(SQUARE)]),
        conversation.assistant_turn("green"),
        conversation.user_turn("", ["gone.png"]),
    ]
    text = conversation.as_markdown(NANO, history)
    encoded = text.split("data:image/png;base64,")[1].split(")")[0]
    assert base64.b64decode(encoded) == SQUARE.read_bytes()
    assert "green" in text and "no longer there" in text
    assert conversation.title(history) == "What color is it? green"


def test_the_example_pictures_are_those_of_the_repository() -> None:
    names = {name for _, pictures in EXAMPLES for name in pictures}
    assert names == {path.name for path in EXAMPLE_IMAGES.glob("*.png")}
    for name in names:
        assert (EXAMPLE_IMAGES / name).read_bytes() == (REPOSITORY / "examples" / name).read_bytes()


def test_an_answer_can_be_stopped_by_another_thread(models: ModelPool) -> None:
    """Another stream holds the model, so the answer cannot end by itself."""
    with models.acquire(NANO) as loaded:
        holding = loaded.vlm.stream(None, "What?", max_tokens=30)
        next(holding)
        stream = AnswerStream(models, NANO, question("What color is it?"), {"max_tokens": 20})
        read: list[Any] = []
        reader = threading.Thread(target=lambda: read.extend(stream))
        reader.start()
        stream.stop()
        reader.join(30)
        assert not reader.is_alive() and read == []
        assert not stream.join(0)
        holding.close()
        assert stream.join(30)
        assert loaded.vlm.ask(SQUARE, "What color is it?").text == "green"


def test_leaving_a_stream_stops_it(models: ModelPool) -> None:
    stream = AnswerStream(models, NANO, question("What is in the picture?"), {"max_tokens": 20})
    chunks = iter(stream)
    next(chunks)
    chunks.close()
    assert stream.join(30)


def test_a_browser_waits_for_one_answer_at_most(models: ModelPool) -> None:
    streams = ActiveStreams()
    first = AnswerStream(models, NANO, question("What is it?"), {"max_tokens": 20})
    second = AnswerStream(models, NANO, question("What color is it?"), {"max_tokens": 20})
    streams.begin("one browser", first)
    streams.begin("one browser", second)
    assert "".join(chunk.text for chunk in second) == "green"
    assert first.join(30) and list(first) == []
    streams.stop("one browser")
    streams.stop("another")


def test_what_a_model_says_against_a_request_comes_through(models: ModelPool) -> None:
    stream = AnswerStream(models, NANO, question("word " * 6000, None), {"max_tokens": 20})
    with pytest.raises(ContextError, match="but the context has"):
        list(stream)
    with pytest.raises(InputError, match="no model 'nobody'"):
        list(AnswerStream(models, "nobody", question("What?"), {}))


def test_exported_models_are_offered_and_few_stay_loaded(exports: Path) -> None:
    models = ModelPool(threads=1)
    labels = [entry.label for entry in models.entries()]
    assert labels == [NANO, "one", "two", "three"]
    for label in labels:
        with models.acquire(label) as loaded:
            assert loaded.vlm.ask(SQUARE, "What color is it?").text == "green"
            assert loaded.disk == loaded.vlm.vision_file.size + loaded.vlm.decoder_file.size
    assert [models.is_loaded(label) for label in labels] == [False, False, True, True]
    with models.acquire("two") as held, models.acquire("one"), models.acquire(NANO):
        assert held.vlm.ask(SQUARE, "What color is it?").text == "green", "one in use stays"
    assert sum(map(models.is_loaded, labels)) > MAX_LOADED
    shutil.rmtree(exports / "three")
    assert [entry.label for entry in models.entries()] == [NANO, "one", "two"]
    models.close()
    assert not any(map(models.is_loaded, labels))


def test_a_broken_model_says_why(exports: Path) -> None:
    (decoder,) = Bundle.open(exports / "one").manifest.decoder.files.values()
    (exports / "one" / decoder.name).write_bytes(b"short")
    models = ModelPool(threads=1)
    (entry,) = [entry for entry in models.entries() if entry.label == "one"]
    assert entry.problem is not None and "has 5 bytes" in entry.problem
    for _ in range(2):
        with pytest.raises(BundleError, match="has 5 bytes"), models.acquire("one"):
            pass
    with models.acquire("two") as loaded:
        assert loaded.vlm.ask(SQUARE, "What color is it?").text == "green"
    models.close()


def test_a_model_is_loaded_once_for_all(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[Any] = []
    load = VLM.from_pretrained.__func__  # type: ignore[attr-defined]  # every class method has it

    def counted(cls: Any, /, model: Any, **options: Any) -> Any:
        loads.append(model)
        return load(cls, model, **options)

    monkeypatch.setattr(VLM, "from_pretrained", classmethod(counted))
    models = ModelPool(threads=1)

    def acquire() -> None:
        with models.acquire("one"):
            pass

    threads = [threading.Thread(target=acquire) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    models.close()
    assert loads == [str(exports / "one")]


def test_inside_draws_the_box_of_an_answer(models: ModelPool) -> None:
    with models.acquire(NANO) as loaded:
        answer = loaded.vlm.ask(SCENE, "Where is the key?")
    record = AnswerRecord(
        NANO, question("Where is the key?", SCENE), {}, answer.text, (), answer.stats, answer.boxes
    )
    found = locations_on_image(record)
    assert found is not None
    picture, [box] = found
    assert isinstance(box, Box)
    percent = json.loads(answer.text)
    assert (box.left, box.top, box.right, box.bottom) == tuple(p / 100 for p in percent)
    assert np.array_equal(np.asarray(picture), load_image(SCENE))
    assert dict(facts(answer.stats))["tokens of the answer"].startswith(
        str(answer.stats.answer_tokens)
    )
    assert locations_on_image(AnswerRecord(NANO, record.messages, {}, "a key")) is None


def test_no_text_becomes_markup() -> None:
    nasty = '<b>${1} {{2}} `3` & "4"'
    for made in (
        markup.escaped(nasty),
        markup.problem(nasty),
        markup.tokens([TokenLogprob(1, nasty.encode(), -0.1, (TokenLogprob(1, b"<i>", -1.0),))]),
        *markup.mark_differences(nasty, ""),
    ):
        assert "<b>$" not in made and "<i>" not in made
        assert not set("{}$`") & set(made)


def test_words_that_differ_are_marked() -> None:
    left, right = markup.mark_differences("a red star and a key", "a blue star and two keys")
    assert left == "a <mark>red</mark> star and <mark>a key</mark>"
    assert right == "a <mark>blue</mark> star and <mark>two keys</mark>"
    assert markup.mark_differences("same", "same") == ("same", "same")


def test_a_waterfall_has_no_gap(models: ModelPool) -> None:
    with models.acquire(NANO) as loaded:
        stats = loaded.vlm.ask(SCENE, "What is in the picture?").stats
    drawn = markup.waterfall(stats)
    found = re.findall(r"left:([0-9.]+)%;width:([0-9.]+)%", drawn)
    places = [(float(left), float(width)) for left, width in found]
    ends = np.cumsum([width for _, width in places])
    assert places[0][0] == 0 and ends[-1] == pytest.approx(100, abs=0.1)
    np.testing.assert_allclose([left for left, _ in places[1:]], ends[:-1], atol=0.1)
