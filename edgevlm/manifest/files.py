"""One file of a bundle."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgevlm.manifest.parsing import require


@dataclass(frozen=True)
class FileEntry:
    """One file of the bundle."""

    name: str
    """File name in the bundle folder, without directories: letters, digits, ``.``, ``_`` and ``-``."""
    size: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the content: 64 lower-case hexadecimal digits."""
    bits_per_weight: float | None = None
    """Decoders: bits of the file per parameter of the model, as measured; null for vision graphs."""

    def check(self) -> None:
        """Check the values."""
        require(
            re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name) is not None,
            "name",
            self.name,
            "must be a plain file name",
        )
        require(self.size > 0, "size", self.size, "must be positive")
        require(
            re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None,
            "sha256",
            self.sha256,
            "must be 64 lower-case hexadecimal digits",
        )
