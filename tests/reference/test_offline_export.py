"""An export opens no socket to another machine: its system calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conftest import Export
from tests.support.traced import Traced

pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace shows the system calls, and is not installed"
)


def test_export_reaches_no_other_machine(tmp_path: Path, exported: Export) -> None:
    """urllib3, which the hub's client imports, binds a socket to ::1 to see whether there is IPv6."""
    checkpoint = exported("smolvlm").checkpoint
    home, out = tmp_path / "home", str(tmp_path / "bundle")
    home.mkdir()
    traced = Traced(home, "-m", "edgevlm", "export", str(checkpoint), out, "--quiet")
    traced.wait()
    assert traced.elsewhere == []
    assert traced.kept == set()
