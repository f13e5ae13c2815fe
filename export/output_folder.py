"""The output folder: files are written to a temporary folder beside it, which is renamed at the end.

An export that fails removes the temporary folder. One that is killed leaves a hidden folder without a
manifest, since the manifest is written last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgevlm.bundle import sha256
from edgevlm.errors import ExportError
from edgevlm.manifest import FileEntry


def check_out(out: Path) -> None:
    """Check that the output folder can be created.

    Raises:
        ExportError: it exists, or its parent does not.
    """
    if os.path.lexists(out):
        raise ExportError(f"{out} exists; give another folder or remove it first")
    if not out.parent.is_dir():
        raise ExportError(f"{out.parent} is not a folder; make it first")


def check_disk(folder: Path, needed: int) -> None:
    """Check the free disk space.

    Args:
        needed: bytes.

    Raises:
        ExportError: there is less.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(
            f"{folder} has {free / 1e9:.1f} GB free, the export needs about {needed / 1e9:.1f} GB; free some "
            f"or give an OUT on another disk"
        )


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Create a temporary folder beside `out`; rename it to `out` at the end, or remove it after an error.

    Raises:
        ExportError: the disk is full or not writable.
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


def file_entry(path: Path, bits_per_weight: float | None = None) -> FileEntry:
    """Return the entry of a finished file, with its size and hash."""
    return FileEntry(path.name, path.stat().st_size, sha256(path), bits_per_weight)
