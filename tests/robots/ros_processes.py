"""Processes with ROS 2: the node of edgevlm, and cameras and listeners around it."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGE = REPOSITORY / "demo" / "ros2" / "edgevlm_ros"
PYTHON = Path(sys.prefix) / "robots" / "bin" / "python"
"""Of the environment that scripts/install_robots.py creates."""

LIMIT = 60
"""Seconds after which something that should have happened fails the test."""

NEXT_DOMAIN = iter(range(1 + os.getpid() % 90, 200))
"""ROS domains, so that runs at the same time do not hear one another."""


class Process:
    """A process that writes JSON objects to stdout, one a line.

    Args:
        arguments: of Python.
        domain: ROS domain.
    """

    def __init__(self, *arguments: str | Path, domain: int) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(PACKAGE)]),
            "ROS_DOMAIN_ID": str(domain),
            "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        }
        self.process = subprocess.Popen(
            [PYTHON, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        self.lines: list[dict[str, Any]] = []
        """What was written, as far as `wait` has read it."""
        self._queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.stderr = ""
        self._threads = [threading.Thread(target=work) for work in (self._read, self._read_stderr)]
        for thread in self._threads:
            thread.start()

    def send(self, **command: Any) -> None:
        """Send a command of ros_peer.py."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def wait(self, wanted: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Read lines until one is as wanted, and return it."""
        line = self.look_for(wanted, LIMIT)
        assert line is not None, f"nothing of this kind in {LIMIT} s: {self.lines[-5:]}"
        return line

    def look_for(
        self, wanted: Callable[[dict[str, Any]], object], seconds: float
    ) -> dict[str, Any] | None:
        """Read lines until one is as wanted, and return it; None if there is none for so many seconds."""
        end = time.monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return None
            assert line is not None, f"the process ended: {self.stderr}"
            self.lines.append(line)
            if wanted(line):
                return line

    def drain(self) -> list[dict[str, Any]]:
        """Read all lines until the end of the process, and return all that it wrote."""
        while (line := self._queue.get(timeout=LIMIT)) is not None:
            self.lines.append(line)
        return self.lines

    def end(self, number: int) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("\n"):  # a process that is killed may leave a part
                self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr += line

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.returncode is None:
            self.end(signal.SIGKILL)


def start_peer(name: str, domain: int) -> Process:
    """Start ros_peer.py as a node of this name."""
    peer = Process(REPOSITORY / "tests" / "robots" / "ros_peer.py", name, domain=domain)
    peer.wait(lambda line: "ready" in line)
    return peer


def start_node(
    domain: int, *, script: Path | None = None, file: Path | None = None, **parameters: object
) -> Process:
    """Start the node of edgevlm.

    Args:
        domain: ROS domain.
        script: runs in place of the node.
        file: of parameters; those given here come before it.
        parameters: its parameters.
    """
    program: list[str | Path] = ["-m", "edgevlm_ros.node"] if script is None else [script]
    settings = [] if file is None else ["--params-file", str(file)]
    for name, value in parameters.items():
        settings += ["-p", f"{name}:={json.dumps(value)}"]
    return Process(*program, "--ros-args", *settings, domain=domain)
