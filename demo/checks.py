"""Checks of the files of bundles in the background.

A thread with low priority (on Linux) reads one file after the other and compares its hash. A result is valid
until size or times of the file change. `Bundle.check_hashes_once` remembers good files for the next start.
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
"""Path, expected SHA-256, size, and times of modification and change of a file."""


class FileChecks:
    """Results of checks, and a queue of files to check. All methods are thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._results: dict[_Key, str] = {}
        """The problem of a file; empty if it is good."""
        self._waiting: dict[_Key, tuple[Bundle, FileEntry]] = {}
        self._thread: threading.Thread | None = None

    def result(self, bundle: Bundle, entries: Sequence[FileEntry]) -> str | None:
        """Return the first problem of these files; "" if all are good; None if some are not checked yet."""
        found = [self._result(bundle, entry) for entry in entries]
        problem = next((result for result in found if result), None)
        return None if problem is None and None in found else problem or ""

    def wait(self, timeout: float) -> bool:
        """Wait until another file is checked. Return True if files are still to be checked.

        Args:
            timeout: seconds to wait at most.
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
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()
        return None

    def _run(self) -> None:
        if sys.platform == "linux":  # threads have their own priorities there
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while True:
            with self._changed:
                if not self._waiting:
                    self._thread = None
                    return
                key, (bundle, entry) = next(iter(self._waiting.items()))
            problem = ""
            try:
                bundle.check_hashes_once([entry])
            except BundleError as error:
                problem = str(error)
            with self._changed:
                self._results[key] = problem
                del self._waiting[key]
                self._changed.notify_all()


def _key(bundle: Bundle, entry: FileEntry) -> _Key:
    path = bundle.path(entry)
    status = path.stat()
    return str(path), entry.sha256, status.st_size, status.st_mtime_ns, status.st_ctime_ns
