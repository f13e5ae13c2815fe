"""Choices for questions about scenes: the right answer and wrong ones of the same kind.

Wrong choices are hard where they can be: other things of the scene, similar things that are absent, words of
the same length.
"""

from __future__ import annotations

import numpy as np

from edgevlm.scenes.composition import Scene
from edgevlm.scenes.drawings import SHAPES, words
from edgevlm.scenes.questions import Question
from edgevlm.scenes.view import COLOR_NAMES, CORNERS, View
from edgevlm.scenes.wording import WORDINGS

_COUNTS = 10  # 0 to 9; no scene has more things of one kind or color
_THINGS = 6  # choices of a question for a thing or for a printed text
_SIMILAR_WORDS = 20  # the most similar words, of which the wrong choices are drawn
_TERMS = {
    "attribute/filled": ("filled", "outlined"),
    "relation/corner": CORNERS,
    "relation/left_right": ("left", "right"),
    "relation/above_below": ("above", "below"),
    "yes_no/exists": ("yes", "no"),
    "yes_no/color": ("yes", "no"),
    "yes_no/relation": ("yes", "no"),
}
_ASK_FOR_THING = (
    "name/shape",
    "name/drawing",
    "relation/at",
    "relation/beside",
    "relation/inside",
    "relation/nearest",
)


def choices(question: Question, scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """Return choices for a question of one turn about one scene, in random order.

    One of them is the right answer, as the scene's wording writes it first.

    Args:
        question: the question.
        scene: the scene that the question is about.
        rng: source of randomness.

    Returns:
        The choices; none if the question is of another type, such as one that asks for a box.
    """
    right, kind = question.accepted[0], question.question_type
    wording = WORDINGS[question.language]
    if kind in _TERMS:
        found = [wording.terms[term] for term in _TERMS[kind]]
    elif kind == "attribute/color":
        found = [wording.color_answers(color)[0] for color in COLOR_NAMES]
    elif kind == "attribute/shape":
        found = [wording.bare(shape) for shape in SHAPES]
    elif kind.startswith("count/"):
        found = [str(count) for count in range(_COUNTS)]
    elif kind in _ASK_FOR_THING:
        found = _things(question, scene, rng)
    elif kind.startswith("read/"):
        found = _texts(right.strip('"'), rng)
    else:
        return ()
    order = rng.permutation(len(found)).tolist()
    return tuple(found[index] for index in order)


def _things(question: Question, scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return the right thing, the other things of the scene, and things that are absent."""
    view = View(scene, rng, question.language, False)
    there = (view.wording.a(thing.name, thing.color) for thing in view.things)
    found = list(dict.fromkeys((question.accepted[0], *there)))[:_THINGS]
    while len(found) < _THINGS:
        reference = view.absent_reference()
        if reference is not None:
            text = view.wording.a(*reference)
            if text not in found:
                found.append(text)
    return found


def _texts(right: str, rng: np.random.Generator) -> list[str]:
    """Return a printed text and others of its length, in double quotes."""
    others: list[str] = []
    if right.isdigit():
        while len(others) < _THINGS - 1:
            digits = list(right)
            digits[int(rng.integers(len(digits)))] = str(rng.integers(10))
            if (text := "".join(digits)) != right and text not in others:
                others.append(text)
    else:
        same_length = [word for word in words(unseen=True) if len(word) == len(right)]
        similar = sorted(
            (word for word in same_length if word != right.lower()),
            key=lambda word: sum(a != b for a, b in zip(word, right.lower(), strict=True)),
        )[:_SIMILAR_WORDS]
        drawn = rng.choice(len(similar), _THINGS - 1, replace=False).tolist()
        style = str.upper if right.isupper() else str.capitalize if right.istitle() else str.lower
        others = [style(similar[index]) for index in drawn]
    return [f'"{text}"' for text in (right, *others)]
