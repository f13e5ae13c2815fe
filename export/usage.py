"""Find what a checkpoint is made for: its own file, or the entry of its family."""

from __future__ import annotations

from edgevlm.errors import BundleError, ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.manifest import Usage

USAGE_NAME = "edgevlm_usage.json"
"""A file beside the weights with the fields of `edgevlm.manifest.Usage`; it overrules the family."""


def find_usage(checkpoint: Checkpoint, family: Family) -> Usage:
    """Return the usage of the checkpoint's file, else of its family.

    Raises:
        ExportError: the file does not have this form.
    """
    path = checkpoint.folder / USAGE_NAME
    if not path.is_file():
        return family.usage(checkpoint.repository)
    try:
        return Usage.from_dict(checkpoint.json(USAGE_NAME))
    except BundleError as error:
        raise ExportError(f"{path}: {error}") from error
