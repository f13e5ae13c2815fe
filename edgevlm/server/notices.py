"""What the server's log says once, however often it happens."""

from __future__ import annotations

import logging

_logger = logging.getLogger(__name__)


class Notices:
    """Warnings that are said once each.

    Args:
        max_notices: past so many different ones nothing more is said, so that no client can fill the log.
    """

    def __init__(self, max_notices: int = 200) -> None:
        self._max_notices = max_notices
        self._said: set[str] = set()

    def once(self, message: str) -> None:
        """Log `message` as a warning unless that was done before."""
        if message not in self._said and len(self._said) < self._max_notices:
            self._said.add(message)
            _logger.warning("%s", message)
