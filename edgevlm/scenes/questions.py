"""Questions about generated scenes, in many phrasings and two languages, with their right answers.

A question is asked only where the scene leaves no doubt: things are referred to by names that fit one
thing only, and positions, sizes and distances must differ clearly. Not covered: how an answer is
judged, the colours of drawn things, opinions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.scenes import multi_turn, single_turn
from edgevlm.scenes.composition import Scene
from edgevlm.scenes.pairs import Pair
from edgevlm.scenes.view import Answer, View
from edgevlm.scenes.view import Turn as Turn

SKILLS = (
    "name",
    "attribute",
    "count",
    "relation",
    "point",
    "read",
    "yes_no",
    "describe",
    "two_pictures",
    "many_turns",
    "refuse",
)
LANGUAGES = ("en", "ru")
LAYOUTS_FOR: dict[str, tuple[str, ...]] = {
    "name": ("single",),
    "attribute": ("mixed", "single", "nested"),
    "count": ("crowd",),
    "relation": ("mixed", "mixed", "nested"),
    "point": ("mixed", "single", "text"),
    "read": ("text",),
    "yes_no": ("mixed", "crowd", "single"),
    "describe": ("mixed", "mixed", "single", "nested", "text"),
    "two_pictures": (),
    "many_turns": ("mixed", "mixed", "nested", "crowd"),
    "refuse": ("mixed", "text"),
}


@dataclass(frozen=True)
class Question:
    """A question of one or more turns, of which the last is judged.

    `judge` is "words" (the answer is one of `accepted`), "box" (it overlaps the right box) or
    "mentions" (it names the same things). `family` is the kind of question within the skill.
    """

    skill: str
    language: str
    turns: tuple[Turn, ...]
    judge: str
    accepted: tuple[str, ...]
    family: str


_ASKERS: dict[str, single_turn.Asker] = {
    "name": single_turn.ask_name,
    "attribute": single_turn.ask_attribute,
    "count": single_turn.ask_count,
    "relation": single_turn.ask_relation,
    "point": single_turn.ask_point,
    "read": single_turn.ask_read,
    "yes_no": single_turn.ask_yes_no,
    "describe": single_turn.ask_describe,
    "many_turns": multi_turn.ask_many_turns,
    "refuse": multi_turn.ask_refuse,
}


def ask(
    skill: str,
    scene: Scene,
    rng: np.random.Generator,
    language: str = "en",
    unseen_phrasing: bool = False,
    blur: float = 0.0,
) -> Question | None:
    """A question about one picture, or None where this scene and this draw allow none.

    With `blur`, a list is in the order that one sees who misjudges centres by up to that fraction of
    the picture: where the order is hard to see, a model then learns either.
    """
    found = _ASKERS[skill](View(scene, rng, language, unseen_phrasing, blur))
    if found is None:
        return None
    return Question(skill, language, found.turns, found.judge, found.accepted, found.family)


def ask_pair(
    pair: Pair, rng: np.random.Generator, language: str = "en", unseen_phrasing: bool = False
) -> Question | None:
    """A question about two pictures, or None where this pair and this draw allow none."""
    view = View(pair.first, rng, language, unseen_phrasing)
    if pair.change is not None:
        found: Answer | None = multi_turn.about_change(pair, view)
    else:
        found = multi_turn.about_numbers(pair, view) or multi_turn.about_content(pair, view)
    if found is None:
        return None
    skill = "two_pictures"
    return Question(skill, language, found.turns, found.judge, found.accepted, found.family)
