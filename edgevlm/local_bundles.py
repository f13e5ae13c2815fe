"""The list of bundles that were exported on this machine, so that programs can offer them.

The list is a file in the user's cache folder. If it is lost, the bundles still work.
"""

from __future__ import annotations

import json
import os.path
from pathlib import Path

from edgevlm.manifest import MANIFEST_NAME
from edgevlm.user_cache import user_cache, write_cached


def exported_bundles() -> list[Path]:
    """Return the folders of the list that still have a manifest, the newest first."""
    try:
        listed = json.loads(_file().read_text(encoding="utf-8"))
        folders = [Path(folder) for folder in listed["folders"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
    # os.path.isfile returns False where Path.is_file raises, such as for a folder without permission
    return [folder for folder in folders if os.path.isfile(folder / MANIFEST_NAME)]


def remember(folder: Path) -> None:
    """Put the folder of a bundle first in the list. Do nothing if the list cannot be written."""
    folder = folder.expanduser().resolve()
    folders = [folder, *(other for other in exported_bundles() if other != folder)]
    listed = {"folders": [str(folder) for folder in folders]}
    write_cached(_file(), json.dumps(listed, ensure_ascii=False))


def _file() -> Path:
    return user_cache("exports") / "bundles.json"
