"""Saved conversations: they go on as if nothing had happened, and a damaged file is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgevlm import (
    VLM,
    Answer,
    BusyError,
    CancelledError,
    Chat,
    ChatFileError,
    ClosedError,
    ContextError,
    EdgeVLMError,
    chat_file,
)
from tests.conftest import picture
from tests.support.oracle import BUNDLES, FAMILIES, with_image

QUESTIONS = ("What is this?", "And this? <b> 😀", "Which is larger?")
MODELS = [*(str(BUNDLES / family) for family in FAMILIES), "edgevlm-nano"]

GO_ON = """
import json, sys
from edgevlm import VLM

with VLM.from_pretrained(sys.argv[1], threads=1) as vlm:
    chat = vlm.load_chat(sys.argv[2])
    messages = chat.messages
    answer = chat.send(sys.argv[3], max_tokens=8, top_logprobs=3)
print(json.dumps([
    messages,
    answer.token_ids,
    [[(one.token_id, one.logprob.hex()) for one in (token, *token.top)] for token in answer.logprobs],
    answer.stats.encoded_tiles,
    answer.stats.cached_tokens,
]))
"""
"""Load a conversation in a fresh process, and print it, the next answer and what it cost."""


def logprobs(answer: Answer) -> list[Any]:
    """Return tokens with their exact log-probabilities as `GO_ON` prints them."""
    return [
        [[one.token_id, one.logprob.hex()] for one in (token, *token.top)]
        for token in answer.logprobs
    ]


def talk(vlm: VLM, folder: Path) -> Chat:
    """Return a conversation of two turns with images, whose files are gone."""
    chat = vlm.chat()
    for number, question in enumerate(QUESTIONS[:2]):
        path = folder / f"{number}.png"
        picture(number, 150 + 90 * number).save(path)
        chat.send(question, images=path, max_tokens=6)
        path.unlink()
    return chat


def go_on(chat: Chat) -> Answer:
    return chat.send(QUESTIONS[2], max_tokens=8, top_logprobs=3)


def sign(data: bytes) -> bytes:
    """Return a changed file with a checksum that fits."""
    return data[:-64] + hashlib.sha256(data[:-64]).hexdigest().encode()


def repack(data: bytes, change: Callable[[dict[str, bytes]], object], **settings: Any) -> bytes:
    """Return a file with changed members, and a checksum that fits."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **settings) as archive:
        archive.comment = b"0" * 64
        for name, content in members.items():
            archive.writestr(name, content)
    return sign(buffer.getvalue())


def change_header(data: bytes, change: Callable[[Any], object]) -> bytes:
    """Return a file with a changed ``chat.json``, and a checksum that fits."""

    def change_member(members: dict[str, bytes]) -> None:
        header = json.loads(members["chat.json"])
        change(header)
        members["chat.json"] = json.dumps(header).encode()

    return repack(data, change_member)


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(BUNDLES / "smolvlm", threads=1) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def content(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A saved conversation."""
    folder = tmp_path_factory.mktemp("saved")
    talk(vlm, folder).save(folder / "talk.zip")
    return (folder / "talk.zip").read_bytes()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: Path(model).name)
def test_a_fresh_process_goes_on_alike(model: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.zip"
    with VLM.from_pretrained(model, threads=1) as vlm:
        prefix = vlm.manifest.decoder.attention == "prefix"
        chat = talk(vlm, tmp_path)
        chat.save(path)
        messages, expected = chat.messages, go_on(chat)
    command = [sys.executable, "-c", GO_ON, model, str(path), QUESTIONS[2]]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found_messages, tokens, found, encoded_tiles, cached_tokens = json.loads(done.stdout)
    assert found_messages == messages
    assert (tuple(tokens), found) == (expected.token_ids, logprobs(expected))
    assert cached_tokens == expected.stats.cached_tokens
    if not prefix:  # such a prompt is decoded as a whole in every turn
        assert encoded_tiles == 0
        assert cached_tokens > 0.7 * expected.stats.prompt_tokens


def test_saving_changes_no_answer(fresh: Callable[..., VLM], tmp_path: Path) -> None:
    chats = [talk(fresh(), tmp_path) for _ in range(2)]
    chats[0].save(tmp_path / "talk.zip")
    saved, unsaved = map(go_on, chats)
    assert logprobs(saved) == logprobs(unsaved)
    assert saved.stats.cached_tokens == unsaved.stats.cached_tokens > 0


def test_what_is_loaded_is_saved_alike(
    fresh: Callable[..., VLM], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "talk.zip"
    path.write_bytes(content)
    fresh().load_chat(path).save(str(path))
    assert path.read_bytes() == content
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert [info.filename for info in archive.infolist()][:2] == [
            "chat.json",
            "image-1/tile-1.png",
        ]


def test_only_its_own_conversation_is_saved(fresh: Callable[..., VLM], tmp_path: Path) -> None:
    """The KV cache held the beginning of this conversation and the rest of another one."""
    vlm = fresh()
    first, second, image = vlm.chat("Be brief."), vlm.chat("Be brief."), picture(3, 200, 200)
    first.send("What is this?", images=image, max_tokens=4)
    second.send("What is this?", images=image, max_tokens=4)
    second.send("The other one's secret.", max_tokens=4)
    sizes, tokens = {}, {}
    for name, chat in ("second", second), ("first", first):
        chat.save(tmp_path / f"{name}.zip")
        with zipfile.ZipFile(tmp_path / f"{name}.zip") as archive:
            tokens[name] = json.loads(archive.read("chat.json"))["cache"]["tokens"]
            sizes[name] = archive.getinfo("kv-cache-1.bin").file_size
    assert 0 < len(tokens["first"]) <= len(first._cached_items) < len(tokens["second"])
    assert sizes["first"] < sizes["second"]
    loaded = fresh().load_chat(tmp_path / "first.zip")
    assert logprobs(go_on(loaded)) == logprobs(go_on(first))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"context_length": 1000}, "context 1000"),
        ({"kv": "q8_0"}, "kv q8_0"),
        ({"vision": "0" * 64}, "another precision"),
        ({"decoder": "0" * 64}, "another precision"),
    ],
    ids=["context", "kv", "vision", "decoder"],
)
def test_another_kv_cache_prefills_again(
    options: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "talk.zip"
    with VLM.from_pretrained(threads=1) as vlm:
        chat = talk(vlm, tmp_path)
        chat.save(path)
        messages = chat.messages
    files = {name: options.pop(name) for name in ("vision", "decoder") if name in options}
    with VLM.from_pretrained(threads=1, **options) as other:
        other._files = dataclasses.replace(other._files, **files)
        loaded = other.load_chat(path)
        assert reason in caplog.text and "prefills the conversation again" in caplog.text
        assert loaded.messages == messages
        found = go_on(loaded)
        assert found.stats.cached_tokens == 0 < found.stats.encoded_tiles
    pictures = iter(picture(number, 150 + 90 * number) for number in range(2))
    for message in messages:
        message["content"] = [with_image(part, pictures) for part in message["content"]]
    messages.append({"role": "user", "content": QUESTIONS[2]})
    with VLM.from_pretrained(threads=1, **options) as reference:
        expected = reference.generate(messages, max_tokens=8, top_logprobs=3)
    assert logprobs(found) == logprobs(expected)


def test_a_copy_that_llama_cpp_refuses_prefills_again(
    fresh: Callable[..., VLM], content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The format says nothing of what only llama.cpp knows, such as the order of values on a GPU."""

    def change(members: dict[str, bytes]) -> None:
        members["kv-cache-1.bin"] = members["kv-cache-1.bin"][:-8]

    (tmp_path / "talk.zip").write_bytes(repack(content, change))
    vlm = fresh()
    answer = go_on(vlm.load_chat(tmp_path / "talk.zip"))
    assert "could not restore" in caplog.text
    assert answer.stats.cached_tokens == 0 < answer.stats.encoded_tiles


def test_options_and_closed_answers_survive(fresh: Callable[..., VLM], tmp_path: Path) -> None:
    vlm = fresh(context_length=700)
    chat = vlm.chat("Be brief.", overflow="drop_images")
    with chat.stream("What is this?", images=picture(0), max_tokens=8) as chunks:
        for chunk in chunks:
            if chunk.token_ids:
                with pytest.raises(BusyError, match="in the middle of an answer"):
                    chat.save(tmp_path / "talk.zip")
                break
    assert not (tmp_path / "talk.zip").exists()
    chat.save(tmp_path / "talk.zip")
    loaded = fresh(context_length=700).load_chat(tmp_path / "talk.zip")
    assert loaded.messages == chat.messages and len(chat.messages) == 3
    dropped = 0
    for number in range(6):
        answer = loaded.send("Next?", images=picture(number), max_tokens=4)
        dropped += answer.stats.dropped_images
    assert dropped > 0


def test_a_failed_turn_is_not_saved(fresh: Callable[..., VLM], tmp_path: Path) -> None:
    vlm = fresh(context_length=700)
    chat = vlm.chat()
    chat.send("What is this?", max_tokens=4)
    chat.save(tmp_path / "before.zip")
    with pytest.raises(ContextError):
        chat.send("What is this?" * 500, max_tokens=4)
    chat.save(tmp_path / "after.zip")
    assert (tmp_path / "after.zip").read_bytes() == (tmp_path / "before.zip").read_bytes()


def test_a_loaded_turn_can_be_cancelled(
    fresh: Callable[..., VLM], content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "talk.zip"
    path.write_bytes(content)
    found = []
    for cancels in (True, False):
        vlm = fresh()
        chat = vlm.load_chat(path)
        if cancels:
            chunks = chat.stream("And this?", images=picture(5, 300, 200), max_tokens=8)
            next(chunks)
            chunks.cancel()
            with pytest.raises(CancelledError):
                next(chunks)
        chat.save(tmp_path / f"{cancels}.zip")
        found.append(go_on(chat))
    assert found[0].token_ids == found[1].token_ids
    assert found[0].stats.encoded_tiles == 0
    heads = []
    for cancels in (True, False):
        with zipfile.ZipFile(tmp_path / f"{cancels}.zip") as archive:
            heads.append(json.loads(archive.read("chat.json"))["turns"])
    assert heads[0] == heads[1]


def test_an_empty_conversation_can_be_saved(vlm: VLM, tmp_path: Path) -> None:
    vlm.chat("Be brief.").save(tmp_path / "talk.zip")
    loaded = vlm.load_chat(tmp_path / "talk.zip")
    assert loaded.messages == vlm.chat("Be brief.").messages
    assert loaded.send("What is it?", max_tokens=2).text


def test_a_closed_model(fresh: Callable[..., VLM], content: bytes, tmp_path: Path) -> None:
    (tmp_path / "talk.zip").write_bytes(content)
    vlm = fresh()
    chat = vlm.chat()
    vlm.close()
    with pytest.raises(ClosedError):
        vlm.load_chat(tmp_path / "talk.zip")
    with pytest.raises(ClosedError):
        chat.save(tmp_path / "other.zip")


@pytest.mark.parametrize("failure", ["disk", "folder", "a folder of this name"])
def test_a_failed_save_leaves_what_was_there(
    vlm: VLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    chat = vlm.chat()
    chat.send("What is this?", images=picture(0), max_tokens=2)
    path = tmp_path / "talk.zip"
    if failure == "disk":
        path.write_bytes(b"before")

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "fsync", full)
    elif failure == "folder":
        path = tmp_path / "missing" / "talk.zip"
    else:
        path.mkdir()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ChatFileError, match="cannot write"):
        chat.save(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert failure != "disk" or path.read_bytes() == b"before"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the examples of a property write again and again."""
    return tmp_path_factory.mktemp("property") / "talk.zip"


@settings(max_examples=200)
@given(st.data())
def test_every_damage_is_refused(vlm: VLM, content: bytes, path: Path, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(content) - 1))
    end = min(len(content), at + data.draw(st.integers(1, 5000)))
    other = data.draw(st.integers(1, 255))
    damages = {
        "flip": content[:at] + bytes([content[at] ^ other]) + content[at + 1 :],
        "cut": content[:at],
        "lose": content[:at] + content[end:],
        "zero": content[:at] + bytes(end - at) + content[end:],
        "repeat": content[:end] + content[at:],
        "append": content + bytes([other]),
        "turn round": content[:at] + content[at:end][::-1] + content[end:],
    }
    damaged = damages[data.draw(st.sampled_from(sorted(damages)))]
    if damaged == content:
        return
    path.write_bytes(damaged)
    held = vlm._engine.cached_items()
    with pytest.raises(ChatFileError, match="is damaged, cut off, or no conversation"):
        vlm.load_chat(path)
    assert vlm._engine.cached_items() == held


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all containers and keys in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


JSON: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1, 2, 7, 10**9, 2**70, 1e308, "", "a", "00" * 16, [], {}, [[]]]
    ),
    st.integers(-3, 300),
)


@settings(max_examples=200)
@given(st.data())
def test_no_header_raises_another_error(
    vlm: VLM, content: bytes, path: Path, data: st.DataObject
) -> None:
    """Somebody changed ``chat.json``, and wrote a checksum that fits."""

    def change(header: Any) -> None:
        for _ in range(data.draw(st.integers(1, 3))):
            found = list(places(header))
            container, key = found[data.draw(st.integers(0, len(found) - 1))]
            if data.draw(st.booleans()):
                container[key] = data.draw(JSON)
            elif isinstance(container, dict):
                del container[key]
            else:
                container.append(container[key])

    path.write_bytes(change_header(content, change))
    with contextlib.suppress(ChatFileError):
        loaded = vlm.load_chat(path)
        with contextlib.suppress(EdgeVLMError):
            assert loaded.send("Next?", max_tokens=1).stats.answer_tokens == 1
    assert vlm.ask(None, "What is it?", max_tokens=1).stats.answer_tokens == 1


def swap(members: dict[str, bytes]) -> None:
    first, second = "image-1/tile-1.png", "image-2/tile-1.png"
    members[first], members[second] = members[second], members[first]


def png(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


CHANGES: dict[str, tuple[Callable[[dict[str, bytes]], object], str]] = {
    "tiles of one size swapped": (swap, "has other pixels"),
    "no header": (lambda members: members.pop("chat.json"), "has no chat.json"),
    "no tile": (lambda members: members.pop("image-1/tile-1.png"), "other members"),
    "no KV cache": (lambda members: members.pop("kv-cache-1.bin"), "other members"),
    "one more": (lambda members: members.update({"../secret": b""}), "other members"),
    "a huge tile": (
        lambda members: members.update({"image-1/tile-1.png": png(9000, 9000)}),
        "another size",
    ),
    "no PNG": (lambda members: members.update({"image-1/tile-1.png": b"GIF89a"}), "cannot be read"),
    "no JSON": (lambda members: members.update({"chat.json": b"[" * 100_000}), "no JSON object"),
    "no object": (lambda members: members.update({"chat.json": b"[]"}), "no JSON object"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changed_members_are_refused(vlm: VLM, content: bytes, path: Path, name: str) -> None:
    change, message = CHANGES[name]
    path.write_bytes(repack(content, change))
    with pytest.raises(ChatFileError, match=message):
        vlm.load_chat(path)


def test_a_layout_of_other_tiles_is_refused(vlm: VLM, content: bytes, path: Path) -> None:
    """Before any array of its size is made."""
    for changed in ({"rows": 10**6, "columns": 10**6}, {"height": 0}, {"tile_sizes": [[9, 9]]}):
        change = functools.partial(change_layout, **changed)
        path.write_bytes(change_header(content, change))
        with pytest.raises(ChatFileError, match="was changed, and cannot be continued"):
            vlm.load_chat(path)


def change_layout(header: Any, **changed: Any) -> None:
    header["turns"][0]["images"][0]["layout"].update(changed)


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_compressed_members_are_refused(vlm: VLM, content: bytes, path: Path, method: int) -> None:
    """So no file takes more memory than its size, tiles aside."""
    path.write_bytes(repack(content, lambda members: None, compression=method))
    with pytest.raises(ChatFileError, match="is compressed"):
        vlm.load_chat(path)


def test_too_many_pixels_are_refused(
    vlm: VLM, content: bytes, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, pixels = vlm.chat(), chat_file.MAX_PIXELS
    monkeypatch.setattr(chat_file, "MAX_PIXELS", 1000)
    path.write_bytes(content)
    with pytest.raises(ChatFileError, match="has images of more than"):
        vlm.load_chat(path)
    chat.send("What is it?", images=picture(0), max_tokens=1)
    with pytest.raises(ChatFileError, match="is too large for a file"):
        chat.save(path)
    monkeypatch.setattr(chat_file, "MAX_PIXELS", pixels)
    monkeypatch.setattr(chat_file, "MAX_FILE_BYTES", 1000)
    with pytest.raises(ChatFileError, match="conversations of up to"):
        vlm.load_chat(path)


@pytest.mark.parametrize("content", [b"short", b"x" * 1000, b"PK" * 1000])
def test_foreign_files_are_refused(vlm: VLM, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "talk.zip").write_bytes(content)
    with pytest.raises(ChatFileError, match="no conversation that edgevlm saved"):
        vlm.load_chat(tmp_path / "talk.zip")
    (tmp_path / "talk.zip").write_bytes(sign(content + bytes(64)))
    with pytest.raises(ChatFileError, match="cannot be read"):
        vlm.load_chat(tmp_path / "talk.zip")
    (tmp_path / "talk.zip").write_bytes(b"")
    with pytest.raises(ChatFileError, match="no conversation that edgevlm saved"):
        vlm.load_chat(tmp_path / "talk.zip")
    with pytest.raises(ChatFileError, match="cannot read"):
        vlm.load_chat(tmp_path / "missing.zip")
    with pytest.raises(ChatFileError, match="cannot read"):
        vlm.load_chat(tmp_path)


def test_another_bundle_and_another_version_are_refused(
    vlm: VLM, content: bytes, path: Path
) -> None:
    path.write_bytes(content)
    with (
        VLM.from_pretrained(BUNDLES / "idefics3", threads=1) as other,
        pytest.raises(ChatFileError, match="belongs to another bundle"),
    ):
        other.load_chat(path)
    path.write_bytes(change_header(content, lambda header: header.update(version=2)))
    with pytest.raises(ChatFileError, match="has version 2 of the format"):
        vlm.load_chat(path)
