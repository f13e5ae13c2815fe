"""No process opens a socket without a request to do so: tests of the system calls of real runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from edgevlm import telemetry
from tests.conftest import Export
from tests.support.serving import free_port

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


class Traced:
    """A command under strace, in a home folder of its own.

    Args:
        home: an empty folder.
    """

    def __init__(self, home: Path, *command: str) -> None:
        self.home = home
        self._calls = home / "calls"
        environment = {
            name: value for name, value in os.environ.items() if name not in telemetry.VARIABLES
        }
        environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache")}
        trace = ["strace", "-f", "-qq", "-e", "trace=network", "-o", str(self._calls)]
        self.process = subprocess.Popen(
            [*trace, sys.executable, *command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait(self) -> str:
        """What the command printed."""
        out, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, err
        return out

    @property
    def internet_calls(self) -> list[str]:
        """System calls about sockets that can reach other machines."""
        calls = self._calls.read_text(errors="replace").splitlines()
        return [call for call in calls if "AF_INET" in call]

    @property
    def elsewhere(self) -> list[str]:
        """Those calls that name an address which is not this machine's."""
        addresses = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
        return [
            call
            for call in self.internet_calls
            for found in addresses.finditer(call)
            if (found[1] or found[2]) not in ("127.0.0.1", "0.0.0.0", "::1", "::")
        ]

    @property
    def kept(self) -> set[str]:
        """Folders and files that it left at home, other than edgevlm's own."""
        found = {path.relative_to(self.home).as_posix() for path in self.home.rglob("*")}
        return {name for name in found if not name.startswith(("calls", "cache"))} | {
            name for name in found if re.match(r"cache/(?!edgevlm)", name)
        }


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
        ["bench", "edgevlm-nano", "--rounds", "1"],
        ["doctor"],
    ],
    ids=lambda command: " ".join(command[:1] + command[3:4]),
)
def test_commands_open_no_socket(tmp_path: Path, command: list[str]) -> None:
    traced = Traced(tmp_path, "-m", "edgevlm", *command)
    traced.wait()
    assert traced.internet_calls == []
    assert traced.kept == set()


def test_export_reaches_no_other_machine(tmp_path: Path, exported: Export) -> None:
    """urllib3, which the hub's client imports, binds a socket to ::1 to see whether there is IPv6."""
    checkpoint = exported("smolvlm").checkpoint
    home, out = tmp_path / "home", str(tmp_path / "bundle")
    home.mkdir()
    traced = Traced(home, "-m", "edgevlm", "export", str(checkpoint), out, "--quiet")
    traced.wait()
    assert traced.elsewhere == []
    assert traced.kept == set()


@pytest.mark.parametrize("command", ["serve", "demo"])
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
