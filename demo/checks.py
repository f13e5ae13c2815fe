"""Whether a bundle's files are still those that were exported, found out while the page goes on.

Files are read one after the other, by a thread that yields to everything else where the system can be told
so. A result holds until the file's size or times change. What was found right is also remembered for the
next start, see `Bundle.check_hashes_once`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress

from edgevlm.bundle import Bundle
from edgevlm.errors import BundleError
from edgevlm.manifest import FileEntry

LOWEST_PRIORITY = 19

_Key = tuple[str, str, int, int, int]
"""Path, SHA-256 that it should have, size, and the two times of a file."""


class Checks:
    """Results of checks, and those that are still to come; safe to use from many threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._results: dict[_Key, str] = {}
        """What is wrong; empty if nothing is."""
        self._waiting: dict[_Key, tuple[Bundle, FileEntry]] = {}
        self._thread: threading.Thread | None = None

    def result(self, bundle: Bundle, entries: Sequence[FileEntry]) -> str | None:
        """What is wrong with these files: "" if nothing is, None if some were not read yet, which will be."""
        found = [self._result(bundle, entry) for entry in entries]
        wrong = next((result for result in found if result), None)
        return None if wrong is None and None in found else wrong or ""

    def wait(self, timeout: float) -> bool:
        """Until another file was read; whether any is still to be read, at once if none is.

        Args:
            timeout: seconds.
        """
        with self._changed:
            if self._waiting:
                self._changed.wait(timeout)
            return bool(self._waiting)

    def _result(self, bundle: Bundle, entry: FileEntry) -> str | None:
        try:
            key = _key(bundle, entry)
        except OSError as error:
            return f"cannot read {bundle.path(entry)}: {error.strerror}; export the bundle again"
        with self._changed:
            if key in self._results:
                return self._results[key]
            self._waiting.setdefault(key, (bundle, entry))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
        return None

    def _work(self) -> None:
        if sys.platform == "linux":  # where a thread has a priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                key, (bundle, entry) = next(iter(self._waiting.items()))
            wrong = ""
            try:
                bundle.check_hashes_once([entry])
            except BundleError as error:
                wrong = str(error)
            with self._changed:
                self._results[key] = wrong
                del self._waiting[key]
                self._changed.notify_all()


def _key(bundle: Bundle, entry: FileEntry) -> _Key:
    path = bundle.path(entry)
    found = path.stat()
    return str(path), entry.sha256, found.st_size, found.st_mtime_ns, found.st_ctime_ns
