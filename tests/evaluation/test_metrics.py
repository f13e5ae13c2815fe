"""Tests of the metrics: texts, boxes, lists, and the metrics of published benchmarks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from anls_star import anls_score
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.evaluation import metrics

COORDINATES = st.tuples(*[st.integers(0, 100)] * 4).filter(lambda b: b[0] < b[2] and b[1] < b[3])
NAMES = st.lists(
    st.sampled_from(["a cat", "a red circle", 'the word "SALT and PEPPER, OLD"', "an owl", "dice"]),
    min_size=1,
)


def sentence(parts: Sequence[str], conjunction: str = "and", opening: str = "There is") -> str:
    listed = f" {conjunction} ".join([", ".join(parts[:-1]), parts[-1]] if parts[1:] else parts)
    return f"{opening} {listed}."


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        ("Red.", "red"),
        ("  the  first!", "The first"),
        ('"HOUSE"', "house"),
        ("«Дом».", "дом"),
        ("зелёного", "Зеленого"),
        ("cafe\u0301", "caf\u00e9"),
        ("there is no dog", "There is no dog."),
    ],
)
def test_the_same_text(answer: str, accepted: str) -> None:
    assert metrics.score("exact", answer, ["something else", accepted]) == 1


@pytest.mark.parametrize("answer", ["", ".", "dark red", "red circle", "re d", "reds"])
def test_other_texts(answer: str) -> None:
    assert metrics.score("exact", answer, ["red"]) == 0


@given(COORDINATES, COORDINATES)
def test_boxes(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    answer, accepted = f"It is at {list(one)}.", str(list(other))
    right = metrics.score("iou@0.5", answer, [accepted])
    assert metrics.score("iou@0.5", answer, [str(list(one))]) == 1
    assert metrics.score("iou@0.5", accepted, [answer]) == right
    cells = [{(x, y) for x in range(a, c) for y in range(b, d)} for a, b, c, d in (one, other)]
    shared = len(cells[0] & cells[1]) / len(cells[0] | cells[1])
    assert right == (shared > 0.5)
    assert metrics.score("iou", answer, [accepted]) == pytest.approx(shared)


@pytest.mark.parametrize(
    "answer",
    ["", "[]", "10, 20, 30, 40", "[10, 20, 30]", "[10, 20, 10, 40]", "[30, 40, 10, 20]", "[a]"],
)
def test_no_boxes(answer: str) -> None:
    for metric in ("iou", "iou@0.5"):
        assert metrics.score(metric, answer, ["[10, 20, 30, 40]"]) == 0


def test_a_box_may_have_decimals_and_half_is_not_enough() -> None:
    assert metrics.score("iou@0.5", "[0.5, 0, 10.0, 10]", ["[0, 0, 10, 10]"]) == 1
    assert metrics.score("iou@0.5", "[0, 0, 10, 5]", ["[0, 0, 10, 10]"]) == 0


@given(st.data(), NAMES)
def test_a_list_is_right_in_any_order(data: st.DataObject, parts: list[str]) -> None:
    shuffled = data.draw(st.permutations(parts))
    assert metrics.score("mentions", sentence(shuffled), [sentence(parts)]) == 1
    assert len(metrics.mentions(sentence(parts))) == len(parts)


@given(NAMES)
def test_one_mention_too_many_or_too_few_costs(parts: list[str]) -> None:
    more = sentence([*parts, "a dog"])
    expected = len(parts) / (len(parts) + 1)
    assert metrics.score("mentions", more, [sentence(parts)]) == pytest.approx(expected)
    assert metrics.score("mentions", sentence(parts), [more]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("a blue star, A CAT and the red circle", 1),
        ("There are a red circle, a cat, and a blue star.", 1),
        ("There is a red circle, a dog and a blue star.", 2 / 3),
        ("There is a cat and a cat.", 1 / 3),
        ("", 0),
    ],
)
def test_mentions(answer: str, expected: float) -> None:
    accepted = ["There is a red circle, a cat and a blue star."]
    assert metrics.score("mentions", answer, accepted) == pytest.approx(expected)


def test_russian_mentions() -> None:
    accepted = ['Здесь красный круг, чёрная кошка и слово "Соль и перец".']
    answer = "На картинке слово «соль и перец», красный круг и черная кошка"
    assert metrics.score("mentions", answer, accepted) == 1


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("It is a red circle.", "red", 1),
        ("The answer: 10.", "10", 1),
        ("There are 100.", "10", 0),
        ("reddish", "red", 0),
        ("RED", '"red".', 1),
        ("C++", "c++", 1),
        ("a dark blue car", "blue car", 1),
        ("", "red", 0),
    ],
)
def test_contains(answer: str, accepted: str, expected: int) -> None:
    assert metrics.score("contains", answer, ["something else", accepted]) == expected


# The scores that the official evaluation code gives (github.com/GT-Vision-Lab/VQA, commit a013f00,
# PythonEvaluationTools/vqaEvaluation/vqaEval.py): an answer, how many of ten people gave which answer, score.
VQA = [
    ("yes", {"yes": 10}, 1.0),
    ("yes", {"yes": 3, "no": 7}, 0.9),
    ("yes", {"yes": 2, "no": 8}, 0.6),
    ("yes", {"yes": 1, "no": 9}, 0.3),
    ("maybe", {"yes": 5, "no": 5}, 0.0),
    ("The two dogs.", {"2 dogs": 4, "dogs": 6}, 1.0),
    ("none", {"0": 9, "one": 1}, 1.0),
    ("Dont walk", {"don't walk": 8, "stop": 2}, 1.0),
    ("1,000", {"1000": 5, "1": 5}, 1.0),
    ("blue/green", {"blue green": 4, "blue": 6}, 1.0),
    ("wi-fi", {"wifi": 5, "wi fi": 5}, 1.0),
    ("3.5 m.", {"3.5 m": 5, "3 m": 5}, 1.0),
    ("U.S.A.", {"usa": 6, "us": 4}, 1.0),
    ("red , white", {"red white": 4, "red": 6}, 1.0),
    ("Yes", {"yes": 10}, 0.0),
    ("a cat", {"cat": 10}, 0.0),
    ("what?!", {"what": 4, "no": 6}, 1.0),
    ("line\nbreak", {"line break": 4, "x": 6}, 1.0),
    ("somebody'd go", {"somebodyd go": 4, "x": 6}, 1.0),
    ("ten", {"10": 3, "ten": 2, "11": 5}, 1.0),
    ("couldnt've", {"couldn't've": 4, "x": 6}, 1.0),
    ("Im", {"I'm": 5, "im": 5}, 1.0),
]


@pytest.mark.parametrize(("answer", "people", "expected"), VQA)
def test_vqa_accuracy_is_that_of_the_official_code(
    answer: str, people: dict[str, int], expected: float
) -> None:
    given = [text for text, count in people.items() for _ in range(count)]
    assert metrics.score("vqa_accuracy", answer, given) == pytest.approx(expected)


TEXTS = st.text("abcAB 1é", max_size=9)


@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_anls_is_that_of_a_library(answer: str, accepted: list[str]) -> None:
    assert metrics.score("anls", answer, accepted) == pytest.approx(
        anls_score(tuple(accepted), answer)
    )


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("abcdef", 1),
        (" ABC  DEF", 1 - 1 / 7),  # one space more
        ("abcdex", 5 / 6),
        ("abcxyz", 0.5),
        ("abwxyz", 0),
        ("", 0),
    ],
)
def test_anls_by_hand(answer: str, expected: float) -> None:
    assert metrics.score("anls", answer, ["abcdef"]) == pytest.approx(expected)
