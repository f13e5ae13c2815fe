"""A command under strace: which sockets it opens, and which files it leaves."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from edgevlm import telemetry


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
