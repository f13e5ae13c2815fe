"""No process opens a socket without a request to do so: tests of the system calls of real runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from edgevlm import telemetry
from tests.support.serving import free_port
from tests.support.traced import Traced

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace shows the system calls, and is not installed"
)

SQUARE = "examples/square.png"
LIBRARY = """
import sys, time
from edgevlm import VLM
with VLM.from_pretrained("edgevlm-nano", device=sys.argv[1]) as vlm:
    print(vlm.ask("examples/square.png", "What color is it?").text)
    time.sleep(8)  # ONNX Runtime would look its maker's host up by then
"""


@pytest.mark.parametrize("device", ["cpu", "openvino"])
def test_the_library_opens_no_socket(tmp_path: Path, device: str) -> None:
    traced = Traced(tmp_path, "-c", LIBRARY, device)
    assert traced.wait() == "green\n"
    assert traced.internet_calls == []
    assert traced.kept == set()


@pytest.mark.parametrize(
    "command",
    [
        ["ask", "What color is it?", SQUARE],
        ["ask", "What color is it?", SQUARE, "--device", "openvino"],
        pytest.param(["bench", "edgevlm-nano", "--rounds", "1"], marks=pytest.mark.slow),
        ["doctor"],
    ],
    ids=lambda command: " ".join(command[:1] + command[3:4]),
)
def test_commands_open_no_socket(tmp_path: Path, command: list[str]) -> None:
    traced = Traced(tmp_path, "-m", "edgevlm", *command)
    traced.wait()
    assert traced.internet_calls == []
    assert traced.kept == set()


@pytest.mark.parametrize("command", ["serve", pytest.param("demo", marks=pytest.mark.slow)])
def test_servers_open_what_they_serve_on_and_nothing_else(tmp_path: Path, command: str) -> None:
    port = free_port()
    traced = Traced(tmp_path, "-m", "edgevlm", command, "--port", str(port))
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline and traced.process.poll() is None
        try:
            if httpx.get(f"http://127.0.0.1:{port}/").status_code in (200, 404):
                break
        except httpx.TransportError:
            time.sleep(0.1)
    time.sleep(8)
    child = Path(f"/proc/{traced.process.pid}/task/{traced.process.pid}/children").read_text()
    os.kill(int(child.split()[0]), signal.SIGINT)
    traced.process.communicate(timeout=60)
    assert traced.internet_calls != []
    assert traced.elsewhere == []
    assert traced.kept == set()


@pytest.mark.parametrize("name", telemetry.VARIABLES)
def test_who_has_set_a_variable_keeps_the_choice(name: str) -> None:
    code = f"import os, edgevlm; print(os.environ[{name!r}])"
    environment = {key: value for key, value in os.environ.items() if key != name}
    for chosen in ({}, {name: "mine"}):
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment | chosen, capture_output=True, text=True
        )
        assert done.stdout.strip() == (chosen.get(name) or telemetry.VARIABLES[name])


def test_openvino_reports_only_where_the_user_agreed(tmp_path: Path) -> None:
    code = (
        "import sys; from edgevlm.runtimes import openvino; openvino.load_openvino()\n"
        "print('openvino_telemetry.main' in sys.modules); import openvino_telemetry"
    )
    choice = tmp_path / "intel" / telemetry.OPENVINO_REPORTER
    for written, expected in ((None, "False"), ("0", "False"), ("1", "True")):
        if written is not None:
            choice.parent.mkdir(exist_ok=True)
            choice.write_text(written)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"HOME": str(tmp_path), "CI": "true"},
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == expected, done.stderr
