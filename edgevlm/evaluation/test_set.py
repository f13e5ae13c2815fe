"""The built-in test set: always the same generated items, from a seed that training never uses.

It has one task for each skill in each language. Three more tasks show what training never showed: a
style of drawing, typefaces, and phrasings. All words to read are unseen in training, too. The test set
has no photographs. An item of one turn has choices if there are wrong answers of the same kind. An image is
drawn when it is loaded, so that a large set fits into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from edgevlm.errors import InputError
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.scenes import composition, drawings, pairs, questions
from edgevlm.scenes.choices import choices as make_choices

SEED = 7_700_000
"""Seed of the test set. The seeds of training are sequences of small numbers."""

SIDES = (160, 640)
"""Smallest and largest side of an image, in pixels."""

_REFUSALS = ("There is no ", "There are no ", "Здесь нет ")


@dataclass(frozen=True)
class Task:
    """The skills of a task, which take turns, and the options of its scenes."""

    name: str
    skills: tuple[str, ...]
    language: str = "en"
    unseen_phrasing: bool = False
    scene_options: dict[str, Any] = field(default_factory=dict)


def _tasks() -> Iterator[Task]:
    unseen_words = {"unseen_words": True}
    for language in questions.LANGUAGES:
        ending = "" if language == "en" else f" ({language})"
        for skill in questions.SKILLS:
            options = unseen_words if skill == "read" else {}
            yield Task(skill + ending, (skill,), language, scene_options=options)
    style = {"styles": (drawings.UNSEEN_STYLE,), "shapes": 0.0}
    yield Task("name, style never trained on", ("name",), scene_options=style)
    typefaces = unseen_words | {"typefaces": drawings.UNSEEN_TYPEFACES}
    yield Task("read, typefaces never trained on", ("read",), scene_options=typefaces)
    one_image = tuple(skill for skill in questions.SKILLS if skill != "two_pictures")
    yield Task("phrasings never trained on", one_image, unseen_phrasing=True)


TASKS = tuple(_tasks())


def items(per_task: int, seed: int = SEED) -> Iterator[Item]:
    """Yield `per_task` items of each task, each about its own images.

    A smaller `per_task` gives the first items of a larger one.

    Raises:
        InputError: `per_task` is not positive.
    """
    if per_task < 1:
        raise InputError(f"items per task must be 1 or more, is {per_task}")
    for number, task in enumerate(TASKS):
        for index in range(per_task):
            yield _item(task, index, (seed, number, index))


def _item(task: Task, index: int, seed: tuple[int, ...]) -> Item:
    rng = np.random.default_rng(seed)
    skill = task.skills[index % len(task.skills)]
    wording: dict[str, Any] = {"language": task.language, "unseen_phrasing": task.unseen_phrasing}
    options = {"sides": SIDES, **task.scene_options}
    question: questions.Question | None = None
    for _ in range(10_000):
        if skill == "two_pictures":
            pair = pairs.sample_pair(rng, **options)
            shown = [pair.first, pair.second]
            question = questions.ask_pair(pair, rng, **wording)
        else:
            layouts = questions.LAYOUTS_FOR[skill]
            scene = composition.sample(rng, layouts[int(rng.integers(len(layouts)))], **options)
            shown = [scene]
            question = questions.ask(skill, scene, rng, **wording)
        if question is not None:
            break
    else:
        raise RuntimeError(f"no scene allows a question of the skill {skill!r}")
    folder = re.sub(r"[^a-z]+", "-", task.name).strip("-")
    images = tuple(
        LazyImage(f"{folder}/{index:04}{letter}.png", partial(composition.draw, scene))
        for letter, scene in zip("ab" if len(shown) > 1 else ("",), shown, strict=True)
    )
    # a generator of their own, so that an item is the same with choices and without
    choices = make_choices(question, shown[0], np.random.default_rng((*seed, 1)))
    return Item(
        task=task.name,
        images=images,
        turns=tuple(turn.question for turn in question.turns),
        answers=question.accepted,
        metric=question.metric,
        question_type=question.question_type,
        chance=_chance(question),
        choices=choices,
    )


def _chance(question: questions.Question) -> float:
    """Return the score of an answer that only repeats words of the question; no fixed answer does so."""
    if question.skill == "refuse":  # the answer "there is no ..." each time
        return float(question.accepted[0].startswith(_REFUSALS))
    return 0.5 if question.question_type == "attribute/size" else 0.0
