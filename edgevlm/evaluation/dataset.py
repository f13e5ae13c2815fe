"""Evaluation items and their file format: one JSON object in each line.

::

    {"task": "colors", "images": ["a.png"], "turns": ["What color is it?"], "answers": ["red"]}

- ``task``: name of the task. The report has one line for each task. Default: "all".
- ``images``: paths relative to the file, file URLs or data URIs. They come before the first turn.
  Default: no image.
- ``turns``: the user's messages. The answers between them are the model's own; the answer to the last
  message gets the score.
- ``answers``: the accepted answers; for the metric "vqa_accuracy" the answers of all people.
- ``metric``: name of the metric, see `edgevlm.evaluation.metrics`. Default: "exact".
- ``question_type``: chance is computed for each question type. Default: the task.
- ``chance``: the score of a model that only reads the question, at least. Use 0.5 for a question that
  offers two answers. Default: 0.
- ``choices``: at least two texts for `VLM.choose`, of which the metric scores one best: the right one. Only
  `edgevlm calibrate` uses them; `edgevlm eval` lets the model answer freely. Default: none.

System messages and images in later turns are not supported.
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

_FIELDS = ("task", "images", "turns", "answers", "metric", "question_type", "chance", "choices")


@dataclass(frozen=True)
class LazyImage:
    """An image that is read or drawn only when it is needed."""

    name: str
    """Identifies the image: images with the same name are the same image."""
    load: Callable[[], Image.Image]
    """Returns the RGB image."""


@dataclass(frozen=True)
class Item:
    """One conversation with the accepted answers to its last turn; see the module for the fields."""

    task: str
    images: tuple[LazyImage, ...]
    turns: tuple[str, ...]
    answers: tuple[str, ...]
    metric: str
    question_type: str
    chance: float = 0.0
    choices: tuple[str, ...] = ()

    def choice_scores(self) -> list[float]:
        """Return the score of each choice as an answer, 0 to 1."""
        return [metrics.score(self.metric, choice, self.answers) for choice in self.choices]


def read(path: str | os.PathLike[str]) -> list[Item]:
    """Return all items of a file, in the order of the lines.

    Raises:
        InputError: the file cannot be read, has no items, or has an invalid line. The message names
            the line and the field.
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
        raise InputError(f"{path} has no questions; write one JSON object in each line")
    return items


def _parse(data: Any, folder: Path) -> Item:
    """Return one item; a `ValueError` names the field that is invalid."""
    if not isinstance(data, dict):
        raise ValueError(f"must be a JSON object, is {data!r}")
    for name in data:
        if name not in _FIELDS:
            raise ValueError(f"{name}: unknown field; the fields are {', '.join(_FIELDS)}")
    task = _text(data, "task", "all")
    metric = _text(data, "metric", "exact")
    if metric not in metrics.METRICS:
        raise ValueError(f"metric: must be one of {', '.join(metrics.METRICS)}, is {metric!r}")
    answers = _texts(data, "answers")
    for answer in answers:
        if not metrics.score(metric, answer, answers):
            several = "; it needs the answers of several people" * (metric == "vqa_accuracy")
            raise ValueError(
                f"answers: the metric {metric!r} gives {answer!r} itself no score{several}"
            )
    images = []
    for name in _texts(data, "images") if data.get("images", []) != [] else ():
        source = name if is_url(name) else os.path.join(folder, name)
        if not is_url(name) and not os.path.isfile(source):
            raise ValueError(f"images: no image at {shorten(source)}")
        images.append(LazyImage(name, partial(_load, source)))
    turns, question_type = _texts(data, "turns"), _text(data, "question_type", task)
    chance = data.get("chance", 0.0)
    if not isinstance(chance, int | float) or not 0 <= chance <= 1:
        raise ValueError(f"chance: must be a number from 0 to 1, is {chance!r}")
    choices = _texts(data, "choices") if data.get("choices", []) != [] else ()
    item = Item(task, tuple(images), turns, answers, metric, question_type, float(chance), choices)
    if choices:
        _check_choices(item)
    return item


def _check_choices(item: Item) -> None:
    """Check that the model can choose, and that one choice is right; a `ValueError` says what is wrong."""
    if len({choice.strip() for choice in item.choices}) < max(2, len(item.choices)):
        raise ValueError(
            f"choices: must be at least two different strings, are {list(item.choices)!r}"
        )
    if len(item.turns) > 1:
        raise ValueError(f"choices: need a question of one turn, turns has {len(item.turns)}")
    scores = item.choice_scores()
    if max(scores) == 0 or scores.count(max(scores)) > 1:
        raise ValueError(
            f"choices: the metric {item.metric!r} must score one of them best, the scores of "
            f"{list(item.choices)!r} are {scores}"
        )


def _text(data: dict[str, Any], field: str, default: str) -> str:
    value = data.get(field, default)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{field}: must be a string that is not empty, is {value!r}")
    return value


def _texts(data: dict[str, Any], field: str) -> tuple[str, ...]:
    if field not in data:
        raise ValueError(f"{field}: missing")
    value = data[field]
    if not isinstance(value, list) or not value:
        raise ValueError(f"{field}: must be a list of one or more strings, is {value!r}")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{field}: must hold strings that are not empty, holds {text!r}")
    return tuple(value)


def _load(source: str) -> Image.Image:
    return Image.fromarray(load_image(source))


def to_json(item: Item) -> dict[str, Any]:
    """Return the JSON object of an item, as in a line of a question file."""
    return {
        "task": item.task,
        "images": [image.name for image in item.images],
        "turns": item.turns,
        "answers": item.answers,
        "metric": item.metric,
        "question_type": item.question_type,
        "chance": item.chance,
        "choices": item.choices,
    }


def write(folder: str | os.PathLike[str], items: Iterable[Item]) -> int:
    """Write ``questions.jsonl``, and each image as a PNG file under its name.

    Returns:
        The number of items.

    Raises:
        InputError: the folder exists and is not empty, or it cannot be written.
    """
    folder = Path(folder)
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputError(f"{folder} is not empty; name a folder that does not exist yet")
        with open(folder / FILE_NAME, "w", encoding="utf-8") as file:
            for item in items:
                for image in item.images:
                    target = folder / image.name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    image.load().save(target, "PNG")
                file.write(json.dumps(to_json(item), ensure_ascii=False) + "\n")
                count += 1
    except OSError as error:
        raise InputError(f"cannot write the questions to {folder}: {error}") from error
    return count
