"""The page in the browser, talked to over HTTP as Gradio's own client does."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from edgevlm import VLM, InputError
from edgevlm.demo.app import as_message, build, launch

SQUARE = Path(__file__).resolve().parent.parent / "examples" / "square.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        page = build(vlm, {"max_tokens": 20})
        yield launch(page)
        page.close(verbose=False)


def test_conversation_about_an_uploaded_picture(address: str) -> None:
    assert address.startswith("http://127.0.0.1:")
    client = Client(address, verbose=False)
    question = {"text": "What color is it?", "files": [handle_file(SQUARE)]}
    assert client.predict(question, api_name="/chat") == "green"
    again = {"text": "What shape is it?", "files": []}
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        chat = vlm.chat()
        chat.send("What color is it?", images=[SQUARE])
        expected = chat.send("What shape is it?").text
    assert client.predict(again, api_name="/chat") == expected


def test_port_that_is_taken_is_an_error(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    with VLM.from_pretrained("edgevlm-nano") as vlm:
        page = build(vlm, {})
        with pytest.raises(InputError, match=f"port {port} cannot be used"):
            launch(page, port)


def test_answer_streams(address: str) -> None:
    client = Client(address, verbose=False)
    question = {"text": "What is in the picture?", "files": [handle_file(SQUARE)]}
    pieces = list(client.submit(question, api_name="/chat"))
    assert len(pieces) > 1
    assert all(longer.startswith(shorter) for shorter, longer in itertools.pairwise(pieces))
    assert pieces[-1] == "There is a green square."


def test_broken_picture_is_a_message_and_the_page_lives_on(address: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(SQUARE.read_bytes()[:200])
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match="cannot be"):
        client.predict({"text": "What is it?", "files": [handle_file(broken)]}, api_name="/chat")
    question = {"text": "What color is it?", "files": [handle_file(SQUARE)]}
    assert client.predict(question, api_name="/chat") == "green"


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
        assert as_message({"role": "user", "content": content}) == expected
    assert as_message({"role": "assistant", "content": "red"})["content"] == [
        {"type": "text", "text": "red"}
    ]
