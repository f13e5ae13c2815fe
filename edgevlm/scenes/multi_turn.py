"""Questions that need an earlier turn, that ask about what is not there, or about two pictures.

Each function gives a question and its answers, or None where the view or the draw allows none.
"""

from __future__ import annotations

from edgevlm.scenes.drawings import SHAPES
from edgevlm.scenes.pairs import Pair
from edgevlm.scenes.single_turn import (
    Asker,
    ask_beside,
    ask_color,
    ask_corner,
    count_one,
    first_of,
    point_at_thing,
)
from edgevlm.scenes.view import DIRECTIONS, LIKE, Answer, Turn, View


def _then_color(view: View) -> Answer | None:
    shapes = [thing for thing in view.things if thing.color]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    at = view.at(thing)
    if len(view.things) == 1:
        first = view.turn("shape_it", view.wording.bare(thing.name))
    elif at is not None:
        first = view.turn("shape_at", view.wording.bare(thing.name), at=at)
    else:
        return None
    answers = view.wording.color_answers(thing.color)
    last = view.turn("then_color", answers[0])
    return Answer("many_turns/color", (first, last), answers)


def _then_at(view: View) -> Answer | None:
    placed = [(at, thing) for thing in view.things if (at := view.at(thing)) is not None]
    if len(placed) < 2:
        return None
    order = view.rng.permutation(len(placed)).tolist()
    chosen = [placed[i] for i in order[: 3 if view.rng.random() < 0.3 else 2]]
    turns = []
    named: tuple[str, ...] = ()
    for number, (at, thing) in enumerate(chosen):
        named = view.wording.named(thing.name, thing.color)
        key = "then_at" if number else "at"
        turns.append(view.turn(key, named[0], at=at))
    return Answer("many_turns/at", tuple(turns), named)


def _then_count(view: View) -> Answer | None:
    if view.scene.words or len(view.things) < 4:
        return None
    turns: list[Turn] = []
    asked: set[str] = set()
    wanted = 3 if view.rng.random() < 0.3 else 2
    number = 0
    for _ in range(8):
        found = count_one(view, zero=bool(view.rng.random() < 0.15))
        if found is None or found[0] in asked:
            continue
        name, number = found
        asked.add(name)
        key = "then_count" if turns else "count"
        turns.append(view.turn(key, str(number), **view.fill((name, None))))
        if len(turns) == wanted:
            break
    if len(turns) < 2:
        return None
    return Answer("many_turns/count", tuple(turns), (str(number),))


def _then_exists(view: View) -> Answer | None:
    turns: list[Turn] = []
    asked: set[str] = set()
    answer: tuple[str, ...] = ()
    for key in ("exists", "then_exists"):
        missing = view.absent()
        known = [reference for _, reference in view.referable() if reference[0] not in asked]
        if missing is None or missing[0] in asked or not known:
            return None
        yes = bool(view.rng.random() < 0.5)
        reference = known[0] if yes else missing
        asked.add(reference[0])
        answer = view.term("yes" if yes else "no")
        turns.append(view.turn(key, answer[0], **view.fill(reference)))
    return Answer("many_turns/exists", tuple(turns), answer)


def _then_place(view: View) -> Answer | None:
    """Where the thing is that was just found, as a box or a corner."""
    inside = view.inside()
    if inside is not None:
        reference = view.reference(inside[0])
        if reference is None:
            return None
        thing = inside[1]
        named = view.wording.named(thing.name, thing.color)
        first = view.turn("inside", named[0], of=view.wording.anchor(*reference))
        words = view.fill((thing.name, None))
    else:
        known = view.referable()
        if not known:
            return None
        thing, reference = known[0]
        words = view.fill(reference)
        at = view.at(thing)
        if at is not None and view.rng.random() < 0.7:
            named = view.wording.named(thing.name, thing.color)
            first = view.turn("at", named[0], at=at)
        else:
            first = view.turn("exists", *view.term("yes"), **words)
    corner, box = view.corner(thing), view.percent(thing)
    if corner is not None and view.rng.random() < 0.5:
        last = view.turn("then_corner", *view.term(corner), **words)
        return Answer("many_turns/corner", (first, last), view.term(corner))
    if box is None:
        return None
    last = view.turn("then_where", box[0], **words)
    return Answer("many_turns/where", (first, last), box, "box")


def ask_many_turns(view: View) -> Answer | None:
    if view.rng.random() < 0.2:
        return _then_exists(view)
    return first_of(view, (_then_color, _then_at, _then_count, _then_place))


def _refuse_text(view: View) -> Answer:
    if view.scene.words:
        text = view.scene.words[0].text
        return view.one("refuse/text", "read", (f'"{text}"', text))
    return view.one("refuse/text", "read", view.wording.missing("text"))


def _refuse_thing(view: View, family: str, ask_it: Asker) -> Answer | None:
    """The same question about a thing that is there or about one that is not."""
    answered, missing = ask_it(view), view.absent()
    if answered is None or missing is None:
        return None
    if view.rng.random() < 0.5:
        return Answer(f"refuse/{family}", answered.turns, answered.accepted, answered.judge)
    if family == "color":  # only shapes are ever asked for their colour, and by name alone
        others = [name for name in SHAPES if not view.is_like(name)]
        if not others:
            return None
        missing = view.pick(others), None
    side = view.wording.directions[view.pick(DIRECTIONS)]
    words = view.fill(missing) | {"of": view.wording.anchor(*missing), "dir": side}
    return view.one(f"refuse/{family}", family, view.wording.missing(*missing), **words)


def ask_refuse(view: View) -> Answer | None:
    """As often about what is there, which has an answer, as about what is not."""
    if view.rng.random() < 0.15:
        return _refuse_text(view)
    for index in view.rng.permutation(len(_REFUSED)).tolist():
        found = _refuse_thing(view, *_REFUSED[index])
        if found is not None:
            return found
    return None


_REFUSED: tuple[tuple[str, Asker], ...] = (
    ("color", ask_color),
    ("where", point_at_thing),
    ("beside", ask_beside),
    ("corner", ask_corner),
)


def about_change(pair: Pair, view: View) -> Answer:
    change, wording = pair.change, view.wording
    assert change is not None
    old, new = change.before, change.after
    if old is None:
        assert new is not None
        accepted = wording.added(new.name, new.color)
    elif new is None:
        accepted = wording.gone(old.name, old.color)
    elif change.kind == "recolored":
        assert old.color is not None and new.color is not None
        accepted = wording.recolored(old.name, old.color, new.color)
    else:
        accepted = wording.replaced(old.name, old.color, new.name, new.color)
    return view.one(f"two_pictures/{change.kind}", "change", accepted)


def about_numbers(pair: Pair, view: View) -> Answer | None:
    """Which picture has more or fewer of a kind: by at least two."""
    names = [[thing.name for thing in scene.things] for scene in (pair.first, pair.second)]
    both = {*names[0], *names[1]}
    options = []
    for name in sorted(both):
        numbers = [part.count(name) for part in names]
        if abs(numbers[0] - numbers[1]) >= 2 and not LIKE.get(name, frozenset()) & both:
            options.append((name, numbers))
    if not options:
        return None
    name, numbers = view.pick(options)
    more = bool(view.rng.random() < 0.5)
    first = (numbers[0] > numbers[1]) == more
    key = "more" if more else "fewer"
    term = view.term("first" if first else "second")
    return view.one(f"two_pictures/{key}", key, term, **view.fill((name, None)))


def about_content(pair: Pair, view: View) -> Answer | None:
    scenes = (pair.first, pair.second)
    if all(len(scene.things) == 1 for scene in scenes) and view.rng.random() < 0.5:
        second = int(view.rng.integers(2))
        thing = scenes[second].things[0]
        which = view.wording.terms["which second" if second else "which first"]
        named = view.wording.named(thing.name, thing.color)
        return view.one("two_pictures/content", "content", named, which=which)
    second = int(view.rng.integers(2))
    thing = view.pick(scenes[second].things)
    elsewhere = {other.name for other in scenes[1 - second].things}
    if thing.name in elsewhere or LIKE.get(thing.name, frozenset()) & elsewhere:
        return None
    words = view.fill((thing.name, thing.color if view.rng.random() < 0.5 else None))
    return view.one("two_pictures/has", "has", view.term("second" if second else "first"), **words)
