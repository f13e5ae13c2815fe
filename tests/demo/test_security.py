"""Clients get neither the conversations of others nor files that were not uploaded."""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from edgevlm.demo.app import build, launch
from edgevlm.demo.browsers import COOKIE
from edgevlm.demo.conversation import user_turn
from edgevlm.demo.model_pool import ModelPool
from tests.support.demo import SQUARE

SECRET = b"nobody but the owner reads this"


@dataclass
class Attacker:
    """A client that can send everything that Gradio's own page can send."""

    address: str
    cookie: str = "attacker"

    def __post_init__(self) -> None:
        self.session = uuid.uuid4().hex
        self.http = httpx.Client(
            base_url=self.address, headers={"cookie": f"{COOKIE}={self.cookie}"}, timeout=60
        )
        self.config = self.http.get("config").raise_for_status().json()
        self.components = {entry["id"]: entry for entry in self.config["components"]}

    def events(self, element: str = "", name: str = "") -> list[dict[str, Any]]:
        """Events of a component, by its `elem_id`; "" for all."""
        found = []
        for event in self.config["dependencies"]:
            for target, happened in event["targets"]:
                props = self.components.get(target, {"props": {}})["props"]
                if element in ("", props.get("elem_id")) and name in ("", happened):
                    found.append(event)
        return found

    def send(
        self, event: dict[str, Any], data: list[Any], event_data: object = None
    ) -> tuple[bool, Any]:
        """Return True if an event succeeded, and its response."""
        answer = self.http.post(
            "gradio_api/queue/join",
            json={
                "fn_index": event["id"],
                "data": data,
                "event_data": event_data,
                "session_hash": self.session,
                "trigger_id": None,
            },
        )
        if answer.status_code != 200:
            return False, answer.text
        outputs: list[Any] = []
        with self.http.stream(
            "GET", f"gradio_api/queue/data?session_hash={self.session}"
        ) as stream:
            for line in stream.iter_lines():
                if not line.startswith("data:"):
                    continue
                message = json.loads(line[5:])
                outputs.append(message.get("output"))
                if message["msg"] == "process_completed":
                    return message["success"], outputs
        return False, outputs

    def values(self, event: dict[str, Any]) -> list[Any]:
        """Return the initial values of the page."""
        return [self.components[at]["props"].get("value") for at in event["inputs"]]

    def kind(self, component: int) -> str:
        return str(self.components[component]["type"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("security")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "uploads"))
        models = ModelPool(threads=1)
        page = build(models, {"max_tokens": 5})
        yield launch(page)
        page.close(verbose=False)
        models.close()


@pytest.fixture(scope="module")
def secret(folder: Path) -> Path:
    """Return an image that was not uploaded, in a temporary folder, where Gradio checks least."""
    path = folder / "secret.png"
    path.write_bytes(SQUARE.read_bytes() + SECRET)
    return path


def copies(folder: Path) -> list[Path]:
    """Return the uploads that contain the secret."""
    files = (path for path in (folder / "uploads").rglob("*") if path.is_file())
    return [path for path in files if SECRET in path.read_bytes()]


def spellings(path: Path) -> list[dict[str, Any]]:
    """Return valid and invalid forms in which a client can name a file."""
    meta = {"meta": {"_type": "gradio.FileData"}}
    names = {"path": str(path), "orig_name": path.name, "mime_type": "image/png", "size": 9}
    dotted = f"{path.parent}/uploads/../{path.name}"
    return [
        {**names, **meta},
        names,
        {**names, **meta, "path": dotted},
        {**names, **meta, "path": f"file://{path}"},
        {**names, **meta, "url": f"file://{path}"},
    ]


def payloads(kind: str, file: dict[str, Any]) -> list[Any]:
    """Yield values of a component that name a file."""
    if kind == "chatbot":
        turns = [
            {"role": "user", "content": content}
            for content in (
                [{"type": "file", "file": file}],
                [{"type": "text", "text": file["path"]}, {"type": "file", "file": file}],
                [{"type": "component", "component": "image", "value": file, "props": {}}],
                [file],
                file,
            )
        ]
        return [[turn] for turn in turns]
    if kind == "multimodaltextbox":
        return [{"text": "What?", "files": [file]}]
    return [file, [file], {"value": file}]


def test_no_event_reads_a_file_that_was_not_uploaded(
    address: str, folder: Path, secret: Path
) -> None:
    """Every event, with every input that can name a file, in every form."""
    attacker = Attacker(address)
    sent = 0
    for event in attacker.config["dependencies"]:
        if event["js"] and not event["backend_fn"]:
            continue
        usual = attacker.values(event)
        for file in spellings(secret):
            if any(happened == "example_select" for _, happened in event["targets"]):
                attacker.send(
                    event, usual, {"index": 0, "value": {"text": "What?", "files": [file]}}
                )
            for at, component in enumerate(event["inputs"]):
                for payload in payloads(attacker.kind(component), file):
                    data = [*usual[:at], payload, *usual[at + 1 :]]
                    succeeded, answer = attacker.send(event, data)
                    sent += 1
                    assert not succeeded, (event, payload, answer)
                    assert SECRET.decode() not in json.dumps(answer)
                    assert copies(folder) == [], (event, payload)
    assert sent > 100
    for path in (secret, Path("/etc/passwd"), f"{folder}/uploads/../{secret.name}"):
        for prefix in ("gradio_api/file=", "gradio_api/file/", "file=", "file/"):
            answer = attacker.http.get(f"{prefix}{path}")
            assert answer.status_code in (403, 404), (answer.url, answer.text)
            assert SECRET not in answer.content and b"root:" not in answer.content


def kept(client: Attacker) -> str:
    """Return the list of conversations of this client."""
    (event,) = client.events("conversations", "expand")
    succeeded, answer = client.send(event, ["", None])
    assert succeeded, answer
    return json.dumps(answer)


def ask(client: Attacker, text: str) -> None:
    (event,) = (event for event in client.config["dependencies"] if event["api_name"] == "chat")
    data = client.values(event)
    for at, component in enumerate(event["inputs"]):
        if client.kind(component) == "multimodaltextbox":
            data[at] = {"text": text, "files": []}
    assert client.send(event, data)[0]
    history = [user_turn(text, [])]
    (leave, *_) = (
        event
        for event in client.config["dependencies"]
        if [client.kind(at) for at in event["inputs"]] == ["chatbot", "state"]
        and [client.kind(at) for at in event["outputs"]] == ["state"]
    )
    succeeded, answer = client.send(leave, [history, None])
    assert succeeded, answer


def test_another_browser_gets_no_conversation(address: str) -> None:
    owner = Attacker(address, "owner")
    ask(owner, "The combination is marmalade")
    listed = kept(owner)
    assert "The combination is marmalade" in listed
    (id,) = set(re.findall(r'data-id=\\\\?"([^"\\]+)', listed))
    assert len(id) >= 20, "too long to be guessed"

    attacker = Attacker(address)
    assert id not in kept(attacker) and "marmalade" not in kept(attacker)
    for name in ("select", "edit", "delete", "undo", "clear"):
        (event, *_) = attacker.events("conversation-list", name)
        succeeded, answer = attacker.send(
            event, attacker.values(event), {"id": id, "title": "mine now"}
        )
        assert "marmalade" not in json.dumps(answer)
        assert name == "clear" or not succeeded, (name, answer)
    for event in attacker.config["dependencies"]:  # with the id wherever it could be said
        if event["backend_fn"]:
            data = [
                id if attacker.kind(at) in ("state", "textbox") else value
                for at, value in zip(event["inputs"], attacker.values(event), strict=True)
            ]
            assert "marmalade" not in json.dumps(attacker.send(event, data, {"id": id})[1])
    assert "The combination is marmalade" in kept(owner) and "mine now" not in kept(owner)


@pytest.mark.parametrize(
    "place",
    [
        "http://192.0.2.1/picture.png",
        "https://example.com/",
        "HTTP://192.0.2.1",
        "ftp://192.0.2.1/",
    ],
)
def test_nothing_is_fetched_from_another_host(address: str, place: str) -> None:
    """Not by the server either; an image in an answer may point to it."""
    client = Attacker(address)
    for prefix in ("gradio_api/file=", "gradio_api/file/", "gradio_api/proxy=", "file=", "file/"):
        assert client.http.get(prefix + place).status_code == 403
        assert client.http.get(prefix + quote(place, safe="")).status_code == 403
    for event in client.config["dependencies"]:
        data = [{"path": place, "meta": {"_type": "gradio.FileData"}} for _ in event["inputs"]]
        if data and event["backend_fn"]:
            assert not client.send(event, data)[0]


def test_a_cookie_that_is_no_name_harms_nobody(address: str) -> None:
    for cookie in ("", "a" * 4000, '"; Path=/', "owner; owner"):
        client = Attacker(address, "x")
        client.http.headers["cookie"] = f"{COOKIE}={cookie}"
        assert "Nothing is kept yet" in kept(client) or "owner" in cookie


def test_an_imported_file_names_no_path(address: str, folder: Path, secret: Path) -> None:
    bad = {
        "format": "edgevlm conversation",
        "version": 1,
        "title": "",
        "turns": [{"role": "user", "content": [{"image": str(secret)}]}],
    }
    client = Attacker(address, "importer")
    uploaded = client.http.post(
        "gradio_api/upload", files={"files": ("saved.json", json.dumps(bad))}
    ).json()
    (event,) = client.events("conversation-upload", "upload")
    file = {"path": uploaded[0], "orig_name": "saved.json", "meta": {"_type": "gradio.FileData"}}
    succeeded, answer = client.send(event, [file])
    assert not succeeded and "cannot be read" in json.dumps(answer)
    assert copies(folder) == []


def test_the_test_can_fail(address: str, folder: Path, secret: Path) -> None:
    client = Attacker(address)
    with secret.open("rb") as file:
        uploaded = client.http.post("gradio_api/upload", files={"files": file}).json()
    assert copies(folder) == [Path(uploaded[0])]
    assert SECRET in client.http.get(f"gradio_api/file={uploaded[0]}").content
    shutil.rmtree(Path(uploaded[0]).parent)
