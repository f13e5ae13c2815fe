"""Which bundles were exported on this machine, so that they can be offered without being searched for.

A list of folders in the user's cache folder. Losing it loses nothing but the offer.
"""

from __future__ import annotations

import json
import os.path
from pathlib import Path

from edgevlm.manifest import MANIFEST_NAME
from edgevlm.user_cache import user_cache, write_cached


def exported_bundles() -> list[Path]:
    """Folders that `remember` was given and that still hold a manifest, the newest first."""
    try:
        listed = json.loads(_file().read_text(encoding="utf-8"))
        folders = [Path(folder) for folder in listed["folders"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    # os.path's answers False where Path's would raise: a folder that may not be entered hides no other
    return [folder for folder in folders if os.path.isfile(folder / MANIFEST_NAME)]


def remember(folder: Path) -> None:
    """Put a bundle's folder first in the list.

    Where nothing can be written the bundle is not offered, and works.
    """
    folder = folder.expanduser().resolve()
    folders = [folder, *(other for other in exported_bundles() if other != folder)]
    listed = {"folders": [str(folder) for folder in folders]}
    write_cached(_file(), json.dumps(listed, ensure_ascii=False))


def _file() -> Path:
    return user_cache("exports") / "bundles.json"
