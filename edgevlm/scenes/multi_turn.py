"""Follow-up questions, questions about absent things, and questions about two images.

Each function returns a question and its answers, or None if the scene or the random choice allows none.
"""

from __future__ import annotations

from edgevlm.scenes.drawings import SHAPES
from edgevlm.scenes.pairs import Pair
from edgevlm.scenes.single_turn import (
    AskFunction,
    ask_beside,
    ask_color,
    ask_corner,
    ask_first_possible,
    ask_point_at_thing,
    count_of_one_kind,
)
from edgevlm.scenes.view import CONFUSABLE, DIRECTIONS, Exchange, QuestionSpec, View


def _follow_up_color(view: View) -> QuestionSpec | None:
    shapes = [thing for thing in view.things if thing.color]
    if not shapes:
        return None
    thing = view.pick(shapes)
    assert thing.color is not None
    at = view.unique_position(thing)
    if len(view.things) == 1:
        first = view.exchange("shape_it", view.wording.bare(thing.name))
    elif at is not None:
        first = view.exchange("shape_at", view.wording.bare(thing.name), at=at)
    else:
        return None
    answers = view.wording.color_answers(thing.color)
    last = view.exchange("then_color", answers[0])
    return QuestionSpec("many_turns/color", (first, last), answers)


def _follow_up_at(view: View) -> QuestionSpec | None:
    placed = [
        (at, thing) for thing in view.things if (at := view.unique_position(thing)) is not None
    ]
    if len(placed) < 2:
        return None
    order = view.rng.permutation(len(placed)).tolist()
    chosen = [placed[i] for i in order[: 3 if view.rng.random() < 0.3 else 2]]
    turns = []
    named: tuple[str, ...] = ()
    for number, (at, thing) in enumerate(chosen):
        named = view.wording.name_answers(thing.name, thing.color)
        key = "then_at" if number else "at"
        turns.append(view.exchange(key, named[0], at=at))
    return QuestionSpec("many_turns/at", tuple(turns), named)


def _follow_up_count(view: View) -> QuestionSpec | None:
    if view.scene.words or len(view.things) < 4:
        return None
    turns: list[Exchange] = []
    asked: set[str] = set()
    wanted = 3 if view.rng.random() < 0.3 else 2
    number = 0
    for _ in range(8):
        found = count_of_one_kind(view, zero=bool(view.rng.random() < 0.15))
        if found is None or found[0] in asked:
            continue
        name, number = found
        asked.add(name)
        key = "then_count" if turns else "count"
        turns.append(view.exchange(key, str(number), **view.slots((name, None))))
        if len(turns) == wanted:
            break
    if len(turns) < 2:
        return None
    return QuestionSpec("many_turns/count", tuple(turns), (str(number),))


def _follow_up_exists(view: View) -> QuestionSpec | None:
    turns: list[Exchange] = []
    asked: set[str] = set()
    answer: tuple[str, ...] = ()
    for key in ("exists", "then_exists"):
        missing = view.absent_reference()
        known = [reference for _, reference in view.referable() if reference[0] not in asked]
        if missing is None or missing[0] in asked or not known:
            return None
        yes = bool(view.rng.random() < 0.5)
        reference = known[0] if yes else missing
        asked.add(reference[0])
        answer = view.term("yes" if yes else "no")
        turns.append(view.exchange(key, answer[0], **view.slots(reference)))
    return QuestionSpec("many_turns/exists", tuple(turns), answer)


def _follow_up_place(view: View) -> QuestionSpec | None:
    """Ask where the thing of the first answer is: for its box or its corner."""
    inside = view.enclosed_pair()
    if inside is not None:
        reference = view.reference(inside[0])
        if reference is None:
            return None
        thing = inside[1]
        named = view.wording.name_answers(thing.name, thing.color)
        first = view.exchange("inside", named[0], of=view.wording.anchor(*reference))
        words = view.slots((thing.name, None))
    else:
        known = view.referable()
        if not known:
            return None
        thing, reference = known[0]
        words = view.slots(reference)
        at = view.unique_position(thing)
        if at is not None and view.rng.random() < 0.7:
            named = view.wording.name_answers(thing.name, thing.color)
            first = view.exchange("at", named[0], at=at)
        else:
            first = view.exchange("exists", *view.term("yes"), **words)
    corner, box = view.corner(thing), view.box_answers(thing)
    if corner is not None and view.rng.random() < 0.5:
        last = view.exchange("then_corner", *view.term(corner), **words)
        return QuestionSpec("many_turns/corner", (first, last), view.term(corner))
    if box is None:
        return None
    last = view.exchange("then_where", box[0], **words)
    return QuestionSpec("many_turns/where", (first, last), box, "iou@0.5")


def ask_many_turns(view: View) -> QuestionSpec | None:
    """Ask two or three questions of which the later ones need the earlier ones."""
    if view.rng.random() < 0.2:
        return _follow_up_exists(view)
    return ask_first_possible(
        view, (_follow_up_color, _follow_up_at, _follow_up_count, _follow_up_place)
    )


def _ask_absent_text(view: View) -> QuestionSpec:
    if view.scene.words:
        text = view.scene.words[0].text
        return view.question("refuse/text", "read", (f'"{text}"', text))
    return view.question("refuse/text", "read", view.wording.absent_answers("text"))


def _ask_absent_thing(view: View, question_type: str, ask_it: AskFunction) -> QuestionSpec | None:
    """Ask one question about a thing that is present, or the same question about an absent one."""
    answered, missing = ask_it(view), view.absent_reference()
    if answered is None or missing is None:
        return None
    if view.rng.random() < 0.5:
        return QuestionSpec(
            f"refuse/{question_type}", answered.turns, answered.accepted, answered.metric
        )
    if question_type == "color":  # no question asks for the color of a drawing
        others = [name for name in SHAPES if not view.may_be_present(name)]
        if not others:
            return None
        missing = view.pick(others), None
    side = view.wording.directions[view.pick(DIRECTIONS)]
    words = view.slots(missing) | {"of": view.wording.anchor(*missing), "dir": side}
    return view.question(
        f"refuse/{question_type}", question_type, view.wording.absent_answers(*missing), **words
    )


def ask_refuse(view: View) -> QuestionSpec | None:
    """Ask about a thing or text that is absent in half of the questions, and present in the others."""
    if view.rng.random() < 0.15:
        return _ask_absent_text(view)
    for index in view.rng.permutation(len(_REFUSABLE)).tolist():
        found = _ask_absent_thing(view, *_REFUSABLE[index])
        if found is not None:
            return found
    return None


_REFUSABLE: tuple[tuple[str, AskFunction], ...] = (
    ("color", ask_color),
    ("where", ask_point_at_thing),
    ("beside", ask_beside),
    ("corner", ask_corner),
)


def ask_change(pair: Pair, view: View) -> QuestionSpec:
    """Ask what changed from the first image to the second."""
    change, wording = pair.change, view.wording
    assert change is not None
    old, new = change.before, change.after
    if old is None:
        assert new is not None
        accepted = wording.added_answers(new.name, new.color)
    elif new is None:
        accepted = wording.removed_answers(old.name, old.color)
    elif change.kind == "recolored":
        assert old.color is not None and new.color is not None
        accepted = wording.recolored_answers(old.name, old.color, new.color)
    else:
        accepted = wording.replaced_answers(old.name, old.color, new.name, new.color)
    return view.question(f"two_pictures/{change.kind}", "change", accepted)


def ask_numbers(pair: Pair, view: View) -> QuestionSpec | None:
    """Ask which image has more or fewer things of a kind; the numbers differ by two or more."""
    names = [[thing.name for thing in scene.things] for scene in (pair.first, pair.second)]
    both = {*names[0], *names[1]}
    options = []
    for name in sorted(both):
        numbers = [part.count(name) for part in names]
        if abs(numbers[0] - numbers[1]) >= 2 and not CONFUSABLE.get(name, frozenset()) & both:
            options.append((name, numbers))
    if not options:
        return None
    name, numbers = view.pick(options)
    more = bool(view.rng.random() < 0.5)
    first = (numbers[0] > numbers[1]) == more
    key = "more" if more else "fewer"
    term = view.term("first" if first else "second")
    return view.question(f"two_pictures/{key}", key, term, **view.slots((name, None)))


def ask_content(pair: Pair, view: View) -> QuestionSpec | None:
    """Ask what one of two images shows, or which of them shows a thing."""
    scenes = (pair.first, pair.second)
    if all(len(scene.things) == 1 for scene in scenes) and view.rng.random() < 0.5:
        second = int(view.rng.integers(2))
        thing = scenes[second].things[0]
        which = view.wording.terms["which second" if second else "which first"]
        named = view.wording.name_answers(thing.name, thing.color)
        return view.question("two_pictures/content", "content", named, which=which)
    second = int(view.rng.integers(2))
    thing = view.pick(scenes[second].things)
    elsewhere = {other.name for other in scenes[1 - second].things}
    if thing.name in elsewhere or CONFUSABLE.get(thing.name, frozenset()) & elsewhere:
        return None
    words = view.slots((thing.name, thing.color if view.rng.random() < 0.5 else None))
    return view.question(
        "two_pictures/has", "has", view.term("second" if second else "first"), **words
    )
