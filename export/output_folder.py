"""Where a bundle is written: beside OUT, to be renamed at the end.

What fails removes the folder beside OUT; what is killed leaves it behind, hidden and, since the manifest is
written last, without one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.errors import ExportError


def check_out(out: Path) -> None:
    """Raises:
    ExportError: OUT exists or cannot be made.
    """
    if os.path.lexists(out):
        raise ExportError(f"{out} exists; give another folder or remove it first")
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is not a folder; make it first")


def check_disk(folder: Path, needed: int) -> None:
    """Raises:
    ExportError: less room than that.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder} has {free / 1e9:.1f} GB free, the export needs about {needed / 1e9:.1f} GB; free some "
            f"or give an OUT on another disk"
        )


@contextmanager
def aside(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` when all went well, and is removed when not.

    Raises:
        ExportError: the disk is full or may not be written.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    except OSError as error:
        raise ExportError(f"cannot write beside {out}: {error}") from error
    try:
        yield folder
        folder.chmod(0o755)
        check_out(out)
        folder.rename(out)
    except OSError as error:
        raise ExportError(f"cannot make {out}: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
