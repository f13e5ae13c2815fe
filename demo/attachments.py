"""Pictures that a person adds to a question: checked before it goes off, and made into what browsers show.

What is shown is what the model sees: of an animation the first frame, upright, without transparency.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.demo.gradio_setup import gr
from edgevlm.errors import ImageError
from edgevlm.inputs.data_uri import shorten
from edgevlm.inputs.images import load_image

_SHOWN = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats, as Pillow names them, that every browser shows; MPO is a JPEG with more behind it."""
_ORIENTATION = 0x0112
"""EXIF's tag."""
_NAME_LENGTH = 60


@dataclass(frozen=True)
class Attachment:
    """A picture that the model can see."""

    path: str
    """Of a file that a browser shows as the model sees it."""
    frames: int
    """Of the file as it came; the model sees the first."""


def checked(paths: Sequence[str]) -> list[Attachment]:
    """The pictures of a question.

    Raises:
        ImageError: at least one cannot be read or is too large; the message has a line for each.
    """
    found: list[Attachment] = []
    faults: list[str] = []
    for path in paths:
        try:
            found.append(_checked(path))
        except ImageError as error:
            # The library names a file by its path, which Gradio makes long, and cuts it.
            faults.append(str(error).replace(shorten(path), Path(path).name))
    if faults:
        raise ImageError("\n".join(faults))
    return found


def _checked(path: str) -> Attachment:
    pixels = load_image(path)
    shown, frames = _looked_at(path)
    return Attachment(path if shown else saved(Image.fromarray(pixels), Path(path).stem), frames)


def saved(image: Image.Image, name: str) -> str:
    """A new PNG, where Gradio may serve it from; returns its path.

    Raises:
        ImageError: it cannot be written.
    """
    path = Path(gr.utils.get_upload_folder()) / uuid.uuid4().hex / f"{name[:_NAME_LENGTH]}.png"
    try:
        path.parent.mkdir(parents=True)
        image.save(path, compress_level=1)
    except OSError as error:
        raise ImageError(f"{path.name} cannot be kept: {error}") from error
    return str(path)


def _looked_at(path: str) -> tuple[bool, int]:
    """Whether a browser shows the file just as the model sees it, and how many frames it has."""
    try:
        with Image.open(path) as image:
            kind = image.format
            frames = 1 if kind == "MPO" else getattr(image, "n_frames", 1)
            plain = image.mode in ("L", "RGB") and "transparency" not in image.info
            # Only of a JPEG does every browser read which side is up.
            upright = kind in ("JPEG", "MPO") or image.getexif().get(_ORIENTATION, 1) == 1
            return kind in _SHOWN and plain and upright and frames == 1, frames
    except Exception:  # HEIC, or a file that is read without its broken metadata
        return False, 1
