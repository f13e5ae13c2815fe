"""Warnings that are logged once each."""

from __future__ import annotations

import logging

_logger = logging.getLogger(__name__)


class Notices:
    """Logs each warning once.

    Args:
        max_notices: the limit of different warnings, so that clients cannot fill the log.
    """

    def __init__(self, max_notices: int = 200) -> None:
        self._max_notices = max_notices
        self._logged: set[str] = set()

    def warn_once(self, message: str) -> None:
        """Log a warning, unless the same one was logged before."""
        if message not in self._logged and len(self._logged) < self._max_notices:
            self._logged.add(message)
            _logger.warning("%s", message)
