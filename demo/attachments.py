"""Images that a person adds to a question: checked before it is sent, and converted for browsers.

The page shows what the model sees: of an animation the first frame, upright, without transparency.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from edgevlm.demo.gradio_setup import gr, notify
from edgevlm.demo.language import translate
from edgevlm.errors import ImageError
from edgevlm.inputs.data_uri import shorten
from edgevlm.inputs.images import load_image

_BROWSER_FORMATS = ("JPEG", "MPO", "PNG", "WEBP")
"""Formats that every browser shows, by Pillow's names. MPO: a JPEG with more images after it."""
_ORIENTATION = 0x0112
"""Tag of EXIF."""
_MAX_NAME_LENGTH = 60


@dataclass(frozen=True)
class Attachment:
    """An image that the model can read."""

    path: str
    """Path of a file that browsers show as the model sees it."""
    frames: int
    """Number of frames of the original file; the model sees the first one."""


def read(paths: Sequence[str]) -> list[Attachment]:
    """Read the images of a question.

    Raises:
        ImageError: an image cannot be read or is too large; the message has a line for each such image.
    """
    found: list[Attachment] = []
    problems: list[str] = []
    for path in paths:
        try:
            found.append(_read(path))
        except ImageError as error:
            # The message has Gradio's path, which is long and therefore shortened.
            problems.append(str(error).replace(shorten(path), Path(path).name))
    if problems:
        raise ImageError("\n".join(problems))
    return found


def _read(path: str) -> Attachment:
    pixels = load_image(path)
    unchanged, frames = _inspect(path)
    shown = path if unchanged else save_png(Image.fromarray(pixels), Path(path).stem)
    return Attachment(shown, frames)


def notify_frames(attachment: Attachment, name: str, request: gr.Request) -> None:
    """Show a notice if the model sees only the first of several frames.

    Args:
        attachment: the image.
        name: name of its file.
        request: the page's request, for its language.
    """
    if attachment.frames > 1:
        notify(
            translate(
                request,
                "{name} has {count} frames or pages. The model sees the first one.",
                name=name,
                count=attachment.frames,
            )
        )


def save_png(image: Image.Image, name: str) -> str:
    """Write an image into a new file that Gradio may serve. Return its path.

    Raises:
        ImageError: the file cannot be written.
    """
    path = Path(gr.utils.get_upload_folder()) / uuid.uuid4().hex / f"{name[:_MAX_NAME_LENGTH]}.png"
    try:
        path.parent.mkdir(parents=True)
        image.save(path, compress_level=1)
    except OSError as error:
        raise ImageError(f"{path.name} cannot be written: {error}") from error
    return str(path)


def _inspect(path: str) -> tuple[bool, int]:
    """Return True if browsers show the file as the model sees it, and the number of its frames."""
    try:
        with Image.open(path) as image:
            kind = image.format
            frames = 1 if kind == "MPO" else getattr(image, "n_frames", 1)
            plain = image.mode in ("L", "RGB") and "transparency" not in image.info
            # All browsers read the orientation of JPEG files only.
            upright = kind in ("JPEG", "MPO") or image.getexif().get(_ORIENTATION, 1) == 1
            return kind in _BROWSER_FORMATS and plain and upright and frames == 1, frames
    except Exception:  # HEIC, or a file that is read without its broken metadata
        return False, 1
