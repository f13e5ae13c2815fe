"""Tests of the generated questions: the answers follow from the scenes, and nothing else gives them."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import pytest

from edgevlm.scenes import composition, pairs, questions
from edgevlm.scenes.composition import Scene, Thing, Word
from edgevlm.scenes.drawings import nouns
from edgevlm.scenes.phrasings_en import ENGLISH
from edgevlm.scenes.phrasings_ru import RUSSIAN
from edgevlm.scenes.questions import LANGUAGES, SKILLS, Question
from edgevlm.scenes.wording import WORDINGS

ScenesAndQuestion = tuple[tuple[Scene, ...], Question]


@cache
def _asked(
    skill: str, language: str, count: int = 60, unseen: bool = False
) -> list[ScenesAndQuestion]:
    """Return questions with the scenes that they are about."""
    rng = np.random.default_rng([SKILLS.index(skill), LANGUAGES.index(language), unseen])
    found: list[ScenesAndQuestion] = []
    while len(found) < count:
        if skill == "two_pictures":
            pair = pairs.sample_pair(rng)
            question = questions.ask_pair(pair, rng, language, unseen)
            shown: tuple[Scene, ...] = (pair.first, pair.second)
        else:
            layouts = questions.LAYOUTS_FOR[skill]
            shown = (composition.sample(rng, layouts[int(rng.integers(len(layouts)))]),)
            question = questions.ask(skill, shown[0], rng, language, unseen, order_noise=0.03)
        if question is not None:
            found.append((shown, question))
    return found


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("skill", SKILLS)
@pytest.mark.parametrize("unseen", [False, True])
def test_questions_are_complete(skill: str, language: str, unseen: bool) -> None:
    for _, question in _asked(skill, language, unseen=unseen):
        assert (question.skill, question.language) == (skill, language)
        assert question.question_type.startswith(f"{skill}/")
        assert question.metric in ("exact", "iou@0.5", "mentions")
        assert question.accepted[0] == question.turns[-1].answer
        assert len(set(question.accepted)) == len(question.accepted)
        assert len(question.turns) in ((2, 3) if skill == "many_turns" else (1,))
        for turn in question.turns:
            assert turn.question.strip() == turn.question != ""
            assert turn.answer
            assert not set("{}") & set(turn.question + turn.answer)
            if language == "ru" and '"' not in turn.answer and question.metric != "iou@0.5":
                assert not any(
                    "a" <= letter <= "z" for letter in (turn.question + turn.answer).lower()
                )


@pytest.mark.parametrize("skill", SKILLS)
def test_the_same_seed_gives_the_same_questions(skill: str) -> None:
    first = _asked(skill, "en", 10)
    _asked.cache_clear()
    assert _asked(skill, "en", 10) == first


def test_there_are_many_phrasings_and_the_unseen_are_never_seen() -> None:
    assert ENGLISH.keys() == RUSSIAN.keys()
    for table in (ENGLISH, RUSSIAN):
        for key, (seen, unseen) in table.items():
            minimum = 4 if key in ("color_at", "filled_it") else 6  # little else can be said
            assert minimum <= len(set(seen)) == len(seen) <= 14, key
            assert len(set(unseen)) == 2, key
        every = {text.lower() for seen, _ in table.values() for text in seen}
        assert every.isdisjoint(text.lower() for _, unseen in table.values() for text in unseen)


def _asked_names(question: Question, key: str) -> list[str]:
    """Return the names with which a phrasing is exactly this question."""
    asked = question.turns[-1].question.lower().rstrip("?.")
    seen, unseen = WORDINGS[question.language].phrasings[key]
    filled = {name: WORDINGS[question.language].slots(name) for name in nouns()}
    return [
        name
        for name, words in filled.items()
        for phrasing in (*seen, *unseen)
        if phrasing.format_map(words).lower().rstrip("?.") == asked
    ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_counts_are_right(language: str) -> None:
    counts: Counter[int] = Counter()
    for (scene,), question in _asked("count", language, 150):
        counts[int(question.accepted[0])] += 1
        if question.question_type == "count/kind":
            (name,) = _asked_names(question, "count")
            there = sum(thing.name == name for thing in scene.things)
            assert question.accepted == (str(there),)
        if question.question_type == "count/all":
            assert question.accepted == (str(len(scene.things)),)
    assert set(counts) == set(range(7))
    assert 0.08 < counts[0] / 150 < 0.28


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("skill", ["point", "many_turns", "refuse"])
def test_boxes_are_those_of_something_in_the_image(skill: str, language: str) -> None:
    boxes = [(s, q) for (s, *_), q in _asked(skill, language) if q.metric == "iou@0.5"]
    for scene, question in boxes:
        if question.accepted[0][0] != "[":
            continue
        sides = [int(side) for side in question.accepted[0].strip("[]").split(", ")]
        assert 0 <= sides[0] < sides[2] <= 100
        assert 0 <= sides[1] < sides[3] <= 100
        scale = np.array([scene.width, scene.height] * 2) / 100
        items: list[Thing | Word] = [*scene.things, *scene.words]
        off = [np.abs(np.clip(item.box() / scale, 0, 100) - sides).max() for item in items]
        assert min(off) <= 0.5
    assert len(boxes) > 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_corners_are_right(language: str) -> None:
    terms = WORDINGS[language].terms
    asked = [
        (s, q)
        for (s,), q in _asked("relation", language, 120)
        if q.question_type.endswith("corner")
    ]
    seen = set()
    for scene, question in asked:
        plain = [thing for thing in scene.things if thing.name in _asked_names(question, "corner")]
        if len(plain) != 1:
            continue  # referred to with its colour
        x, y = scene.center(plain[0])
        corner = f"{'bottom' if y > 0.5 else 'top'} {'right' if x > 0.5 else 'left'}"
        assert question.accepted == (terms[corner],)
        seen.add(corner)
    assert len(seen) == 4


@pytest.mark.parametrize("language", LANGUAGES)
def test_answers_cannot_be_guessed(language: str) -> None:
    terms = WORDINGS[language].terms
    yes = [q.accepted[0] == terms["yes"] for _, q in _asked("yes_no", language, 200)]
    assert 0.35 < np.mean(yes) < 0.65
    refusals = [q.accepted[0] for _, q in _asked("refuse", language, 200)]
    refused = ["There" in answer or "Здесь" in answer for answer in refusals]
    assert 0.35 < np.mean(refused) < 0.65
    which = [q.accepted[0] for _, q in _asked("two_pictures", language, 200)]
    first, second = which.count(terms["first"]), which.count(terms["second"])
    assert 0.35 < first / (first + second) < 0.65


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_refused_is_not_there_and_what_is_read_is_printed(language: str) -> None:
    wording = WORDINGS[language]
    for (scene,), question in _asked("refuse", language, 200):
        for thing in scene.things:
            for color in (None, thing.color):
                assert question.accepted[0] != wording.absent_answers(thing.name, color)[0]
        if scene.words:
            assert question.accepted[0] != wording.absent_answers("text")[0]
    for (scene,), question in _asked("read", language):
        assert question.accepted == (f'"{scene.words[0].text}"', scene.words[0].text)


def test_descriptions_list_everything() -> None:
    for (scene,), question in _asked("describe", "en"):
        answer = question.accepted[0]
        assert answer.endswith(".")
        named = Counter(thing.label for thing in scene.things)
        for label, count in named.items():
            assert answer.count(label) >= count
        for word in scene.words:
            assert f'"{word.text}"' in answer


def test_a_pair_differs_in_one_thing() -> None:
    rng = np.random.default_rng(3)
    kinds = set()
    for _ in range(80):
        pair = pairs.sample_pair(rng)
        if pair.change is None:
            continue
        kinds.add(pair.change.kind)
        before, after = pair.change.before, pair.change.after
        first, second = set(pair.first.things), set(pair.second.things)
        assert first - second == ({before} if before else set())
        assert second - first == ({after} if after else set())
        assert pair.first.background == pair.second.background
        for thing in pair.second.things:
            left, top, right, bottom = thing.box()
            assert left >= -0.5 and right <= pair.second.width + 0.5
            assert top >= -0.5 and bottom <= pair.second.height + 0.5
    assert kinds == set(pairs.CHANGES)


def test_english_and_russian_agree_in_number_and_gender() -> None:
    english, russian = WORDINGS["en"], WORDINGS["ru"]
    assert [english.a(name) for name in ("owl", "unicorn", "scissors")] == [
        "an owl",
        "a unicorn",
        "scissors",
    ]
    assert english.absent_answers("glasses")[0] == "There are no glasses."
    assert russian.absent_answers("star", "blue")[0] == "Здесь нет синей звезды."
    assert russian.removed_answers("scissors", None)[0] == "ножницы исчезли"
    assert russian.recolored_answers("heart", "red", "blue")[0] == "красное сердце стало синим"
    assert russian.slots("star", "red")["many"] == "красных звёзд"
