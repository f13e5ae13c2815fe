"""Images that quantized vision graphs and importance matrices are fitted to, and their tiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgevlm.errors import ExportError, ImageError, MissingDependencyError
from edgevlm.inputs.images import load_image
from edgevlm.inputs.tiling import Detail, split_image
from edgevlm.manifest import OwnSizeTiling, Tiling

PHOTOGRAPHS = Path(__file__).resolve().parent / "photographs"
"""Openly licensed photographs that come with edgevlm; ATTRIBUTION.md names their authors and licences."""

EXTENSIONS = frozenset(
    (".avif", ".bmp", ".gif", ".heic", ".heif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
)
"""Endings of the files that are read as images, in lower case."""


@dataclass(frozen=True)
class CalibrationImages:
    """Images that quantized vision graphs and importance matrices are fitted to."""

    files: tuple[Path, ...]
    """Image files, sorted by name."""
    description: str
    """For the manifest and the model card, such as ``40 images of the folder kitchen``."""

    @classmethod
    def open(cls, folder: Path | None = None) -> CalibrationImages:
        """Find the images of a folder and decode each once, so that a bad one is found before any work.

        Only files that end with `EXTENSIONS` are read; hidden files and subfolders are not.

        Args:
            folder: the folder; None: the photographs that come with edgevlm.

        Raises:
            ExportError: there is no such folder, it has no image, or an image cannot be read.
        """
        files = find_images(folder or PHOTOGRAPHS)
        if folder is None:
            return cls(files, f"{len(files)} photographs that come with edgevlm")
        for file in files:
            _load(file)
        images = "1 image" if len(files) == 1 else f"{len(files)} images"
        return cls(files, f"{images} of the folder {folder.resolve().name}")

    def load(self) -> list[NDArray[np.uint8]]:
        """Return the images, uint8 ``[height, width, 3]``."""
        return [_load(file) for file in self.files]

    def tiles(self, tiling: Tiling) -> list[NDArray[np.uint8]]:
        """Return one tile of each image, uint8 ``[1, height, width, 3]``.

        It shows the whole image. If an image is split, this is the overview. An image that keeps its own size
        is shrunk, since what is measured of a large one would fill the memory.
        """
        detail: Detail | None = "low" if isinstance(tiling, OwnSizeTiling) else None
        tiles = []
        for file in self.files:
            split = split_image(_load(file), tiling, detail)
            tiles.append(split.pixels[split.layout.overview or 0][None])
        return tiles


def find_images(folder: Path) -> tuple[Path, ...]:
    """Return the image files of a folder, sorted by name.

    Raises:
        ExportError: there is no such folder, or it has no image.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ExportError(
            f"cannot read the calibration folder {folder}: {error.strerror}; name a folder of images"
        ) from error
    files = tuple(
        path
        for path in entries
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        raise ExportError(
            f"the calibration folder {folder} has no image (a file that ends with "
            f"{', '.join(sorted(EXTENSIONS))}); put some images there that the model will see"
        )
    return files


def _load(file: Path) -> NDArray[np.uint8]:
    """Decode an image, uint8 ``[height, width, 3]``.

    Raises:
        ExportError: the file cannot be read.
    """
    try:
        return load_image(file)
    except (ImageError, MissingDependencyError) as error:
        raise ExportError(
            f"cannot calibrate with {file}: {error}; repair the file or remove it from the folder"
        ) from error
