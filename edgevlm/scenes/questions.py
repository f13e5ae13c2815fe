"""Questions about scenes, in many phrasings and two languages, with the right answers.

A question is asked only if the scene allows exactly one answer: a name refers to one thing only, and
positions, sizes and distances differ clearly. No question asks for the color of a drawing.
`edgevlm.evaluation.metrics` compares answers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgevlm.scenes import multi_turn, single_turn
from edgevlm.scenes.composition import Scene
from edgevlm.scenes.pairs import Pair
from edgevlm.scenes.view import Exchange as Exchange
from edgevlm.scenes.view import QuestionSpec, View

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
    """A question of one or more turns. The answer to the last turn gets the score."""

    skill: str
    """One of SKILLS."""
    language: str
    """One of LANGUAGES."""
    turns: tuple[Exchange, ...]
    metric: str
    """How to compare an answer with `accepted`.

    "exact": it is one of them; "iou@0.5": it overlaps the box; "mentions": it lists the same things.
    """
    accepted: tuple[str, ...]
    """Right answers; the first is that of the last turn."""
    question_type: str
    """Kind of question within the skill, as "count/all"."""


_ASKERS: dict[str, single_turn.AskFunction] = {
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
    order_noise: float = 0.0,
) -> Question | None:
    """Return a question about one scene, or None if this scene and this random choice allow none.

    Args:
        skill: one of SKILLS, but not "two_pictures".
        scene: the scene.
        rng: source of randomness.
        language: one of LANGUAGES.
        unseen_phrasing: use a phrasing that training never uses.
        order_noise: largest random error, as a fraction of the image, of the positions by which a list is
            ordered. In training it avoids one fixed order where the order is hard to see.
    """
    found = _ASKERS[skill](View(scene, rng, language, unseen_phrasing, order_noise))
    if found is None:
        return None
    return Question(skill, language, found.turns, found.metric, found.accepted, found.question_type)


def ask_pair(
    pair: Pair, rng: np.random.Generator, language: str = "en", unseen_phrasing: bool = False
) -> Question | None:
    """Return a question about two scenes, or None if this pair and this random choice allow none.

    Args:
        pair: the two scenes.
        rng: source of randomness.
        language: one of LANGUAGES.
        unseen_phrasing: use a phrasing that training never uses.
    """
    view = View(pair.first, rng, language, unseen_phrasing)
    if pair.change is not None:
        found: QuestionSpec | None = multi_turn.ask_change(pair, view)
    else:
        found = multi_turn.ask_numbers(pair, view) or multi_turn.ask_content(pair, view)
    if found is None:
        return None
    skill = "two_pictures"
    return Question(skill, language, found.turns, found.metric, found.accepted, found.question_type)
