"""`VLM.watch` and a real RTSP server, GStreamer's, that is frozen, killed and started again."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from edgevlm import VLM, Seen, StalledError, Watch

SERVER = Path(__file__).resolve().parents[1] / "support" / "rtsp_server.py"
COLORS = {"green": (30, 160, 60), "blue": (40, 80, 220)}
LIMIT = 60
"""Seconds in which a frame must come."""
MAX_AGE = 1.0

PYTHON = Path("/usr/bin/python3")
"""That of the system, for which Debian has the module gi."""

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}")


@contextlib.contextmanager
def server(
    folder: Path, color: str, port: str = "0"
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Serve a square of a color; yield the process and its port."""
    picture = folder / f"{color}.png"
    image = Image.new("RGB", (320, 240), "white")
    ImageDraw.Draw(image).rectangle([100, 70, 220, 170], fill=COLORS[color])
    image.save(picture)
    command = [str(PYTHON), str(SERVER), str(picture), port]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            found = process.stdout.readline().strip()
            if not found and process.wait(LIMIT) == 77:
                pytest.skip(process.stderr.read().strip())
            assert found, process.stderr.read()
            yield process, found
        finally:
            process.kill()


def see(watch: Watch, color: str) -> Seen:
    """Return the next value about a frame of a color; stalls before it are told."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(StalledError):
            seen = next(watch)
            assert seen.age <= MAX_AGE
            if seen.value == color:
                return seen
    raise TimeoutError(f"no frame of the color {color} in {LIMIT} s")


def stall(watch: Watch) -> str:
    """Read what was sent before the camera stalled, and return the message about the stall."""
    with pytest.raises(StalledError, match="rtsp://127") as told:
        for seen in watch:
            assert seen.age <= MAX_AGE
    return str(told.value)


def test_a_server_that_freezes_dies_and_comes_back(tmp_path: Path) -> None:
    with contextlib.ExitStack() as ends:
        first, port = ends.enter_context(server(tmp_path, "green"))
        vlm = ends.enter_context(VLM.from_pretrained(threads=1))
        url = f"rtsp://user:secret@127.0.0.1:{port}/camera"
        watch = ends.enter_context(
            vlm.watch(url, "What color is it?", choices=list(COLORS), max_age=MAX_AGE)
        )
        seen = see(watch, "green")
        assert seen.frame.shape == (240, 320, 3)
        assert abs(seen.frame[120, 160].astype(int) - COLORS["green"]).max() < 12

        first.send_signal(signal.SIGSTOP)
        assert "secret" not in stall(watch)
        first.send_signal(signal.SIGCONT)
        see(watch, "green")

        reopened = watch.stats.reopened
        first.kill()
        assert "secret" not in stall(watch)
        with server(tmp_path, "blue", port):
            seen = see(watch, "blue")
            assert abs(seen.frame[120, 160].astype(int) - COLORS["blue"]).max() < 12
            assert watch.stats.reopened > reopened
            assert watch.stats.stalls >= 2
