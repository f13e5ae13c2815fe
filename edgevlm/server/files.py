"""Pictures that clients uploaded, to be asked about by their ids; in memory, as long as the server runs."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field

from edgevlm.server.errors import RequestError
from edgevlm.server.limits import Limits


@dataclass(frozen=True)
class StoredFile:
    """One upload."""

    name: str
    purpose: str
    data: bytes
    id: str = field(default_factory=lambda: f"file-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))


class FileStore:
    """Uploads by id. What is full refuses more: nothing that a client still counts on is thrown away."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._files: dict[str, StoredFile] = {}

    def add(self, file: StoredFile) -> None:
        """Raises RequestError if it does not fit."""
        used = sum(len(other.data) for other in self._files.values())
        if (
            used + len(file.data) > self._limits.stored_bytes
            or len(self._files) >= self._limits.stored_files
        ):
            raise RequestError(
                413,
                f"the {len(self._files)} uploaded files have {used} bytes, at most "
                f"{self._limits.stored_files} files and {self._limits.stored_bytes} bytes are kept; "
                f"delete some",
                code="storage_full",
            )
        self._files[file.id] = file

    def get(self, identifier: str) -> StoredFile:
        """Raises RequestError if there is no such file."""
        try:
            return self._files[identifier]
        except KeyError:
            raise RequestError(
                404, f"no file {identifier!r}; upload it to /v1/files", code="file_not_found"
            ) from None

    def remove(self, identifier: str) -> None:
        """Raises RequestError if there is no such file."""
        self.get(identifier)
        del self._files[identifier]

    def all(self) -> list[StoredFile]:
        return list(self._files.values())
