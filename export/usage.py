"""What a checkpoint is good at: as it says itself, or as its family does."""

from __future__ import annotations

from edgevlm.errors import BundleError, ExportError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.families import Family
from edgevlm.manifest import Usage

USAGE_NAME = "edgevlm_usage.json"
"""A file beside the weights: the fields of `edgevlm.manifest.Usage`, for what a family does not know."""


def find_usage(checkpoint: Checkpoint, family: Family) -> Usage:
    """The checkpoint's own file, or the family's entry.

    Raises:
        ExportError: a file that is not of this form.
    """
    path = checkpoint.folder / USAGE_NAME
    if not path.is_file():
        return family.usage(checkpoint.repository)
    try:
        return Usage.from_dict(checkpoint.json(USAGE_NAME))
    except BundleError as error:
        raise ExportError(f"{path}: {error}") from error
