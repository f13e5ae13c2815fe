"""The folder of what people upload: private, locked while its process runs, deleted with it.

The lock is on the folder itself. So a folder without one was left by a process that was killed, and the next
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
except ImportError:  # Windows: nothing is locked there, and nothing that was left is found
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

PREFIX = "edgevlm-uploads-"

UNUSED_SECONDS = 24 * 3600
"""Age at which a file is deleted that no conversation needs."""

SWEEP_SECONDS = 60
"""Time between looks at the folder."""

DELETE_TRIES = 5
"""Deletions of the folder while a thread of the server may still write into it."""


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A new folder that only this user may enter; deleted at the end.

    Folders that killed processes of this user left are deleted first.
    """
    delete_left_behind()
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


def delete_left_behind() -> None:
    """Delete this user's folders whose processes are gone, and nothing else."""
    if fcntl is None:
        return
    for folder in Path(tempfile.gettempdir()).glob(PREFIX + "*"):
        with suppress(OSError):  # somebody else's, locked by its process, or gone by now
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
    """Delete files that nobody needs any more.

    Args:
        needed: paths that stay, however old they are.
        released: when the conversations of these paths were deleted. Such a file goes if nothing has used
            it since then; Gradio touches what it hands out. All others go `UNUSED_SECONDS` after that.
        now: seconds since 1970; None for the present.
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
            with suppress(OSError):  # it holds something else
                os.rmdir(parent)


def sweep_regularly(
    folder: Path, files: Callable[[], tuple[Collection[str], Mapping[str, float]]]
) -> None:
    """`sweep` from another thread; what lies in the folder now stays.

    Args:
        files: returns what is needed and what was released.
    """
    lasting = {os.path.join(parent, name) for parent, _, names in os.walk(folder) for name in names}

    def work() -> None:
        while True:
            time.sleep(SWEEP_SECONDS)
            needed, released = files()
            sweep(folder, lasting.union(needed), released)

    threading.Thread(target=work, daemon=True).start()


def _locked_folder() -> tuple[Path, int | None]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()  # mkdtemp: for this user alone
        if fcntl is None:
            return folder, None
        try:
            lock = _open_folder(folder)
        except FileNotFoundError:
            continue  # a starting process found it before it was locked
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
