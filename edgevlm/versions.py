"""Versions of installed distributions."""

from __future__ import annotations

import importlib.metadata


def installed(forms: tuple[str, ...]) -> dict[str, str]:
    """Those that are installed, with their versions."""
    found = {}
    for name in forms:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
