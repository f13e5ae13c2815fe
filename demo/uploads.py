"""The folder of uploaded files: private, locked while its process runs, and deleted when it ends.

The lock is on the folder itself. A folder without a lock belongs to a process that was killed; the next
process deletes it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: no locks, so folders of killed processes are not deleted
    fcntl = None  # type: ignore[assignment]  # the module on other systems

PREFIX = "edgevlm-uploads-"

UNUSED_SECONDS = 24 * 3600
"""Age at which a file that no conversation needs is deleted."""

SWEEP_SECONDS = 60
"""Interval of searches for such files."""

DELETE_TRIES = 5
"""Attempts to delete the folder; a thread of the server may still write into it."""


@contextmanager
def upload_folder() -> Iterator[Path]:
    """Create a folder that only this user can read, and delete it at the end.

    First delete the folders of killed processes of this user.
    """
    delete_orphans()
    folder, lock = _locked_folder()
    try:
        yield folder
    finally:
        for _ in range(DELETE_TRIES):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                break
        if lock is not None:
            os.close(lock)


def delete_orphans() -> None:
    """Delete the folders of this user whose processes have ended."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with suppress(OSError):  # of another user, locked by its process, or already deleted
            lock = _open_folder(folder)
            try:
                if os.fstat(lock).st_uid == os.geteuid():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def sweep(
    folder: Path, needed: Collection[str], released: Mapping[str, float], now: float | None = None
) -> None:
    """Delete files that no conversation needs.

    Args:
        folder: the folder of uploads.
        needed: paths to keep.
        released: paths whose conversations were deleted, with the time of the deletion. Such a file is
            deleted unless it was used after that (Gradio changes the times of files that it serves). Other
            files are deleted `UNUSED_SECONDS` after their last use.
        now: seconds since 1970; None: the present.
    """
    now = time.time() if now is None else now
    for parent, _, names in os.walk(folder):
        removed = False
        for name in names:
            path = os.path.join(parent, name)
            if path in needed:
                continue
            with suppress(FileNotFoundError):
                used = os.lstat(path).st_ctime
                if used <= released.get(path, now - UNUSED_SECONDS):
                    os.remove(path)
                    removed = True
        if removed and parent != str(folder):
            with suppress(OSError):  # it is not empty
                os.rmdir(parent)


def sweep_regularly(
    folder: Path, files: Callable[[], tuple[Collection[str], Mapping[str, float]]]
) -> None:
    """Call `sweep` regularly in another thread. Keep the files that are in the folder now.

    Args:
        folder: the folder of uploads.
        files: returns the arguments `needed` and `released` of `sweep`.
    """
    permanent = {
        os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names
    }

    def run() -> None:
        while True:
            time.sleep(SWEEP_SECONDS)
            needed, released = files()
            sweep(folder, permanent.union(needed), released)

    threading.Thread(target=run, daemon=True).start()


def _locked_folder() -> tuple[Path, int | None]:
    while True:
        folder = Path(
            tempfile.mkdtemp(prefix=PREFIX)
        ).resolve()  # mkdtemp: only this user can read it
        if fcntl is None:
            return folder, None
        try:
            lock = _open_folder(folder)
        except FileNotFoundError:
            continue  # another process deleted it before it was locked
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if folder.exists():
                return folder, lock
        except BlockingIOError:
            pass
        except OSError:  # a file system without locks
            return folder, lock
        os.close(lock)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
