"""Uploaded files on the disk: while the demo runs, after its end, and after it was killed."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from edgevlm.demo import uploads
from edgevlm.demo.uploads import UNUSED_SECONDS, delete_orphans, sweep, upload_folder
from tests.support.serving import free_port

pytestmark = pytest.mark.skipif(os.name != "posix", reason="folders are locked on POSIX alone")

SQUARE = Path(__file__).resolve().parents[2] / "examples" / "square.png"

RUN = """
import signal, sys, time
for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # whatever the tests' own parent ignores
    signal.signal(getattr(signal, name), signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from edgevlm import VLM
from edgevlm.cli import main

def said_and_hung(word):
    print(word, file=sys.stderr, flush=True)
    time.sleep(600)

{patch}
sys.exit(main(["demo", "--threads", "1", "--port", {port!r}]))
"""

LOADING = "VLM.from_pretrained = lambda *_, **__: said_and_hung('loading')"
ANSWERING = """
from tests.support.streams import as_stream

def answer(*_, **__):
    said_and_hung("answering")
    yield

VLM.stream_generate = as_stream(answer)
"""
LIMIT = 180
"""Seconds after which a process that does not go on is killed, so that its test fails."""


class Demo:
    """``edgevlm demo`` as a process with its own temporary folder."""

    def __init__(self, folder: Path, patch: str = "", **streams: int) -> None:
        self.folder = folder
        port = str(free_port())
        self.address = f"http://127.0.0.1:{port}"
        self._said: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN.format(patch=patch, port=port)],
            env=os.environ | {"TMPDIR": str(folder)},
            # of a dictionary no type checker knows which streams it names
            **{"stderr": subprocess.PIPE, "text": True, **streams},  # type: ignore[call-overload]
        )

        limit = threading.Timer(LIMIT, self.process.kill)
        limit.daemon = True
        limit.start()
        self._stop_limit = limit.cancel

    def wait_for(self, word: str) -> None:
        """Wait until this text is on stderr."""
        while not any(word in line for line in self._said):
            line = self.process.stderr.readline()
            assert line, self._said
            self._said.append(line)

    def wait_for_page(self) -> None:
        while True:
            assert self.process.poll() is None
            try:
                httpx.get(self.address + "/config").raise_for_status()
                return
            except httpx.TransportError:
                time.sleep(0.1)

    def upload(self) -> Path:
        with SQUARE.open("rb") as file:
            answer = httpx.post(f"{self.address}/gradio_api/upload", files={"files": file})
        (path,) = answer.raise_for_status().json()
        assert Path(path).read_bytes() == SQUARE.read_bytes()
        return Path(path)

    def ask(self) -> None:
        """Ask without waiting for the answer."""
        config = httpx.get(self.address + "/config").json()
        components = {entry["id"]: entry for entry in config["components"]}
        (chat,) = (event for event in config["dependencies"] if event["api_name"] == "chat")
        data = [
            {"text": "What?", "files": []}
            if components[at]["type"] == "multimodaltextbox"
            else components[at]["props"].get("value")
            for at in chat["inputs"]
            if components[at]["type"] != "state"
        ]
        httpx.post(f"{self.address}/gradio_api/call/chat", json={"data": data}).raise_for_status()

    def end(self, *signals: signal.Signals) -> int:
        """Send signals, and wait for the exit code."""
        for number in signals:
            self.process.send_signal(number)
        code: int = self.process.wait(60)
        self._stop_limit()
        if self.process.stderr is not None:
            self._said += self.process.stderr.readlines()
            self.process.stderr.close()
        return code

    @property
    def said(self) -> str:
        return "".join(self._said)

    @property
    def left(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_it_and_nothing_stays(tmp_path: Path, name: str) -> None:
    demo = Demo(tmp_path)
    demo.wait_for("Ctrl-C ends it")
    picture = demo.upload()
    (folder,) = tmp_path.iterdir()
    assert folder in picture.parents
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert demo.end(signal.Signals[name]) == 128 + signal.Signals[name]
    assert demo.left == []
    assert "Traceback" not in demo.said


@pytest.mark.parametrize(
    "signals", [["SIGINT"], ["SIGTERM", "SIGTERM"], ["SIGHUP", "SIGTERM", "SIGINT"]]
)
def test_while_the_model_is_loaded(tmp_path: Path, signals: list[str]) -> None:
    demo = Demo(tmp_path, LOADING)
    demo.wait_for("loading")
    assert len(demo.left) == 1
    assert demo.end(*(signal.Signals[name] for name in signals)) - 128 in [
        signal.Signals[name] for name in signals
    ]
    assert demo.left == []
    assert "Traceback" not in demo.said


def test_while_an_answer_is_made(tmp_path: Path) -> None:
    demo = Demo(tmp_path, ANSWERING)
    demo.wait_for("Ctrl-C ends it")
    demo.upload()
    demo.ask()
    demo.wait_for("answering")
    assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert demo.left == []


def test_with_streams_that_are_closed(tmp_path: Path) -> None:
    command = f'exec {sys.executable} -c "$0" <&- >&- 2>&-'
    port = str(free_port())
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        ["sh", "-c", command, RUN.format(patch="", port=port)], env=environment
    )
    demo = Demo.__new__(Demo)
    demo._stop_limit = lambda: None
    demo.folder, demo.address, demo.process, demo._said = (
        tmp_path,
        f"http://127.0.0.1:{port}",
        process,
        [],
    )
    demo.wait_for_page()
    demo.upload()
    assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert demo.left == []


def test_a_terminal_that_is_gone(tmp_path: Path) -> None:
    """Nobody reads its output any more."""
    reading, writing = os.pipe()
    os.close(reading)
    demo = Demo(tmp_path, stderr=writing)
    os.close(writing)
    assert demo.end() == 141
    assert demo.left == []


def test_a_model_that_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    demo = Demo(
        tmp_path,
        "from edgevlm import BundleError\n"
        "def refuse(*_, **__): raise BundleError('bad')\n"
        "VLM.from_pretrained = refuse",
    )
    assert demo.end() == 1
    assert demo.said == "edgevlm: error: bad\n"
    assert demo.left == []


@pytest.mark.slow
def test_what_a_killed_one_left_goes_at_the_next_start_and_a_running_one_stays(
    tmp_path: Path,
) -> None:
    killed, running = Demo(tmp_path), Demo(tmp_path)
    for demo in (killed, running):
        demo.wait_for("Ctrl-C ends it")
    left, kept = killed.upload(), running.upload()
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    assert left.exists()
    (tmp_path / "edgevlm-uploads-file").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (tmp_path / "edgevlm-uploads-link").symlink_to(elsewhere)
    following = Demo(tmp_path, LOADING)
    following.wait_for("loading")
    assert not left.exists() and not left.parent.parent.exists()
    assert kept.exists() and (elsewhere / "file").exists()
    for demo in (running, following):
        assert demo.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert sorted(running.left) == ["edgevlm-uploads-file", "edgevlm-uploads-link", "elsewhere"]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_folders_of_other_users_stay(temporary: Path) -> None:
    folder = temporary / "edgevlm-uploads-other"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    delete_orphans()
    assert folder.exists()
    os.chown(folder, 0, 0)
    delete_orphans()
    assert not folder.exists()


@pytest.mark.parametrize(
    "moment", ["before it is open", "before it is locked", "while it is locked"]
)
def test_a_new_folder_that_another_process_takes_for_a_left_one(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Another process deletes the new folder before it is locked; then another folder is created."""
    make, opened = tempfile.mkdtemp, uploads._open_folder
    made: list[Path] = []
    held: list[int] = []

    def mkdtemp(**arguments: str) -> str:
        made.append(Path(make(**arguments)))
        if len(made) == 1 and moment == "before it is open":
            delete_orphans()
        return str(made[-1])

    def open_folder(folder: Path) -> int:
        descriptor = opened(folder)
        if len(made) == 1 and not held and moment != "before it is open":
            held.append(opened(folder))
            fcntl.flock(held[0], fcntl.LOCK_EX)
            folder.rmdir()
            if moment == "before it is locked":
                fcntl.flock(held[0], fcntl.LOCK_UN)
        return descriptor

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with monkeypatch.context() as patch:
        patch.setattr(uploads, "_open_folder", open_folder)
        with upload_folder() as folder:
            assert folder == made[1].resolve() and folder.is_dir()
            patch.undo()
            delete_orphans()
            assert folder.is_dir(), "it is locked"
    for descriptor in held:
        os.close(descriptor)
    assert list(temporary.iterdir()) == []


def age(path: Path, folder: Path) -> float:
    """Return the time of the last use of a file, in seconds since 1970."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).touch()
    return (folder / path).stat().st_ctime


def test_what_nobody_needs_is_swept_away(tmp_path: Path) -> None:
    names = ["kept/a.png", "kept-too/old.png", "released/b.png", "used-again/c.png", "new/d.png"]
    used = {name: age(Path(name), tmp_path) for name in names}
    paths = {name: str(tmp_path / name) for name in names}
    latest = max(used.values())
    needed = {paths["kept/a.png"], paths["kept-too/old.png"]}
    released = {
        paths["released/b.png"]: latest + 1,
        paths["used-again/c.png"]: used["used-again/c.png"] - 1,
    }
    sweep(tmp_path, needed, released, now=latest + 2)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png")}
    assert there == set(names) - {"released/b.png"}
    assert not (tmp_path / "released").exists()
    sweep(tmp_path, needed, {}, now=latest + UNUSED_SECONDS + 1)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert there == {"kept", "kept/a.png", "kept-too", "kept-too/old.png"}
