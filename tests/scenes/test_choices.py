"""Choices of questions about scenes: one is right, the others are wrong and of the same kind."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from edgevlm.evaluation import metrics
from edgevlm.scenes import composition, questions
from edgevlm.scenes.choices import choices
from edgevlm.scenes.composition import Scene
from edgevlm.scenes.questions import LANGUAGES, Question
from edgevlm.scenes.view import COLOR_NAMES

SKILLS = ("name", "attribute", "count", "relation", "read", "yes_no", "point", "describe")


def asked(skill: str, language: str, count: int) -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(11)
    found: list[tuple[Scene, Question]] = []
    while len(found) < count:
        layouts = questions.LAYOUTS_FOR[skill]
        layout = layouts[int(rng.integers(len(layouts)))]
        scene = composition.sample(rng, layout, unseen_words=skill == "read")
        question = questions.ask(skill, scene, rng, language)
        if question is not None:
            found.append((scene, question))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("skill", SKILLS)
def test_one_choice_is_right(skill: str, language: str) -> None:
    places = defaultdict(list)
    for number, (scene, question) in enumerate(asked(skill, language, 60)):
        found = choices(question, scene, np.random.default_rng(number))
        if skill in ("point", "describe") or question.question_type == "attribute/size":
            assert found == ()
            continue
        assert found == choices(question, scene, np.random.default_rng(number))
        scores = [metrics.score(question.metric, one, question.accepted) for one in found]
        assert sorted(scores) == [0.0] * (len(found) - 1) + [1.0]
        assert len({one.strip() for one in found}) == len(found) >= 2
        places[len(found)].append(scores.index(1))
        if skill == "read":
            assert len({len(one) for one in found}) == 1
            assert len({one.isupper() for one in found}) == 1
        if question.question_type == "attribute/color":
            assert len(found) == len(COLOR_NAMES)
    for width, at in places.items():
        if len(at) > 20:
            assert len(set(at)) == width, "the place of the right choice says nothing"


def test_other_things_of_the_scene_are_choices() -> None:
    for scene, question in asked("relation", "en", 60):
        if question.question_type == "relation/nearest":
            found = choices(question, scene, np.random.default_rng(0))
            for thing in scene.things:
                assert any(one.endswith(thing.label) for one in found)
