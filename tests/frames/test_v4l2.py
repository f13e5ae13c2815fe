"""A camera of Linux: a loopback device, into which a thread writes frames."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edgevlm import VLM, CameraSource

SQUARE = Path(__file__).resolve().parents[2] / "examples" / "square.png"


def find_device() -> Path | None:
    """Return a device of v4l2loopback that may be read and written."""
    for entry in sorted(Path("/sys/devices/virtual/video4linux").glob("video*")):
        device = Path("/dev") / entry.name
        if os.access(device, os.R_OK | os.W_OK):
            return device
    return None


def write(device: Path, ready: threading.Event, end: threading.Event) -> None:
    """Write the square to the device, 15 times a second."""
    square = Image.open(SQUARE).convert("RGB").resize((320, 240))
    with av.open(str(device), "w", format="v4l2") as container:
        stream = container.add_stream("rawvideo", rate=15)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuyv422"
        while not end.wait(1 / 15):
            frame = av.VideoFrame.from_ndarray(np.asarray(square), format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuyv422")))
            ready.set()


@pytest.fixture
def device() -> Iterator[Path]:
    found = find_device()
    if found is None:
        pytest.skip("no loopback camera: modprobe v4l2loopback exclusive_caps=0")
    ready, end = threading.Event(), threading.Event()
    thread = threading.Thread(target=write, args=(found, ready, end))
    thread.start()
    assert ready.wait(60)
    yield found
    end.set()
    thread.join()


def test_a_camera_by_its_path_and_by_its_number(device: Path) -> None:
    sources: list[CameraSource] = [str(device), int(device.name.removeprefix("video"))]
    with (
        VLM.from_pretrained(threads=1) as vlm,
        vlm.watch(sources, "What color is it?", choices=["red", "green"], max_age=10) as watch,
    ):
        found = [next(watch) for _ in range(6)]
    assert {seen.source for seen in found} == {0, 1}
    assert all(seen.value == "green" for seen in found)
    assert all(seen.frame.shape == (240, 320, 3) for seen in found)
