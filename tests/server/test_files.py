"""Uploaded files, through OpenAI's own client and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.server.errors import RequestError
from edgevlm.server.files import FileStore, ListParameters, StoredFile
from edgevlm.server.limits import Limits
from tests.support.serving import EXAMPLES, serving

SQUARE = EXAMPLES / "square.png"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    """A client of a server without files."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    yield client
    for file in client.files.list():
        client.files.delete(file.id)


def told(answer: httpx.Response) -> tuple[str, str | None]:
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    return error["message"], error["param"]


def test_file_from_upload_to_deletion(client: openai.OpenAI) -> None:
    stored = client.files.create(file=SQUARE, purpose="vision")
    assert (stored.filename, stored.bytes) == ("square.png", SQUARE.stat().st_size)
    assert client.files.wait_for_processing(stored.id, max_wait_seconds=1) == stored
    assert client.files.retrieve(stored.id) == stored
    assert client.files.content(stored.id).read() == SQUARE.read_bytes()
    assert client.files.delete(stored.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError, match="no file"):
            ask(stored.id)


def test_content_is_a_download(client: openai.OpenAI, address: str) -> None:
    """A browser must not show as a page of the server what somebody sent to it."""
    name = "a\r\nX-Evil: 1; ü.png"
    stored = client.files.create(file=(name, SQUARE.read_bytes()), purpose="vision")
    answer = httpx.get(f"{address}/v1/files/{stored.id}/content")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment; filename*=UTF-8''a%")
    assert "x-evil" not in answer.headers


def test_pages_of_the_list(client: openai.OpenAI) -> None:
    purposes: list[Any] = ["vision", "user_data", "vision", "assistants", "vision"]
    ids = [client.files.create(file=SQUARE, purpose=purpose).id for purpose in purposes]
    newest = ids[::-1]

    def listed(**parameters: Any) -> list[str]:
        return [file.id for file in client.files.list(**parameters)]  # asks for all pages

    assert listed() == listed(order="desc") == newest
    assert listed(order="asc") == ids
    for limit in (1, 2, 5, 10_000):
        assert listed(limit=limit) == newest
        assert listed(limit=limit, order="asc") == ids
    assert listed(after=ids[1], order="asc") == ids[2:]
    assert listed(after=ids[1]) == [ids[0]]
    assert listed(purpose="vision") == [ids[4], ids[2], ids[0]]
    assert listed(purpose="batch") == []
    assert len(client.files.list(limit=2).data) == 2


def test_ends_of_a_page(client: openai.OpenAI, address: str) -> None:
    def page(**parameters: Any) -> tuple[str, str, bool]:
        found = httpx.get(f"{address}/v1/files", params=parameters).json()
        assert found["object"] == "list"
        return found["first_id"], found["last_id"], found["has_more"]

    assert page() == ("", "", False)
    first, second, third = (client.files.create(file=SQUARE, purpose="vision").id for _ in range(3))
    assert page() == (third, first, False)
    assert page(limit=2) == (third, second, True)
    assert page(limit=2, after=second) == (first, first, False)
    assert page(after=first) == ("", "", False)


@pytest.mark.parametrize(
    ("query", "place", "sentence"),
    [
        ("limit=0", "limit", "must be an integer from 1 to 10000, is '0'"),
        ("limit=10001", "limit", "must be an integer from 1 to 10000, is '10001'"),
        ("limit=two", "limit", "must be an integer from 1 to 10000, is 'two'"),
        ("limit=" + "9" * 5000, "limit", None),
        (
            "order=up",
            "order",
            "must be 'asc' (the oldest first) or 'desc' (the newest first), is 'up'",
        ),
        ("before=file-1", "before", "is not a known field; leave it out"),
    ],
)
def test_parameters_of_the_list_that_cannot_be_honoured(
    address: str, query: str, place: str, sentence: str | None
) -> None:
    message, parameter = told(httpx.get(f"{address}/v1/files?{query}"))
    assert parameter == place and len(message) < 200
    if sentence:
        assert message == f"{place} {sentence}"


def test_list_behind_a_file_that_is_not_there(address: str) -> None:
    assert httpx.get(f"{address}/v1/files?after=file-1").status_code == 404


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from(["vision", "user_data"]), max_size=8),
    st.integers(1, 9),
    st.sampled_from(["asc", "desc"]),
    st.sampled_from(["", "vision", "user_data"]),
)
def test_pages_add_up_to_the_list(
    purposes: list[str], limit: int, order: Any, purpose: str
) -> None:
    store = FileStore(Limits())
    files = [StoredFile("a", each, b"") for each in purposes]
    for file in files:
        store.add(file)
    wanted = [file for file in files if purpose in ("", file.purpose)]
    if order == "desc":
        wanted.reverse()
    found: list[StoredFile] = []
    more = True
    while more:
        after = found[-1].id if found else ""
        asked = {"limit": limit, "order": order, "purpose": purpose, "after": after}
        page, more = store.page(ListParameters.model_validate(asked))
        assert len(page) == limit or not more
        found += page
    assert found == wanted


@pytest.mark.parametrize(
    ("options", "words", "place"),
    [
        ({}, "the body is of no type; send the image as multipart/form-data", None),
        ({"json": {"file": "a"}}, "the body is application/json; send the image as", None),
        ({"data": {"file": "a"}}, "the body is application/x-www-form-urlencoded; send", None),
        (
            {"content": b"a", "headers": {"Content-Type": "multipart/form-data"}},
            "the form cannot be read: Missing boundary in multipart.; send the image as",
            None,
        ),
        (
            {"content": b"a", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            "the form cannot be read",
            None,
        ),
        (
            {"content": b"", "headers": {"Content-Type": "multipart/form-data; boundary=b"}},
            "file is missing, the form has no field; send the image as multipart/form-data",
            "file",
        ),
        ({"files": {"image": b"a"}}, "file is missing, the form has 'image'", "file"),
        (
            {"files": {"purpose": (None, "vision")}},
            "file is missing, the form has 'purpose'",
            "file",
        ),
        ({"files": {"file": (None, "a")}}, "file is missing, the form has 'file'", "file"),
        ({"files": [("file", b"a"), ("file", b"b")]}, "Too many files", None),
        ({"files": {"file": b"no image"}}, "", None),
        ({"files": {"file": b""}}, "", None),
        (
            {"files": {"file": SQUARE.read_bytes()}, "data": {"purpose": "fine-tune"}},
            "purpose must be 'vision', 'user_data' or 'assistants', is 'fine-tune'",
            "purpose",
        ),
        (
            {
                "files": {"file": SQUARE.read_bytes()},
                "data": {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"},
            },
            "expires_after[anchor] must be left out (files are kept until they are deleted)",
            "expires_after[anchor]",
        ),
    ],
)
def test_upload_that_cannot_be_kept(
    address: str, options: dict[str, Any], words: str, place: str | None
) -> None:
    message, parameter = told(httpx.post(f"{address}/v1/files", **options))
    assert words in message and parameter == place


def test_unknown_fields_of_an_upload(caplog: pytest.LogCaptureFixture) -> None:
    sent: dict[str, Any] = {"files": {"file": SQUARE.read_bytes()}, "data": {"folder": "a"}}
    with serving() as address:
        assert httpx.post(f"{address}/v1/files", **sent).status_code == 200
    assert "unknown field folder in requests" in caplog.text
    with serving(strict=True) as address:
        assert told(httpx.post(f"{address}/v1/files", **sent))[1] == "folder"


def test_upload_needs_no_folder_for_temporary_files(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with a read-only root has none."""

    def no_folder(*_: object, **__: object) -> None:
        raise FileNotFoundError("no usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", no_folder)
    large = SQUARE.read_bytes() + bytes(3 * 2**20)
    answer = httpx.post(f"{address}/v1/files", files={"file": ("large.png", large)})
    assert answer.status_code == 200, answer.text
    assert answer.json()["bytes"] == len(large)


def test_store_that_is_full_keeps_what_it_has() -> None:
    store = FileStore(Limits(stored_files=1))
    kept = StoredFile("a", "vision", b"a")
    store.add(kept)
    with pytest.raises(RequestError, match="the limit is 1 files"):
        store.add(StoredFile("b", "vision", b"b"))
    assert store.page(ListParameters.model_validate({})).files == [kept]
