"""The conversation store, its files and settings, without a browser and a model."""

from __future__ import annotations

import base64
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm import InputError
from edgevlm.demo import conversation, conversation_store
from edgevlm.demo.conversation_file import MAX_BYTES, MAX_TURNS, as_json, from_json
from edgevlm.demo.conversation_store import MAX_CONVERSATIONS, UNDO_SECONDS, ConversationStore
from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.settings import MAX_TEXT_LENGTH, fit_value

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PICTURES = [EXAMPLES / f"{name}.png" for name in ("scene", "changed", "shapes", "square")]

ODD_TEXTS = (
    "**user**",
    "![picture](data:image/png;base64,AAAA)",
    "<b>bold</b> &lt; & `a`",
    '{"role": "user"}',
    "# Title\n\n- one\n- two",
    "  spaces \n\n at both ends  ",
    "Ёжик в тумане, 漢字, \U0001f994\u200d",
    "</div><script>alert(1)</script>",
    "\u2028\u0000\r\n",
)

texts = st.one_of(
    st.sampled_from(ODD_TEXTS), st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
)
turns = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant"]),
        texts,
        st.lists(st.sampled_from(PICTURES), max_size=4),
    ),
    min_size=1,
    max_size=6,
)


def built(spoken: list[tuple[str, str, list[Path]]]) -> list[dict[str, Any]]:
    return [
        conversation.user_turn(text, [str(picture) for picture in pictures])
        if role == "user"
        else conversation.assistant_turn(text)
        for role, text, pictures in spoken
    ]


def meaning(history: list[dict[str, Any]]) -> list[Any]:
    """Return roles, texts and the bytes of images, in order."""
    return [
        (
            turn["role"],
            [
                (kind, Path(part).read_bytes() if kind == "image" else part)
                for kind, part in conversation.parts(turn)
            ],
        )
        for turn in history
    ]


@given(turns, texts)
@settings(max_examples=60, deadline=None)
def test_what_is_saved_is_opened_again(
    spoken: list[tuple[str, str, list[Path]]], title: str
) -> None:
    history = built(spoken)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "saved.json"
        path.write_text(as_json(title, history), encoding="utf-8")
        opened_title, opened = from_json(path, Path(folder) / "uploads")
        assert opened_title == title
        assert meaning(opened) == meaning(history)
        assert as_json(title, opened) == as_json(title, history)


def saved(**changes: Any) -> dict[str, Any]:
    data = json.loads(as_json("title", built([("user", "What?", [PICTURES[3]])])))
    return {**data, **changes}


def picture(data: bytes) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"image": base64.b64encode(data).decode()}]}]


def svg() -> bytes:
    return b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'


def icon() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PCX")
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        (json.dumps(saved())[:-40], "cannot be read as JSON"),
        (b"\xff\xfe\x00", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("1" * 5000, "cannot be read as JSON"),
        (PICTURES[0].read_bytes(), "cannot be read as JSON"),
        ("[]", "no conversation that edgevlm saved"),
        ('{"format": "another"}', "no conversation that edgevlm saved"),
        (saved(version=2), "has version 2 of the format, this edgevlm reads version 1"),
        (saved(version="1"), "has version '1' of the format"),
        (saved(title=None), "has no title or no turns"),
        (saved(turns={}), "has no title or no turns"),
        (saved(turns=[]), "an empty conversation"),
        (
            saved(turns=[{"role": "user", "content": []}] * 10_000),
            "has 10,000 turns; at most 2,000",
        ),
        (saved(turns=["hello"]), "turn 1 in file.json has no role or no content"),
        (saved(turns=[{"role": "system", "content": []}]), "has no role or no content"),
        (saved(turns=[{"role": ["user"], "content": []}]), "has no role or no content"),
        (saved(turns=[{"role": "user", "content": "text"}]), "has no role or no content"),
        (saved(turns=[{"role": "user", "content": [{}]}]), "is no text and no image"),
        (
            saved(turns=[{"role": "user", "content": [{"path": "/etc/passwd"}]}]),
            "is no text and no image",
        ),
        (saved(turns=[{"role": "user", "content": [{"image": 7}]}]), "is no text and no image"),
        (saved(turns=[{"role": "user", "content": [{"text": "\ud800"}]}]), "half a character"),
        (saved(title="\udfff"), "half a character"),
        (
            saved(turns=[{"role": "user", "content": [{"image": "/etc/passwd"}]}]),
            "a picture of turn 1",
        ),
        (saved(turns=picture(b"")), "a picture of turn 1"),
        (saved(turns=picture(PICTURES[0].read_bytes()[:300])), "a picture of turn 1"),
        (saved(turns=picture(svg())), "a picture of turn 1"),
        (saved(turns=picture(icon())), "a picture of turn 1"),
    ],
)
def test_a_bad_file_is_refused_in_words(
    content: str | bytes | dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "file.json"
    content = json.dumps(content) if isinstance(content, dict) else content
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as refused:
        from_json(path, tmp_path / "uploads")
    assert reason in str(refused.value)
    assert len(str(refused.value)) < 400
    assert not (tmp_path / "uploads").exists()


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    path.touch()
    os.truncate(path, MAX_BYTES + 1)  # takes no room on the disk
    with pytest.raises(InputError, match="files of at most 537 MB are opened"):
        from_json(path, tmp_path)


def test_what_cannot_be_opened_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 2,000 turns"):
        as_json("title", built([("user", "What?", [])] * (MAX_TURNS + 1)))
    with pytest.raises(InputError, match=r"gone\.png .* no longer there"):
        as_json("title", [conversation.user_turn("What?", [str(tmp_path / "gone.png")])])


def test_the_name_of_a_picture_goes_by_what_it_is(tmp_path: Path) -> None:
    """A browser would run a page that pretends to be an image."""
    file = io.BytesIO()
    Image.open(PICTURES[3]).convert("RGB").save(file, "JPEG")
    path = tmp_path / "file.json"
    path.write_text(json.dumps(saved(turns=picture(file.getvalue() + svg()))))
    _, opened = from_json(path, tmp_path / "uploads")
    (place,) = conversation.images_of(opened[0])
    assert Path(place).name == "picture.jpg"


def history(*spoken: str) -> list[dict[str, Any]]:
    return [
        conversation.assistant_turn(text) if at % 2 else conversation.user_turn(text, [])
        for at, text in enumerate(spoken)
    ]


def texts_of(store: ConversationStore, browser: str, search: str = "") -> list[list[str]]:
    return [
        [conversation.text_of(turn) for turn in saved.turns]
        for saved in store.search(browser, search)
        if saved.deleted is None
    ]


def test_pages_write_their_own_conversation_and_no_other() -> None:
    store = ConversationStore()
    one = store.write("browser", history("q1", "a1")).opened
    two = store.write("browser", history("q2", "a2")).opened
    one = store.write("browser", history("q1", "a1", "q3", "a3"), one).opened
    store.write("browser", history("q2", "a2", "q4", "a4"), two)
    assert texts_of(store, "browser") == [["q2", "a2", "q4", "a4"], ["q1", "a1", "q3", "a3"]]
    assert texts_of(store, "another") == []


def test_two_pages_with_one_conversation_lose_no_turn() -> None:
    store = ConversationStore()
    opened = store.write("browser", history("q", "a")).opened
    first = store.write("browser", history("q", "a", "one", "1"), opened)
    second = store.write("browser", history("q", "a", "two", "2"), opened)
    assert (first.copied, second.copied) == (False, True)
    assert first.opened.id == opened.id != second.opened.id
    assert texts_of(store, "browser") == [["q", "a", "two", "2"], ["q", "a", "one", "1"]]
    again = store.write("browser", history("q", "a", "two", "2", "three", "3"), second.opened)
    assert (again.copied, again.opened.id) == (False, second.opened.id)


def test_a_page_that_says_nothing_new_writes_nothing() -> None:
    store = ConversationStore()
    opened = store.write("browser", history("q", "a")).opened
    store.write("browser", history("another"))
    assert store.write("browser", history("q", "a"), opened).opened == opened
    assert texts_of(store, "browser")[0] == ["another"], "still the newest"
    store.write("browser", history("q", "a", "q2", "a2"), opened)
    late = store.write("browser", history("q", "a"), opened)
    assert not late.copied and len(texts_of(store, "browser")) == 2


def test_undo_shortens_a_conversation() -> None:
    store = ConversationStore()
    opened = store.write("browser", history("q", "a", "q2", "a2")).opened
    opened = store.write("browser", history("q", "a"), opened).opened
    store.write("browser", history("q", "a", "other", "words"), opened)
    assert texts_of(store, "browser") == [["q", "a", "other", "words"]]


def test_another_browser_gets_nothing() -> None:
    store = ConversationStore()
    opened = store.write("mine", history("secret")).opened
    for attempt in (
        lambda: store.find("other", opened.id),
        lambda: store.rename("other", opened.id, "mine now"),
        lambda: store.delete("other", opened.id),
        lambda: store.restore("other", opened.id),
    ):
        with pytest.raises(InputError):
            attempt()
    assert store.search("other") == []
    written = store.write("other", history("guess"), opened)
    assert written.opened.id != opened.id
    assert texts_of(store, "mine") == [["secret"]]


def test_search_looks_at_titles_and_texts_in_any_case() -> None:
    store = ConversationStore()
    first = store.write("browser", history("Какого ЦВЕТА ёлка?", "Зелёная <b>")).opened
    store.write("browser", history("What color is the Straße?", "grey"))
    assert len(texts_of(store, "browser", "цвета  Ёлка")) == 1
    assert len(texts_of(store, "browser", "зеленая <B>")) == 1
    assert len(texts_of(store, "browser", "STRASSE")) == 1
    assert texts_of(store, "browser", "nothing") == []
    store.rename("browser", first.id, "  Новый   ГОД ")
    (found,) = store.search("browser", "новый год")
    assert found.title == "Новый ГОД"


def test_a_chosen_title_stays() -> None:
    store = ConversationStore()
    opened = store.write("browser", history("q", "a")).opened
    store.rename("browser", opened.id, "mine")
    with pytest.raises(InputError, match="empty"):
        store.rename("browser", opened.id, " \n ")
    store.write("browser", history("q", "a", "q2", "a2"), opened)
    assert [saved.title for saved in store.search("browser")] == ["mine"]
    store.rename("browser", opened.id, "long " * 100)
    assert len(store.find("browser", opened.id).title) <= conversation_store.MAX_TITLE_LENGTH


def test_a_deletion_can_be_taken_back_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConversationStore()
    opened = store.write("browser", history("q", "a")).opened
    deleted = store.delete("browser", opened.id)
    with pytest.raises(InputError, match="no longer there"):
        store.find("browser", opened.id)
    assert store.restore("browser", opened.id).deleted is None
    assert texts_of(store, "browser") == [["q", "a"]]
    store.delete("browser", opened.id)
    written = store.write("browser", history("q", "a", "q2", "a2"), opened)
    assert written.opened.id != opened.id, "a page that had it open goes on with a new one"
    assert deleted.deleted is not None
    store.files(deleted.deleted + UNDO_SECONDS + 60)
    with pytest.raises(InputError, match="for good"):
        store.restore("browser", opened.id)


def test_as_many_are_kept_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = ConversationStore()
    for number in range(MAX_CONVERSATIONS):
        assert store.write("browser", history(f"question {number}")).dropped is None
    dropped = store.write("browser", history("one more")).dropped
    assert dropped is not None and dropped.title == "question 0"
    assert len(store.search("browser")) == MAX_CONVERSATIONS
    monkeypatch.setattr(conversation_store, "MAX_BROWSERS", 2)
    store.write("second", history("q"))
    store.write("browser", history("again"))
    store.write("third", history("q"))
    assert store.search("second") == [], "the one that wrote nothing for longest"
    assert len(store.search("browser")) == MAX_CONVERSATIONS


def test_pictures_are_needed_as_long_as_a_conversation_or_a_page_has_them() -> None:
    store = ConversationStore()
    asked = [conversation.user_turn("q", ["/uploads/a.png", "/uploads/b.png"])]
    one = store.write("one", asked).opened
    two = store.write("two", [conversation.user_turn("q", ["/uploads/b.png"])]).opened
    deleted = store.delete("one", one.id).deleted
    assert deleted is not None
    assert store.files(deleted + 1) == ({"/uploads/a.png", "/uploads/b.png"}, {})
    store.show("a page", one.id)
    assert store.files(deleted + UNDO_SECONDS)[1] == {}, "another page shows it"
    store.show("a page", None)
    needed, released = store.files(deleted + UNDO_SECONDS)
    assert (needed, released) == ({"/uploads/b.png"}, {"/uploads/a.png": deleted})
    assert store.files(deleted + UNDO_SECONDS)[1] == {}
    assert two.id


@pytest.mark.parametrize(
    ("control", "value", "expected"),
    [
        (gr.Slider(1, 100, 50), 70, 70),
        (gr.Slider(1, 100, 50), 101, 100),
        (gr.Slider(1, 100, 50), -3, 1),
        (gr.Slider(1, 100, 50), "70", 50),
        (gr.Slider(1, 100, 50), float("nan"), 50),
        (gr.Slider(1, 100, 50), True, 50),
        (gr.Radio(["low", "high"], value="low"), "high", "high"),
        (gr.Radio(["low", "high"], value="low"), "middle", "low"),
        (gr.Radio(["low", "high"], value="low"), ["high"], "low"),
        (gr.Checkbox(True), False, False),
        (gr.Checkbox(True), "no", True),
        (gr.Textbox(""), "text", "text"),
        (gr.Textbox(""), 7, ""),
        (gr.Textbox(""), "long" * MAX_TEXT_LENGTH, ("long" * MAX_TEXT_LENGTH)[:MAX_TEXT_LENGTH]),
    ],
)
def test_a_setting_that_does_not_fit_any_more_is_mended(
    control: Any, value: object, expected: object
) -> None:
    assert fit_value(control, value) == expected
