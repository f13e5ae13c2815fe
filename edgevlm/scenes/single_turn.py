"""Questions of a single turn about one picture: for each skill its families.

Each function gives a question and its answers, or None where the view or the draw allows none. Not
covered: follow-ups, refusals and pairs of pictures (see `dialogues`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgevlm.scenes.composition import Thing, Word
from edgevlm.scenes.view import APART, COLOR_NAMES, DIRECTIONS, Answer, View

Asker = Callable[[View], Answer | None]

_LARGER, _NEARER = 1.6, 1.5  # ratios that are plain to see
_LARGEST_COUNT = 6


def first_of(view: View, askers: tuple[Asker, ...]) -> Answer | None:
    """The first question that can be asked, in random order."""
    for index in view.rng.permutation(len(askers)).tolist():
        found: Answer | None = askers[index](view)
        if found is not None:
            return found
    return None


def ask_name(view: View) -> Answer | None:
    if len(view.things) != 1 or view.scene.words:
        return None
    thing = view.things[0]
    family = "name/shape" if thing.color else "name/drawing"
    return view.one(family, "name", view.wording.named(thing.name, thing.color))


def ask_color(view: View) -> Answer | None:
    shapes = [thing for thing in view.things if thing.color]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    answers = view.wording.color_answers(thing.color)
    if len(view.things) == 1 and view.rng.random() < 0.6:
        return view.one("attribute/color", "color_it", answers)
    at = view.at(thing)
    if at is not None and view.rng.random() < 0.3:
        return view.one("attribute/color", "color_at", answers, at=at)
    if len(shapes) == 1 and view.rng.random() < 0.15:
        name = "shape"
    elif sum(other.name == thing.name for other in shapes) == 1 and view.reference(thing):
        name = thing.name
    else:
        return None
    return view.one("attribute/color", "color", answers, **view.fill((name, None)))


def ask_shape(view: View) -> Answer | None:
    shapes = [thing for thing in view.things if thing.color]
    colors = [thing.color for thing in shapes]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    named = view.wording.named(thing.name)
    answers = tuple(dict.fromkeys((view.wording.bare(thing.name), *named)))
    if len(view.things) == 1 and view.rng.random() < 0.6:
        return view.one("attribute/shape", "shape_it", answers)
    at = view.at(thing)
    if at is not None and view.rng.random() < 0.4:
        return view.one("attribute/shape", "shape_at", answers, at=at)
    if colors.count(thing.color) > 1:
        return None
    words = view.wording.color(thing.color)
    return view.one("attribute/shape", "shape", answers, **words)


def ask_filled(view: View) -> Answer | None:
    for thing, reference in view.referable():
        if thing.color:
            term = view.term("filled" if thing.filled else "outlined")
            if len(view.things) == 1 and view.rng.random() < 0.5:
                return view.one("attribute/filled", "filled_it", term)
            return view.one("attribute/filled", "filled", term, **view.fill(reference))
    return None


def ask_size(view: View) -> Answer | None:
    known = view.referable()
    if len(known) < 2:
        return None
    areas = []
    for thing, _ in known[:2]:
        left, top, right, bottom = view.box(thing)
        areas.append((right - left) * (bottom - top))
    if max(areas) < _LARGER * min(areas):
        return None
    larger = known[int(areas[1] > areas[0])][1]
    one, two = (view.wording.the(*reference) for _, reference in known[:2])
    return view.one("attribute/size", "size", view.wording.chosen(*larger), one=one, two=two)


def ask_attribute(view: View) -> Answer | None:
    return first_of(view, (ask_color, ask_color, ask_shape, ask_filled, ask_size))


def ask_count(view: View) -> Answer | None:
    if view.scene.words:
        return None
    rng = view.rng
    if rng.random() < 0.12:
        if not 0 < len(view.things) <= _LARGEST_COUNT:
            return None
        return view.one("count/all", "count_all", (str(len(view.things)),))
    shapes = [thing for thing in view.things if thing.color]
    zero = rng.random() < 1 / 6
    if shapes and rng.random() < 0.15 and len(shapes) <= _LARGEST_COUNT:
        words = view.wording.filling("shape")
        return view.one("count/shapes", "count", (str(len(shapes)),), **words)
    if len(shapes) >= 3 and rng.random() < 0.3:
        colors = [thing.color for thing in shapes]
        color = view.pick(colors)
        if zero:
            color = view.pick([c for c in COLOR_NAMES if c not in colors])
        words = view.wording.filling("shape", color)
        return view.one("count/color", "count", (str(colors.count(color)),), **words)
    if not view.things:
        return None
    found = count_one(view, zero)
    if found is None:
        return None
    name, number = found
    return view.one("count/kind", "count", (str(number),), **view.fill((name, None)))


def count_one(view: View, zero: bool) -> tuple[str, int] | None:
    """A kind and its number, which is 0 if so wanted."""
    if zero:
        missing = view.absent_name(view.pick(view.things))
        return None if missing is None else (missing, 0)
    name = view.pick(view.things).name
    number = sum(thing.name == name for thing in view.things)
    if number > _LARGEST_COUNT or view.is_doubtful(name):
        return None
    return name, number


def ask_at(view: View) -> Answer | None:
    """What is at a corner."""
    if not view.things:
        return None
    thing = view.pick(view.things)
    at = view.at(thing)
    if at is None:
        return None
    return view.one("relation/at", "at", view.wording.named(thing.name, thing.color), at=at)


def ask_corner(view: View) -> Answer | None:
    for thing, reference in view.referable():
        corner = view.corner(thing)
        if corner is not None:
            words = view.fill(reference)
            return view.one("relation/corner", "corner", view.term(corner), **words)
    return None


def ask_sides(view: View) -> Answer | None:
    """Left or right of, above or below."""
    known = view.referable()
    if len(known) < 2:
        return None
    (thing, reference), (anchor, other) = known[:2]
    options = []
    for direction in DIRECTIONS:
        along, aside = view.apart(anchor, thing, direction)
        if along >= APART and along >= 0.3 * aside:
            options.append(direction)
    if not options:
        return None
    direction = view.pick(options)
    key = "left_right" if direction in ("left", "right") else "above_below"
    words = view.fill(reference) | {"of": view.wording.anchor(*other)}
    return view.one(f"relation/{key}", key, view.term(direction), **words)


def ask_beside(view: View) -> Answer | None:
    for anchor, reference in view.referable():
        found = view.beside(anchor)
        if found is not None:
            direction, thing = found
            of, side = view.wording.anchor(*reference), view.wording.directions[direction]
            named = view.wording.named(thing.name, thing.color)
            return view.one("relation/beside", "beside", named, dir=side, of=of)
    return None


def ask_inside(view: View) -> Answer | None:
    found = view.inside()
    if found is None:
        return None
    reference = view.reference(found[0])
    if reference is None:
        return None
    named = view.wording.named(found[1].name, found[1].color)
    return view.one("relation/inside", "inside", named, of=view.wording.anchor(*reference))


def ask_nearest(view: View) -> Answer | None:
    if len(view.things) < 3:
        return None
    for anchor, reference in view.referable():
        ax, ay = view.place(anchor)
        distances = []
        for thing in view.things:
            if thing is not anchor:
                x, y = view.place(thing)
                across, down = (x - ax) * view.scene.width, (y - ay) * view.scene.height
                distances.append((math.hypot(across, down), thing))
        distances.sort(key=lambda pair: pair[0])
        if distances[1][0] >= _NEARER * distances[0][0]:
            named = view.wording.named(distances[0][1].name, distances[0][1].color)
            of = view.wording.anchor(*reference)
            return view.one("relation/nearest", "nearest", named, of=of)
    return None


def ask_relation(view: View) -> Answer | None:
    inside = view.inside()
    if inside is not None:
        return first_of(view, (ask_inside, ask_inside, ask_corner))
    return first_of(view, (ask_at, ask_corner, ask_sides, ask_sides, ask_beside, ask_nearest))


def ask_point(view: View) -> Answer | None:
    if len(view.scene.words) == 1 and (not view.things or view.rng.random() < 0.4):
        box = view.percent(view.scene.words[0])
        words = view.fill(("text", None))
        return None if box is None else view.one("point/text", "where", box, "box", **words)
    return point_at_thing(view)


def point_at_thing(view: View) -> Answer | None:
    for thing, reference in view.referable():
        box = view.percent(thing)
        if box is not None:
            family = "point/shape" if thing.color else "point/drawing"
            return view.one(family, "where", box, "box", **view.fill(reference))
    return None


def ask_read(view: View) -> Answer | None:
    if len(view.scene.words) != 1:
        return None
    text = view.scene.words[0].text
    kind = "number" if text.isdigit() else "word"
    key = "read" if view.rng.random() < 0.6 else f"read_{kind}"
    return view.one(f"read/{kind}", key, (f'"{text}"', text))


def ask_exists(view: View) -> Answer | None:
    if not view.things:
        return None
    missing = view.absent()
    there = view.pick(view.things)
    if missing is None or view.is_doubtful(there.name):
        return None
    yes = bool(view.rng.random() < 0.5)
    shown = (there.name, there.color if view.rng.random() < 0.6 else None)
    words = view.fill(shown if yes else missing)
    return view.one("yes_no/exists", "exists", view.term("yes" if yes else "no"), **words)


def ask_is_color(view: View) -> Answer | None:
    for thing, _ in view.referable():
        same = sum(other.name == thing.name for other in view.things)
        if thing.color and same == 1:
            yes = bool(view.rng.random() < 0.5)
            others = [color for color in COLOR_NAMES if color != thing.color]
            color = thing.color if yes else view.pick(others)
            words = view.fill((thing.name, None)) | view.wording.color(color)
            return view.one("yes_no/color", "is_color", view.term("yes" if yes else "no"), **words)
    return None


_OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


def ask_is_related(view: View) -> Answer | None:
    known = view.referable()
    if len(known) < 2:
        return None
    (thing, reference), (anchor, other) = known[:2]
    for direction in DIRECTIONS:
        along, aside = view.apart(anchor, thing, direction)
        if along >= APART and along >= 0.5 * aside:
            yes = bool(view.rng.random() < 0.5)
            side = view.wording.directions[direction if yes else _OPPOSITE[direction]]
            words = view.fill(reference) | {"of": view.wording.anchor(*other), "dir": side}
            term = view.term("yes" if yes else "no")
            return view.one("yes_no/relation", "is_related", term, **words)
    return None


def ask_yes_no(view: View) -> Answer | None:
    return first_of(view, (ask_exists, ask_exists, ask_is_color, ask_is_related))


def ask_describe(view: View) -> Answer | None:
    items: list[Thing | Word] = [*view.things, *view.scene.words]
    moved = np.zeros((len(items), 2))
    if view.blur:
        moved = view.rng.uniform(-view.blur, view.blur, moved.shape)

    def order(index: int) -> tuple[bool, bool, float]:
        x, y = view.place(items[index])
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
    answer = view.wording.joined(parts, first)
    return view.one("describe/all", "describe", (answer,), "mentions")
