"""`VLM.watch` and ``edgevlm watch`` with the built-in model: texts, choices, typed values, limits."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from benchmarks.watch import soak
from edgevlm import (
    VLM,
    Choice,
    DeadlineError,
    IncompleteAnswerError,
    InputError,
    SourceError,
    StalledError,
)
from edgevlm.cli import main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SQUARE = EXAMPLES / "square.png"
QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def vlm() -> Iterator[VLM]:
    with VLM.from_pretrained(threads=1) as vlm:
        yield vlm


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        Image.open(SQUARE).convert("RGB").save(tmp_path / f"{index}.png")
    return tmp_path


def test_the_text_is_that_of_ask(vlm: VLM) -> None:
    images = [SQUARE, EXAMPLES / "scene.png"]
    with vlm.watch(iter(images), QUESTION, max_tokens=8) as watch:
        found = list(watch)
    for path, one in zip(images, found, strict=True):
        expected = vlm.ask(path, QUESTION, max_tokens=8)
        assert one.value == expected.text
        assert not isinstance(one.answer, Choice)
        assert one.answer.token_ids == expected.token_ids


@pytest.mark.parametrize("settings", [{}, {"choices": ["red", "blue"]}])
@pytest.mark.parametrize("memory", [None, 2])
def test_closing_stops_the_answer_that_is_computed(
    vlm: VLM, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], memory: int | None
) -> None:
    """The decoder is asked for nothing more once a watch is closed."""
    decoder, calls = vlm._engine._decoder, list[str]()
    vlm._engine._kv_cache.reset()
    with (
        monkeypatch.context() as patched,
        vlm.watch(iter([SQUARE] * 3), QUESTION, memory=memory, **settings) as watch,
    ):

        def closing(name: str) -> Callable[..., Any]:
            whole = getattr(decoder, name)

            def call(*args: Any, **named: Any) -> Any:
                calls.append(name)
                watch.close()
                return whole(*args, **named)

            return call

        for name in ("decode_tokens", "decode_embeddings", "decode_branches"):
            patched.setattr(decoder, name, closing(name))
        assert list(watch) == []
    assert len(calls) == 1
    assert vlm.ask(SQUARE, QUESTION).text == "green"


def test_choices(vlm: VLM) -> None:
    with vlm.watch(iter([SQUARE]), QUESTION, choices=["red", "green"]) as watch:
        one = next(watch)
    assert one.value == "green"
    assert one.answer == vlm.choose(SQUARE, QUESTION, ["red", "green"])
    with (
        vlm.watch(iter([SQUARE]), QUESTION, choices=["red", "green"], within=0.001) as watch,
        pytest.raises(DeadlineError),
    ):
        next(watch)


def test_a_typed_value(vlm: VLM) -> None:
    with vlm.watch(iter([SQUARE]), QUESTION, schema=Literal["red", "green"]) as watch:
        assert next(watch).value in ("red", "green")
    with vlm.watch(iter([SQUARE, SQUARE]), QUESTION, schema=str, max_tokens=1) as watch:
        for _ in range(2):
            with pytest.raises(IncompleteAnswerError):
                next(watch)


def test_frames_leave_nothing_in_the_caches(vlm: VLM) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (96, 96, 3), np.uint8) for _ in range(12)]
    before = vlm.cache_info()
    with vlm.watch(iter(images), QUESTION, max_tokens=2) as watch:
        assert len(list(watch)) == 12
    after = vlm.cache_info()
    assert after.conversations == before.conversations
    assert after.conversation_bytes == before.conversation_bytes
    assert after.tiles == before.tiles


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"question": " "}, "empty"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_age": 0}, "max_age"),
        ({"within": -1}, "within"),
        ({"every": -1}, "every"),
        ({"min_change": 2}, "min_change"),
        ({"choices": ["a", "a"]}, "choices must differ"),
        ({"choices": ["a", "b"], "schema": int}, "choices take no schema"),
        ({"choices": ["a", "b"], "max_tokens": 3}, "choices take no max_tokens"),
        ({"schema": {"not": {}}}, "not"),
        ({"source": []}, "at least one source"),
    ],
)
def test_what_is_refused_before_a_frame_is_read(
    vlm: VLM, arguments: dict[str, Any], match: str
) -> None:
    def never() -> None:
        pytest.fail("a frame was read")

    with pytest.raises(InputError, match=match):
        vlm.watch(**{"source": never, "question": QUESTION, **arguments})


def test_the_command_prints_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(folder), QUESTION, "--max-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines()] == ["green"] * 3
    assert "answered 3, dropped 0" in err


def test_the_command_prints_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "1.png").write_bytes(b"damaged")
    arguments = ["watch", str(folder), QUESTION, "--choices", "red,green", "--jsonl"]
    assert main(arguments) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("value") for line in lines] == ["green", None, "green"]
    assert lines[1]["error"] == "ImageError"
    assert lines[0]["probabilities"]["green"] > 0.9
    assert {"frame_time", "age", "source", "dropped"} <= lines[0].keys()


def test_a_schema_for_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = folder / "schema.json"
    schema.write_text('{"enum": ["red", "green"]}')
    assert main(["watch", str(folder), QUESTION, "--schema", str(schema), "--jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(json.loads(line)["value"] in ("red", "green") for line in lines)
    schema.write_text("[]")
    assert main(["watch", str(folder), QUESTION, "--schema", str(schema)]) == 1
    assert "must hold a JSON object" in capsys.readouterr().err


def test_a_missing_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "/no/such/video.mp4", QUESTION]) == 1
    assert "/no/such/video.mp4 does not exist" in capsys.readouterr().err


def test_metrics_and_ctrl_c(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "edgevlm", "watch", str(folder), "rtsp://127.0.0.1:9/none"]
    command += [QUESTION, "--jsonl", "--metrics", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["value"] == "green"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
            text = response.read().decode()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert "edgevlm_watch_answered_total 3.0" in text
    assert "edgevlm_watch_age_seconds_count 3.0" in text
    assert process.returncode == 130
    assert "answered 3" in err
    assert "Traceback" not in err


def test_a_dead_camera_is_told(vlm: VLM) -> None:
    with (
        vlm.watch("rtsp://127.0.0.1:9/none", QUESTION, max_age=0.5) as watch,
        pytest.raises(StalledError, match="Connection refused"),
    ):
        next(watch)
    with pytest.raises(SourceError, match="does not exist"):
        vlm.watch("no-such-file.mp4", QUESTION)


def test_a_camera_that_fails_at_random(vlm: VLM) -> None:
    """A short form of ``python -m benchmarks.watch``."""
    found = soak(vlm, 6.0, 5)
    assert found["answered"] > 0
    assert found["wrong values"] == found["values older than max_age"] == 0
