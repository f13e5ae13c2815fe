"""The user's cache folder: results that take time to compute, kept for the next process."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from edgevlm.atomic_file import atomic_write

_logger = logging.getLogger(__name__)


def user_cache(name: str) -> Path:
    """Return ``$XDG_CACHE_HOME/edgevlm/NAME``, else ``~/.cache/edgevlm/NAME``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "edgevlm" / name


def write_cached(path: Path, text: str) -> None:
    """Write a file of the cache, or log why it cannot be written.

    A missing file of the cache costs the next process time, and nothing else.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        atomic_write(path, text)
    except (OSError, UnicodeEncodeError) as error:
        _logger.info("%s cannot be written to the cache (%s)", path, error)
