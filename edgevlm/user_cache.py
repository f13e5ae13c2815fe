"""Where results that cost time are kept for the next process."""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

_logger = logging.getLogger(__name__)


def user_cache(name: str) -> Path:
    """``$XDG_CACHE_HOME/edgevlm/NAME``, else under ``~/.cache``; it may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "edgevlm" / name


def keep(path: Path, text: str) -> None:
    """Write a file of the cache, aside and renamed; where that cannot be done, what it says is found out
    again next time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(aside, path)
    except (OSError, UnicodeEncodeError) as error:
        _logger.info("%s cannot be kept (%s)", path, error)
