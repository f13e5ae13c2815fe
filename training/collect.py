"""Build the drawings, typefaces and words of the scenes from public packages.

`python -m training.collect FOLDER` downloads pinned packages with `npm pack` and Debian's word list with
`apt-get download`, and writes the files of `edgevlm/scenes/data`. The result is in the repository, so
nobody needs to run this. It needs npm, dpkg, and `pip install resvg-py fonttools brotli`.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from PIL import Image

DATA = Path(__file__).parent.parent / "edgevlm" / "scenes" / "data"
SIDE = 128  # longer side of a stored drawing, in pixels

EMOJI = {
    "emojione": "1.2.3",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "fxemoji": "1.2.2",
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "openmoji": "1.2.29",
    "streamline-emojis": "1.2.4",
    "twemoji": "1.2.5",
}
EMOJI_NAMES = "unicode-emoji-json@0.9.0"
# Families under the SIL Open Font License without a reserved font name, or under Apache 2.0.
TYPEFACES = [
    "anton",
    "archivo",
    "arvo",
    "baloo-2",
    "barlow",
    "bebas-neue",
    "bitter",
    "cabin",
    "caveat",
    "comic-neue",
    "courier-prime",
    "crimson-text",
    "dosis",
    "exo-2",
    "fira-sans",
    "fredoka",
    "ibm-plex-mono",
    "inconsolata",
    "inter",
    "karla",
    "montserrat",
    "noto-sans",
    "noto-serif",
    "nunito",
    "open-sans",
    "oswald",
    "overpass",
    "pacifico",
    "patrick-hand",
    "pt-sans",
    "pt-serif",
    "roboto",
    "roboto-slab",
    "rubik",
    "source-code-pro",
    "special-elite",
    "titillium-web",
    "work-sans",
    "zilla-slab",
]
BOLD = [
    "ibm-plex-mono",
    "montserrat",
    "noto-serif",
    "nunito",
    "open-sans",
    "oswald",
    "roboto",
    "roboto-slab",
]
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
WORD_LIST = "wamerican-small"
_RUDE = re.compile(
    "^(ass|arse|crap|damn|hell|sex|rape|(shit|fuck|cunt|piss|cock|dick|slut|whore|bitch|bastard|fag|"
    "rapist|sexy|porn|penis|vagina|anal|anus|boob|nazi).{0,3})$"
)


def _npm(package: str, scratch: Path) -> Path:
    """Download and unpack an npm package; return its folder."""
    done = subprocess.run(
        ["npm", "pack", "--silent", package],
        cwd=scratch,
        check=True,
        capture_output=True,
        text=True,
    )
    archive = scratch / done.stdout.split()[-1]
    folder = scratch / archive.stem
    shutil.unpack_archive(archive, folder)
    return folder / "package"


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


class EmojiSet:
    """One set of vector drawings in Iconify's JSON format."""

    def __init__(self, folder: Path) -> None:
        self._icons: dict[str, Any] = json.loads((folder / "icons.json").read_text())
        chars = folder / "chars.json"
        self.by_code: dict[str, str] = json.loads(chars.read_text()) if chars.exists() else {}

    def find(self, codes: list[str], names: set[str]) -> str | None:
        """Return the icon for a code point, or by name if the set has no code points."""
        for code in codes:
            if code in self.by_code:
                return self.by_code[code]
        known = [*self._icons["icons"], *self._icons.get("aliases", {})]
        return next((name for name in known if _plain(name) in names), None)

    def svg(self, name: str) -> str:
        while name not in self._icons["icons"]:
            name = self._icons["aliases"][name]["parent"]
        icon = (
            {"left": 0, "top": 0, "width": 16, "height": 16}
            | {key: value for key, value in self._icons.items() if isinstance(value, int)}
            | self._icons["icons"][name]
        )
        box = f"{icon['left']} {icon['top']} {icon['width']} {icon['height']}"
        body = icon["body"].replace("currentColor", "#000")
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{box}" width="256" height="256">{body}</svg>'
        )


def _drawing(svg: str) -> bytes:
    """Return the drawing, cropped to its visible part, as WebP."""
    import resvg_py

    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    box = image.getchannel("A").point(lambda alpha: 255 * (alpha > 16)).getbbox()
    image = image.crop(box)
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    file = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(file, "WEBP", quality=82, method=6)
    return file.getvalue()


def _write(archive: zipfile.ZipFile, name: str, content: bytes, how: int) -> None:
    entry = zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0))
    entry.compress_type = how
    archive.writestr(entry, content)


def collect_drawings(folder: Path, scratch: Path) -> None:
    sets = {
        style: EmojiSet(_npm(f"@iconify-json/{style}@{version}", scratch))
        for style, version in EMOJI.items()
    }
    table = _npm(EMOJI_NAMES, scratch) / "data-by-emoji.json"
    slugs = {k.replace("\ufe0f", ""): v["slug"] for k, v in json.loads(table.read_text()).items()}
    folder.mkdir(parents=True, exist_ok=True)
    with open(DATA / "things.csv", encoding="utf-8", newline="") as file:
        things = [(row["name"], row["emoji"]) for row in csv.DictReader(file)]
    for style, emoji_set in sets.items():
        with zipfile.ZipFile(folder / f"{style}.zip", "w") as archive:
            for name, emoji in things:
                code = "-".join(f"{ord(c):x}" for c in emoji)
                codes = [code, f"{code}-fe0f"]
                named = {s.by_code[c] for s in sets.values() for c in codes if c in s.by_code}
                names = {_plain(n) for n in (*named, name, slugs[emoji])}
                found = emoji_set.find(codes, names)
                if found is not None:
                    svg = emoji_set.svg(found)
                    _write(archive, f"{name}.webp", _drawing(svg), zipfile.ZIP_STORED)


def collect_typefaces(file: Path, scratch: Path) -> None:
    from fontTools import subset

    with zipfile.ZipFile(file, "w") as archive:
        for family in TYPEFACES:
            folder = _npm(f"@fontsource/{family}", scratch)
            for weight in (400, 700) if family in BOLD else (400,):
                options = subset.Options(
                    hinting=False,
                    layout_features=["kern"],
                    name_IDs=[1, 2, 13, 14],
                    notdef_outline=True,
                    glyph_names=False,
                )
                source = folder / "files" / f"{family}-latin-{weight}-normal.woff2"
                font = subset.load_font(str(source), options)
                subsetter = subset.Subsetter(options)
                subsetter.populate(text=GLYPHS)
                subsetter.subset(font)
                font.flavor = None
                out = io.BytesIO()
                font.save(out)
                _write(archive, f"{family}-{weight}.ttf", out.getvalue(), zipfile.ZIP_DEFLATED)
            licence = (folder / "LICENSE").read_bytes()
            _write(archive, f"licences/{family}.txt", licence, zipfile.ZIP_DEFLATED)


def collect_words(file: Path, scratch: Path) -> None:
    """Write the words of 2 to 8 letters, without inflected and rude ones."""
    subprocess.run(["apt-get", "download", WORD_LIST], cwd=scratch, check=True)
    subprocess.run(
        ["dpkg", "-x", str(next(scratch.glob("*.deb"))), str(scratch / "words")], check=True
    )
    text = (scratch / "words/usr/share/dict/american-english-small").read_text(encoding="utf-8")
    known = {w.lower() for w in text.split() if re.fullmatch("[A-Za-z]{2,8}", w)}

    def inflected(word: str) -> bool:
        for ending, stems in (("s", ("",)), ("ed", ("", "e")), ("ing", ("", "e"))):
            stem = word.removesuffix(ending)
            if stem != word and any(stem + end in known for end in stems):
                return True
        return False

    kept = [w for w in sorted(known) if re.search("[aeiouy]", w)]
    kept = [w for w in kept if not inflected(w) and not _RUDE.match(w)]
    file.write_text("\n".join(kept) + "\n", encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as scratch:
        collect_drawings(folder / "drawings", Path(scratch))
        collect_typefaces(folder / "typefaces.zip", Path(scratch))
        collect_words(folder / "words.txt", Path(scratch))


if __name__ == "__main__":
    main()
