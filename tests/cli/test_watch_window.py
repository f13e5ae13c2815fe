"""``edgevlm watch --show``: a real window under Xvfb, and what is said where there is no display."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageGrab

from edgevlm import VLM, FrameSlot
from edgevlm.cli import main
from edgevlm.drawing import DARK

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCENE, SQUARE = EXAMPLES / "scene.png", EXAMPLES / "square.png"
LIMIT = 60
"""Seconds after which something that should have happened fails the test."""


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    pytest.importorskip("tkinter")
    if shutil.which("Xvfb") is None:
        pytest.skip("no Xvfb: apt-get install xvfb")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1024x768x24"]
    command += ["-nolisten", "tcp"]
    with (
        subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL) as process,
        open(reading, encoding="utf-8") as number,
    ):
        os.close(writing)
        yield f":{number.readline().strip()}"
        process.terminate()


def grab(display: str) -> NDArray[np.uint8]:
    return np.asarray(ImageGrab.grab(xdisplay=display).convert("RGB"))


def lines_of_boxes(pixels: NDArray[np.uint8]) -> NDArray[np.intp]:
    """Return rows and columns of the pixels that have the color of boxes."""
    return np.argwhere((pixels == ImageColor.getrgb(DARK)).all(axis=2))


def test_the_window_has_the_frame_with_its_boxes(display: str, tmp_path: Path) -> None:
    for index in range(2):  # the window stays until the second one is answered
        Image.open(SCENE).convert("RGB").save(tmp_path / f"{index}.png")
    command = [sys.executable, "-m", "edgevlm", "watch", str(tmp_path), "Where is the key?"]
    command += ["--show", "--every", "1000", "--threads", "1"]
    environment = {**os.environ, "DISPLAY": display}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().rstrip().endswith("]")  # a box
            end = time.monotonic() + LIMIT
            while not len(lines_of_boxes(grab(display))):
                assert time.monotonic() < end
                time.sleep(0.1)
            time.sleep(0.5)  # the window is drawn whole
            pixels = grab(display)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()  # or a failure would wait for its end
    assert process.returncode == 130
    assert "answered 1" in err and "Traceback" not in err
    with VLM.from_pretrained(threads=1) as vlm:
        (box,) = vlm.ask(SCENE, "Where is the key?").boxes
    _, columns = lines_of_boxes(pixels).T
    shown = np.argwhere(pixels.any(axis=2))
    shown = shown[shown[:, 0] < 580]  # the picture is above the text
    top, left = shown.min(axis=0)
    height, width = shown.max(axis=0) - (top, left)
    found = (columns.min() - left) / width, (columns.max() - left) / width
    assert found == pytest.approx((box.left, box.right), abs=0.02)
    assert height > 400 and (pixels[600:] > 200).any(), "the answer is below the picture"


def test_escape_closes_the_window(display: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgevlm.cli.watch import _print_all
    from edgevlm.cli.watch_window import WatchWindow

    monkeypatch.setenv("DISPLAY", display)
    window = WatchWindow()
    slot = FrameSlot("the camera")
    slot.put(SQUARE)
    texts: list[str] = []

    def look() -> None:
        texts.append(window._text.cget("text"))
        if any("given no frame" in text for text in texts):
            window.root.focus_force()
            window.root.event_generate("<Escape>")
        window.root.after(20, look)

    window.root.after(20, look)
    with (
        VLM.from_pretrained(threads=1) as vlm,
        vlm.watch(slot, "What color is it?", max_age=2) as watch,
    ):
        code = window.run(watch, lambda: _print_all(watch, False, lambda seen: None, window))
    assert code == 1, "a source that stalls is an error"
    assert any(text.startswith("green\n") and text.endswith(" s ago") for text in texts)
    assert "the camera, has given no frame for" in texts[-1], "an old answer does not stay"


def test_without_a_display(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tkinter")
    if sys.platform != "linux":
        pytest.skip("other systems have no DISPLAY")
    monkeypatch.delenv("DISPLAY", raising=False)
    assert main(["watch", str(SQUARE), "What?", "--show"]) == 1
    assert "--show needs a display" in capsys.readouterr().err


def test_without_tkinter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden: Any = None
    monkeypatch.setitem(sys.modules, "tkinter", hidden)
    monkeypatch.delitem(sys.modules, "edgevlm.cli.watch_window", raising=False)
    assert main(["watch", str(SQUARE), "What?", "--show"]) == 1
    assert "apt-get install python3-tk" in capsys.readouterr().err
