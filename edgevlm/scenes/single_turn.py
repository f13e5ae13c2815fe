"""Questions of a single turn about one image, for each skill.

Each function returns a question and its answers, or None if the scene or the random choice allows none.
`multi_turn` has follow-up questions, refusals and pairs of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgevlm.scenes.composition import Thing, Word
from edgevlm.scenes.view import COLOR_NAMES, DIRECTIONS, MIN_SEPARATION, QuestionSpec, View

AskFunction = Callable[[View], QuestionSpec | None]

_MIN_AREA_RATIO, _MIN_DISTANCE_RATIO = 1.6, 1.5  # smallest ratios that one sees clearly
_MAX_COUNT = 6


def ask_first_possible(view: View, askers: tuple[AskFunction, ...]) -> QuestionSpec | None:
    """Try the functions in random order and return the first question that is possible."""
    for index in view.rng.permutation(len(askers)).tolist():
        found: QuestionSpec | None = askers[index](view)
        if found is not None:
            return found
    return None


def ask_name(view: View) -> QuestionSpec | None:
    """Ask what the only thing is."""
    if len(view.things) != 1 or view.scene.words:
        return None
    thing = view.things[0]
    question_type = "name/shape" if thing.color else "name/drawing"
    return view.question(question_type, "name", view.wording.name_answers(thing.name, thing.color))


def ask_color(view: View) -> QuestionSpec | None:
    """Ask for the color of a shape."""
    shapes = [thing for thing in view.things if thing.color]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    answers = view.wording.color_answers(thing.color)
    if len(view.things) == 1 and view.rng.random() < 0.6:
        return view.question("attribute/color", "color_it", answers)
    at = view.unique_position(thing)
    if at is not None and view.rng.random() < 0.3:
        return view.question("attribute/color", "color_at", answers, at=at)
    if len(shapes) == 1 and view.rng.random() < 0.15:
        name = "shape"
    elif sum(other.name == thing.name for other in shapes) == 1 and view.reference(thing):
        name = thing.name
    else:
        return None
    return view.question("attribute/color", "color", answers, **view.slots((name, None)))


def ask_shape(view: View) -> QuestionSpec | None:
    """Ask which shape a thing is."""
    shapes = [thing for thing in view.things if thing.color]
    colors = [thing.color for thing in shapes]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    named = view.wording.name_answers(thing.name)
    answers = tuple(dict.fromkeys((view.wording.bare(thing.name), *named)))
    if len(view.things) == 1 and view.rng.random() < 0.6:
        return view.question("attribute/shape", "shape_it", answers)
    at = view.unique_position(thing)
    if at is not None and view.rng.random() < 0.4:
        return view.question("attribute/shape", "shape_at", answers, at=at)
    if colors.count(thing.color) > 1:
        return None
    words = view.wording.color_slots(thing.color)
    return view.question("attribute/shape", "shape", answers, **words)


def ask_filled(view: View) -> QuestionSpec | None:
    """Ask if a shape is filled or outlined."""
    for thing, reference in view.referable():
        if thing.color:
            term = view.term("filled" if thing.filled else "outlined")
            if len(view.things) == 1 and view.rng.random() < 0.5:
                return view.question("attribute/filled", "filled_it", term)
            return view.question("attribute/filled", "filled", term, **view.slots(reference))
    return None


def ask_size(view: View) -> QuestionSpec | None:
    """Ask which of two things is larger."""
    known = view.referable()
    if len(known) < 2:
        return None
    areas = []
    for thing, _ in known[:2]:
        left, top, right, bottom = view.box(thing)
        areas.append((right - left) * (bottom - top))
    if max(areas) < _MIN_AREA_RATIO * min(areas):
        return None
    larger = known[int(areas[1] > areas[0])][1]
    one, two = (view.wording.the(*reference) for _, reference in known[:2])
    return view.question(
        "attribute/size", "size", view.wording.choice_answers(*larger), one=one, two=two
    )


def ask_attribute(view: View) -> QuestionSpec | None:
    """Ask for a color, a shape, the filling or a size."""
    return ask_first_possible(view, (ask_color, ask_color, ask_shape, ask_filled, ask_size))


def ask_count(view: View) -> QuestionSpec | None:
    """Ask for a number of things."""
    if view.scene.words:
        return None
    rng = view.rng
    if rng.random() < 0.12:
        if not 0 < len(view.things) <= _MAX_COUNT:
            return None
        return view.question("count/all", "count_all", (str(len(view.things)),))
    shapes = [thing for thing in view.things if thing.color]
    zero = rng.random() < 1 / 6
    if shapes and rng.random() < 0.15 and len(shapes) <= _MAX_COUNT:
        words = view.wording.slots("shape")
        return view.question("count/shapes", "count", (str(len(shapes)),), **words)
    if len(shapes) >= 3 and rng.random() < 0.3:
        colors = [thing.color for thing in shapes]
        color = view.pick(colors)
        if zero:
            color = view.pick([c for c in COLOR_NAMES if c not in colors])
        words = view.wording.slots("shape", color)
        return view.question("count/color", "count", (str(colors.count(color)),), **words)
    if not view.things:
        return None
    found = count_of_one_kind(view, zero)
    if found is None:
        return None
    name, number = found
    return view.question("count/kind", "count", (str(number),), **view.slots((name, None)))


def count_of_one_kind(view: View, zero: bool) -> tuple[str, int] | None:
    """Return the name of a kind and its number, or None if there is no clear one.

    Args:
        view: the scene.
        zero: choose a kind that is absent.
    """
    if zero:
        missing = view.absent_name(view.pick(view.things))
        return None if missing is None else (missing, 0)
    name = view.pick(view.things).name
    number = sum(thing.name == name for thing in view.things)
    if number > _MAX_COUNT or view.is_ambiguous(name):
        return None
    return name, number


def ask_at(view: View) -> QuestionSpec | None:
    """Ask what is at a corner."""
    if not view.things:
        return None
    thing = view.pick(view.things)
    at = view.unique_position(thing)
    if at is None:
        return None
    return view.question(
        "relation/at", "at", view.wording.name_answers(thing.name, thing.color), at=at
    )


def ask_corner(view: View) -> QuestionSpec | None:
    """Ask in which corner a thing is."""
    for thing, reference in view.referable():
        corner = view.corner(thing)
        if corner is not None:
            words = view.slots(reference)
            return view.question("relation/corner", "corner", view.term(corner), **words)
    return None


def ask_sides(view: View) -> QuestionSpec | None:
    """Ask if a thing is left or right of another one, or above or below it."""
    known = view.referable()
    if len(known) < 2:
        return None
    (thing, reference), (anchor, other) = known[:2]
    options = []
    for direction in DIRECTIONS:
        along, across = view.offset(anchor, thing, direction)
        if along >= MIN_SEPARATION and along >= 0.3 * across:
            options.append(direction)
    if not options:
        return None
    direction = view.pick(options)
    key = "left_right" if direction in ("left", "right") else "above_below"
    words = view.slots(reference) | {"of": view.wording.anchor(*other)}
    return view.question(f"relation/{key}", key, view.term(direction), **words)


def ask_beside(view: View) -> QuestionSpec | None:
    """Ask what is beside a thing, in one direction."""
    for anchor, reference in view.referable():
        found = view.neighbor(anchor)
        if found is not None:
            direction, thing = found
            of, side = view.wording.anchor(*reference), view.wording.directions[direction]
            named = view.wording.name_answers(thing.name, thing.color)
            return view.question("relation/beside", "beside", named, dir=side, of=of)
    return None


def ask_inside(view: View) -> QuestionSpec | None:
    """Ask what is inside an outlined shape."""
    found = view.enclosed_pair()
    if found is None:
        return None
    reference = view.reference(found[0])
    if reference is None:
        return None
    named = view.wording.name_answers(found[1].name, found[1].color)
    return view.question("relation/inside", "inside", named, of=view.wording.anchor(*reference))


def ask_nearest(view: View) -> QuestionSpec | None:
    """Ask what is nearest to a thing."""
    if len(view.things) < 3:
        return None
    for anchor, reference in view.referable():
        ax, ay = view.center(anchor)
        distances = []
        for thing in view.things:
            if thing is not anchor:
                x, y = view.center(thing)
                across, down = (x - ax) * view.scene.width, (y - ay) * view.scene.height
                distances.append((math.hypot(across, down), thing))
        distances.sort(key=lambda pair: pair[0])
        if distances[1][0] >= _MIN_DISTANCE_RATIO * distances[0][0]:
            named = view.wording.name_answers(distances[0][1].name, distances[0][1].color)
            of = view.wording.anchor(*reference)
            return view.question("relation/nearest", "nearest", named, of=of)
    return None


def ask_relation(view: View) -> QuestionSpec | None:
    """Ask for a position or a relation between things."""
    inside = view.enclosed_pair()
    if inside is not None:
        return ask_first_possible(view, (ask_inside, ask_inside, ask_corner))
    return ask_first_possible(
        view, (ask_at, ask_corner, ask_sides, ask_sides, ask_beside, ask_nearest)
    )


def ask_point(view: View) -> QuestionSpec | None:
    """Ask for the box of a thing or of the text."""
    if len(view.scene.words) == 1 and (not view.things or view.rng.random() < 0.4):
        box = view.box_answers(view.scene.words[0])
        words = view.slots(("text", None))
        return (
            None if box is None else view.question("point/text", "where", box, "iou@0.5", **words)
        )
    return ask_point_at_thing(view)


def ask_point_at_thing(view: View) -> QuestionSpec | None:
    """Ask for the box of a thing."""
    for thing, reference in view.referable():
        box = view.box_answers(thing)
        if box is not None:
            question_type = "point/shape" if thing.color else "point/drawing"
            return view.question(question_type, "where", box, "iou@0.5", **view.slots(reference))
    return None


def ask_read(view: View) -> QuestionSpec | None:
    """Ask what the only printed word or number is."""
    if len(view.scene.words) != 1:
        return None
    text = view.scene.words[0].text
    kind = "number" if text.isdigit() else "word"
    key = "read" if view.rng.random() < 0.6 else f"read_{kind}"
    return view.question(f"read/{kind}", key, (f'"{text}"', text))


def ask_exists(view: View) -> QuestionSpec | None:
    """Ask if there is a thing."""
    if not view.things:
        return None
    missing = view.absent_reference()
    there = view.pick(view.things)
    if missing is None or view.is_ambiguous(there.name):
        return None
    yes = bool(view.rng.random() < 0.5)
    shown = (there.name, there.color if view.rng.random() < 0.6 else None)
    words = view.slots(shown if yes else missing)
    return view.question("yes_no/exists", "exists", view.term("yes" if yes else "no"), **words)


def ask_is_color(view: View) -> QuestionSpec | None:
    """Ask if a shape has a color."""
    for thing, _ in view.referable():
        same = sum(other.name == thing.name for other in view.things)
        if thing.color and same == 1:
            yes = bool(view.rng.random() < 0.5)
            others = [color for color in COLOR_NAMES if color != thing.color]
            color = thing.color if yes else view.pick(others)
            words = view.slots((thing.name, None)) | view.wording.color_slots(color)
            return view.question(
                "yes_no/color", "is_color", view.term("yes" if yes else "no"), **words
            )
    return None


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def ask_is_related(view: View) -> QuestionSpec | None:
    """Ask if a thing lies in a direction from another one."""
    known = view.referable()
    if len(known) < 2:
        return None
    (thing, reference), (anchor, other) = known[:2]
    for direction in DIRECTIONS:
        along, across = view.offset(anchor, thing, direction)
        if along >= MIN_SEPARATION and along >= 0.5 * across:
            yes = bool(view.rng.random() < 0.5)
            side = view.wording.directions[direction if yes else _OPPOSITE[direction]]
            words = view.slots(reference) | {"of": view.wording.anchor(*other), "dir": side}
            term = view.term("yes" if yes else "no")
            return view.question("yes_no/relation", "is_related", term, **words)
    return None


def ask_yes_no(view: View) -> QuestionSpec | None:
    """Ask a question with the answer yes or no."""
    return ask_first_possible(view, (ask_exists, ask_exists, ask_is_color, ask_is_related))


def ask_describe(view: View) -> QuestionSpec | None:
    """Ask for a list of all things and words, from the top left to the bottom right."""
    items: list[Thing | Word] = [*view.things, *view.scene.words]
    moved = np.zeros((len(items), 2))
    if view.order_noise:
        moved = view.rng.uniform(-view.order_noise, view.order_noise, moved.shape)

    def order(index: int) -> tuple[bool, bool, float]:
        x, y = view.center(items[index])
        x, y = x + float(moved[index, 0]), y + float(moved[index, 1])
        return y >= 0.5, x >= 0.5, x

    listed = [items[index] for index in sorted(range(len(items)), key=order)]
    parts = [
        view.wording.a(item.name, item.color)
        if isinstance(item, Thing)
        else view.wording.quoted(item.text)
        for item in listed
    ]
    first = listed[0].name if isinstance(listed[0], Thing) else None
    answer = view.wording.list_sentence(parts, first)
    return view.question("describe/all", "describe", (answer,), "mentions")
