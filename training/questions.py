"""Questions about a scene, in many phrasings, with the one right answer to each.

Covered: the colour or the kind of the shape in a quarter (asked only when exactly one shape is
clearly there), the number of shapes, whether some shape is there (as often yes as no, with near
misses), and a list of everything; and how an answer is judged. Not covered: sizes, relations
between shapes, numbers of one kind, grounds.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.scenes import COLORS, KINDS, QUARTERS, Scene, Shape

TYPES = ("color_at", "shape_at", "count", "exists", "describe")

_CLEAR = 0.06  # a centre is clearly in a quarter if it is this far from the middle lines


@dataclass(frozen=True)
class Question:
    type: str
    text: str
    answer: str


PHRASINGS: dict[str, tuple[str, ...]] = {
    "color_at": (
        "What color is the shape at the {place}?",
        "What colour is the shape at the {place}?",
        "What color is the shape in the {place}?",
        "Which color does the shape at the {place} have?",
        "What is the color of the shape at the {place}?",
        "What's the colour of the shape in the {place}?",
        "Tell me the color of the shape at the {place}.",
        "At the {place}, what color is the shape?",
        "Name the color of the shape in the {place}.",
        "The shape at the {place} has which color?",
        "Color of the shape at the {place}?",
        "What color is the {place} shape?",
        "What color do you see at the {place}?",
    ),
    "shape_at": (
        "What shape is at the {place}?",
        "Which shape is at the {place}?",
        "What shape is in the {place}?",
        "What shape do you see at the {place}?",
        "What kind of shape is at the {place}?",
        "What is the shape at the {place}?",
        "What's the shape in the {place}?",
        "Name the shape at the {place}.",
        "Tell me which shape is in the {place}.",
        "At the {place}, what shape is there?",
        "Shape at the {place}?",
        "What shape is the object at the {place}?",
        "Which shape can be seen in the {place}?",
    ),
    "count": (
        "How many shapes are there?",
        "How many shapes are in the picture?",
        "How many shapes do you see?",
        "How many shapes are in this image?",
        "How many shapes can you see in the picture?",
        "What is the number of shapes?",
        "Count the shapes.",
        "Count the shapes in the image.",
        "How many objects are there?",
        "How many objects are in the picture?",
        "Tell me how many shapes there are.",
        "Number of shapes?",
        "How many things are there?",
        "How many shapes does the picture show?",
    ),
    "exists": (
        "Is there {a} {what}?",
        "Is there {a} {what} in the picture?",
        "Is there {a} {what} in the image?",
        "Is there {a} {what} here?",
        "Do you see {a} {what}?",
        "Can you see {a} {what}?",
        "Can you see {a} {what} in the picture?",
        "Does the picture show {a} {what}?",
        "Does the image contain {a} {what}?",
        "Does this picture have {a} {what}?",
        "Is {a} {what} in the picture?",
        "Is {a} {what} there?",
        "Any {what} here?",
    ),
    "describe": (
        "What is in the picture?",
        "What is in the image?",
        "What's in the picture?",
        "What is in this picture?",
        "What do you see?",
        "What can you see in the picture?",
        "What does the picture show?",
        "What does this image show?",
        "What shapes are in the picture?",
        "Which shapes are there?",
        "Describe the picture.",
        "Describe this image.",
        "Describe what you see.",
        "List the shapes.",
        "List all the shapes in the picture.",
        "Describe it.",
    ),
    "only_color": (
        "What color is the shape?",
        "What colour is the shape?",
        "What color is it?",
        "What is the color of the shape?",
        "Which color does the shape have?",
        "What color is the shape in the picture?",
    ),
    "only_shape": (
        "What shape is this?",
        "What shape is it?",
        "Which shape is this?",
        "What shape is in the picture?",
        "What kind of shape is this?",
        "What shape do you see?",
    ),
}

PLACES: dict[str, tuple[str, ...]] = {
    "top left": (
        "top left", "top-left", "upper left", "top left corner", "upper left corner",
    ),
    "top right": (
        "top right", "top-right", "upper right", "top right corner", "upper right corner",
    ),
    "bottom left": (
        "bottom left", "bottom-left", "lower left", "bottom left corner", "lower left corner",
    ),
    "bottom right": (
        "bottom right", "bottom-right", "lower right", "bottom right corner", "lower right corner",
    ),
}  # fmt: skip

_ENDINGS = (" Answer with one word.", " Answer briefly.", " One word, please.")


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def describe(scene: Scene, moved: NDArray[np.float64] | None = None) -> str:
    """Every shape, by quarter, then from left to right: "a red circle and a blue star".

    `moved`, [shapes, 2], is added to the centres (as fractions) before they are put in order.
    """
    moved = np.zeros((len(scene.shapes), 2)) if moved is None else moved

    def order(index: int) -> tuple[bool, bool, float]:
        x, y = np.array(scene.place(scene.shapes[index])) + moved[index]
        return bool(y >= 0.5), bool(x >= 0.5), float(x)

    shapes = [scene.shapes[i] for i in sorted(range(len(scene.shapes)), key=order)]
    names = [f"{article(s.color)} {s.name}" for s in shapes]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def clear_quarters(scene: Scene) -> dict[str, Shape]:
    """The quarters that hold exactly one shape, beyond doubt."""
    found: dict[str, list[Shape]] = {quarter: [] for quarter in QUARTERS}
    doubtful: set[str] = set()
    for shape in scene.shapes:
        x, y = scene.place(shape)
        xs = [0, 1] if abs(x - 0.5) < _CLEAR else [int(x > 0.5)]
        ys = [0, 1] if abs(y - 0.5) < _CLEAR else [int(y > 0.5)]
        touched = [QUARTERS[2 * j + i] for i in xs for j in ys]
        if len(touched) > 1:
            doubtful.update(touched)
        else:
            found[touched[0]].append(shape)
    return {q: s[0] for q, s in found.items() if len(s) == 1 and q not in doubtful}


def _vary(text: str, rng: np.random.Generator) -> str:
    """The same words as people also type them: in lower case, without the mark at the end ..."""
    if rng.random() < 0.15:
        text = text[0].lower() + text[1:]
    if rng.random() < 0.15:
        text = text[:-1]
    if rng.random() < 0.05 and text[-1] in "?.":
        text = text[:-1] + ", please" + text[-1]
    return text


def _phrase(kind: str, rng: np.random.Generator, **words: str) -> str:
    phrasings = PHRASINGS[kind]
    # The first phrasing is the one that examples show, so it comes more often than the others.
    chosen = phrasings[0] if rng.random() < 0.2 else str(rng.choice(phrasings))
    text = _vary(chosen.format(**words), rng)
    if kind != "describe" and rng.random() < 0.05:
        text = text.rstrip("?.") + "?" + str(rng.choice(_ENDINGS))
    return text


def _about_place(type_: str, scene: Scene, rng: np.random.Generator) -> Question | None:
    attribute = "color" if type_ == "color_at" else "kind"
    if len(scene.shapes) == 1 and rng.random() < 0.15:
        only = "only_color" if type_ == "color_at" else "only_shape"
        return Question(type_, _phrase(only, rng), getattr(scene.shapes[0], attribute))
    quarters = clear_quarters(scene)
    if not quarters:
        return None
    quarter = str(rng.choice(list(quarters)))
    places = PLACES[quarter]
    place = places[0] if rng.random() < 0.5 else str(rng.choice(places))
    answer: str = getattr(quarters[quarter], attribute)
    return Question(type_, _phrase(type_, rng, place=place), answer)


def _missing(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A colour and a kind that do not stand together, mostly with one of them in the picture."""
    there = {(s.color, s.kind) for s in scene.shapes}
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    how = rng.random()
    while True:
        color, kind = str(rng.choice(list(COLORS))), str(rng.choice(KINDS))
        if how < 0.4:
            color = shape.color
        elif how < 0.8:
            kind = shape.kind
        if (color, kind) not in there:
            return color, kind


def _about_existence(scene: Scene, rng: np.random.Generator) -> Question:
    yes = rng.random() < 0.5
    shape = scene.shapes[int(rng.integers(len(scene.shapes)))]
    color, kind = shape.color, shape.kind
    kinds = {s.kind for s in scene.shapes}
    if rng.random() < 0.2:
        others = [k for k in KINDS if k not in kinds]
        kind = kind if yes else str(rng.choice(others))
        what = kind
    else:
        if not yes:
            color, kind = _missing(scene, rng)
        what = f"{color} {kind}"
    text = _phrase("exists", rng, a=article(what), what=what)
    return Question("exists", text, "yes" if yes else "no")


def ask(type_: str, scene: Scene, rng: np.random.Generator, blur: float = 0.0) -> Question | None:
    """A question of this type about the scene, or None where the scene allows none.

    With `blur`, a list is in the order that one sees who misjudges centres by up to that fraction of
    the picture: where the order is hard to see, a model then learns either, and to go on with
    whatever it has not said yet.
    """
    if type_ in ("color_at", "shape_at"):
        return _about_place(type_, scene, rng)
    if type_ == "exists":
        return _about_existence(scene, rng)
    if type_ == "count":
        return Question(type_, _phrase("count", rng), str(len(scene.shapes)))
    if type_ == "describe":
        text = _phrase("describe", rng)
        moved = rng.uniform(-blur, blur, (len(scene.shapes), 2)) if blur else None
        return Question(type_, text, describe(scene, moved))
    raise ValueError(f"unknown question type {type_!r}")


def listed(answer: str) -> Counter[tuple[str, str]]:
    """The colours and shapes that a description names."""
    pattern = rf"\b({'|'.join(COLORS)}) ({'|'.join(KINDS)})\b"
    return Counter((m[1], m[2]) for m in re.finditer(pattern, answer.lower()))


def is_right(question: Question, answer: str) -> bool:
    """Whether the answer is right: the word itself, or for a list the same shapes in any order."""
    said, true = answer.strip().lower(), question.answer
    if question.type != "describe":
        return said.rstrip(".") == true
    said_names = re.split(r", | and ", said.rstrip("."))
    return listed(said) == listed(true) and len(said_names) == sum(listed(true).values())
