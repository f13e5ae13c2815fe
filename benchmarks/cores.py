"""Processes that keep the cores busy, and how much of the cores other programs take (Linux)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self

BUSY = "while True: pass"

_TICKS = os.sysconf("SC_CLK_TCK")


class BusyCores:
    """Processes that compute without a pause.

    Args:
        count: number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        for _ in range(self._count):
            self._processes.append(subprocess.Popen([sys.executable, "-c", BUSY]))
        self._start = time.monotonic(), self._others()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.wait()

    def others_share(self) -> float:
        """Return the share of the cores that other programs have taken since the start."""
        start, before = self._start
        seconds = (time.monotonic() - start) * (os.cpu_count() or 1)
        return (self._others() - before) / seconds

    def _others(self) -> float:
        """Return the seconds of all cores that neither this process nor the busy ones have used."""
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
        user, nice, system, _idle, _wait, *rest = map(int, line.split()[1:9])
        ours = sum(_cpu_ticks(process.pid) for process in self._processes)
        return (user + nice + system + sum(rest) - ours) / _TICKS - time.process_time()


def _cpu_ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
