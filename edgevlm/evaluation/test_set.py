"""The test set: the same generated items every time, from a seed that training never uses.

Covered: a row for every skill in every language, and rows for what training never showed: a style
of drawing, typefaces, phrasings; words to be read are always such that training never showed. Not
covered: photographs, and questions about anything that the scenes lack. Pictures are drawn when
they are opened, so that a large set fits into memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from edgevlm.errors import InputError
from edgevlm.evaluation.dataset import Item, Picture
from edgevlm.scenes import composition, drawings, pairs, questions

SEED = 7_700_000
"""Training draws from sequences of small numbers instead."""

SIDES = (160, 640)

_REFUSALS = ("There is no ", "There are no ", "Здесь нет ")


@dataclass(frozen=True)
class Row:
    """What is asked about which scenes; several skills take turns."""

    name: str
    skills: tuple[str, ...]
    language: str = "en"
    unseen_phrasing: bool = False
    scene_options: dict[str, Any] = field(default_factory=dict)


def _rows() -> Iterator[Row]:
    unseen_words = {"unseen_words": True}
    for language in questions.LANGUAGES:
        ending = "" if language == "en" else f" ({language})"
        for skill in questions.SKILLS:
            options = unseen_words if skill == "read" else {}
            yield Row(skill + ending, (skill,), language, scene_options=options)
    style = {"styles": (drawings.UNSEEN_STYLE,), "shapes": 0.0}
    yield Row("name, style never trained on", ("name",), scene_options=style)
    typefaces = unseen_words | {"typefaces": drawings.UNSEEN_TYPEFACES}
    yield Row("read, typefaces never trained on", ("read",), scene_options=typefaces)
    one_picture = tuple(skill for skill in questions.SKILLS if skill != "two_pictures")
    yield Row("phrasings never trained on", one_picture, unseen_phrasing=True)


ROWS = tuple(_rows())


def items(per_row: int, seed: int = SEED) -> Iterator[Item]:
    """`per_row` items of each row, each about pictures of its own.

    A smaller `per_row` gives the first items of a larger one.

    Raises:
        InputError: `per_row` is not positive.
    """
    if per_row < 1:
        raise InputError(f"there must be one or more items in a row, not {per_row}")
    for number, row in enumerate(ROWS):
        for index in range(per_row):
            yield _item(row, index, np.random.default_rng([seed, number, index]))


def _item(row: Row, index: int, rng: np.random.Generator) -> Item:
    skill = row.skills[index % len(row.skills)]
    wording: dict[str, Any] = {"language": row.language, "unseen_phrasing": row.unseen_phrasing}
    options = {"sides": SIDES, **row.scene_options}
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
    folder = re.sub(r"[^a-z]+", "-", row.name).strip("-")
    pictures = tuple(
        Picture(f"{folder}/{index:04}{letter}.png", partial(composition.draw, scene))
        for letter, scene in zip("ab" if len(shown) > 1 else ("",), shown, strict=True)
    )
    return Item(
        row=row.name,
        pictures=pictures,
        turns=tuple(turn.text for turn in question.turns),
        answers=question.accepted,
        judge=question.judge,
        family=question.family,
        chance=_chance(question),
    )


def _chance(question: questions.Question) -> float:
    """How often one is right who repeats words of the question, which no fixed answer does."""
    if question.skill == "refuse":  # by saying each time that it is not there
        return float(question.accepted[0].startswith(_REFUSALS))
    return 0.5 if question.family == "attribute/size" else 0.0
