"""Test items, and the file that holds them: one JSON object per line.

::

    {"row": "colors", "images": ["a.png"], "turns": ["What color is it?"], "answers": ["red"]}

``images`` (paths relative to the file, file URLs or data URIs; may be left out) come before the first
of ``turns``, which are the user's messages; the model's own answers lie between them, and the one to
the last is judged by ``judge`` ("words" if left out, see `edgevlm.evaluation.metrics`) against
``answers``. Lines of one ``row`` ("all" if left out) are reported together. Chance is computed for each
``family`` (the row if left out), and is at least ``chance``: how often one is right who only reads the
question (0 if left out, 0.5 where it offers two answers). Not covered: system messages, pictures in
later turns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from edgevlm.errors import InputError
from edgevlm.evaluation import metrics
from edgevlm.inputs.data_uri import shorten
from edgevlm.inputs.image_sources import is_url
from edgevlm.inputs.images import load_image

FILE_NAME = "questions.jsonl"

_FIELDS = ("row", "images", "turns", "answers", "judge", "family", "chance")


@dataclass(frozen=True)
class Picture:
    """A picture that is read or drawn when it is needed; one name stands for one picture."""

    name: str
    open: Callable[[], Image.Image]


@dataclass(frozen=True)
class Item:
    """One question, perhaps after others, with what is right; the fields are those of the file."""

    row: str
    pictures: tuple[Picture, ...]
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    judge: str
    family: str
    chance: float = 0.0


def read(path: str | os.PathLike[str]) -> list[Item]:
    """All items of a file, in its order.

    Raises:
        InputError: no such file, no items in it, or a line that is no item; names line and field.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the questions in {path}: {error}") from error
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                items.append(_parse(json.loads(line), path.parent))
            except (ValueError, RecursionError) as error:
                raise InputError(f"{path}, line {number}: {error}") from error
    if not items:
        raise InputError(f"{path} has no questions; each line is a JSON object with one")
    return items


def _parse(data: Any, folder: Path) -> Item:
    """Raises ValueError that names the field."""
    if not isinstance(data, dict):
        raise ValueError(f"must be a JSON object, is {data!r}")
    for name in data:
        if name not in _FIELDS:
            raise ValueError(f"{name}: unknown field; there are {', '.join(_FIELDS)}")
    row = _text(data, "row", "all")
    judge = _text(data, "judge", "words")
    if judge not in metrics.JUDGES:
        raise ValueError(f"judge: must be one of {', '.join(metrics.JUDGES)}, is {judge!r}")
    answers = _texts(data, "answers")
    for answer in answers:
        if metrics.score(judge, answer, [answer]) != 1:
            raise ValueError(f"answers: {answer!r} is nothing that the judge {judge!r} can compare")
    pictures = []
    for name in _texts(data, "images") if data.get("images", []) != [] else ():
        source = name if is_url(name) else os.path.join(folder, name)
        if not is_url(name) and not os.path.isfile(source):
            raise ValueError(f"images: no picture at {shorten(source)}")
        pictures.append(Picture(name, partial(_load, source)))
    turns, family = _texts(data, "turns"), _text(data, "family", row)
    chance = data.get("chance", 0.0)
    if not isinstance(chance, int | float) or not 0 <= chance <= 1:
        raise ValueError(f"chance: must be a number from 0 to 1, is {chance!r}")
    return Item(row, tuple(pictures), turns, answers, judge, family, float(chance))


def _text(data: dict[str, Any], field: str, default: str) -> str:
    value = data.get(field, default)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: must be a text that is not empty, is {value!r}")
    return value


def _texts(data: dict[str, Any], field: str) -> tuple[str, ...]:
    if field not in data:
        raise ValueError(f"{field}: missing")
    value = data[field]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field}: must be a list of one or more texts, is {value!r}")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{field}: must hold texts that are not empty, holds {text!r}")
    return tuple(value)


def _load(source: str) -> Image.Image:
    return Image.fromarray(load_image(source))


def fields_of(item: Item) -> dict[str, Any]:
    """An item as a line of a question file has it."""
    return {
        "row": item.row,
        "images": [picture.name for picture in item.pictures],
        "turns": item.turns,
        "answers": item.answers,
        "judge": item.judge,
        "family": item.family,
        "chance": item.chance,
    }


def write(folder: str | os.PathLike[str], items: Iterable[Item]) -> int:
    """Write ``questions.jsonl`` and every picture as PNG under its name; returns how many items.

    Raises:
        InputError: the folder is there and not empty, or cannot be written.
    """
    folder = Path(folder)
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a folder that does not exist yet")
        with open(folder / FILE_NAME, "w", encoding="utf-8") as file:
            for item in items:
                for picture in item.pictures:
                    target = folder / picture.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    picture.open().save(target, "PNG")
                file.write(json.dumps(fields_of(item), ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise InputError(f"cannot write the questions to {folder}: {error}") from error
    return count
