"""Tests of controls and reports, of the test set and question files, and of ``edgevlm eval``."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edgevlm.errors import InputError
from edgevlm.evaluation import dataset, metrics, report, runner, test_set
from edgevlm.evaluation.dataset import Item, LazyImage
from edgevlm.evaluation.intervals import Share, wilson
from edgevlm.evaluation.runner import Conversation
from edgevlm.scenes import drawings

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "training" / "nano"
SHAPES = str(REPOSITORY / "examples" / "shapes.png")


def plain(name: str) -> LazyImage:
    """Return an image whose color is the number that is its name."""
    return LazyImage(name, lambda: Image.new("RGB", (8, 6), (int(name), 0, 0)))


def made(count: int, task: str = "all") -> list[Item]:
    """Return items whose answers are the names of their images."""
    return [
        Item(task, (plain(str(i)),), ("Which?",), (str(i),), "exact", task) for i in range(count)
    ]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.sampled_from("0123"), max_size=2))))
def test_swapped_images_are_others_of_the_same_task(rows: list[tuple[str, list[str]]]) -> None:
    items = [
        Item(row, tuple(map(plain, names)), ("?",), ("x",), "exact", row) for row, names in rows
    ]
    found = runner.swap_images(dict(enumerate(items)))
    assert len(set(found.values())) == len(found)
    for one, other in found.items():
        names = [[image.name for image in items[i].images] for i in (one, other)]
        assert items[one].task == items[other].task
        assert len(names[0]) == len(names[1]) > 0
        assert names[0] != names[1]


@given(st.integers(2, 50))
def test_every_item_with_its_own_image_gets_another_image(count: int) -> None:
    found = runner.swap_images(dict(enumerate(made(count))))
    assert sorted(found) == sorted(found.values()) == list(range(count))
    assert all(one != other for one, other in found.items())


def test_several_questions_about_one_image_all_get_another_image() -> None:
    items = [replace(item, turns=(turn,)) for item in made(3) for turn in "abcd"]
    assert len(runner.swap_images(dict(enumerate(items)))) == len(items)


def test_the_first_items_of_each_task_in_their_order() -> None:
    items = [*made(3, "a"), *made(2, "b"), *made(1, "a")]
    assert list(runner.first_per_task(items, 2)) == [0, 1, 3, 4]


def test_chance_is_the_best_fixed_answer_of_each_question_type() -> None:
    def item(question_type: str, answer: str, metric: str = "exact") -> Item:
        return Item("all", (), ("?",), (answer,), metric, question_type)

    words = [item("a", answer) for answer in ("red", "Red.", "blue", "green")]
    assert report.chance(words) == 0.5
    assert report.chance([*words, item("b", "1"), item("b", "2")]) == 0.5
    assert report.chance([replace(one, chance=0.75) for one in words]) == 0.75
    boxes = [
        item("c", answer, "iou@0.5")
        for answer in ("[0, 0, 9, 9]", "[0, 0, 9, 8]", "[50, 0, 90, 9]")
    ]
    assert report.chance(boxes) == pytest.approx(2 / 3)
    lists = [item("d", answer, "mentions") for answer in ("a cat", "a cat and a dog", "an owl")]
    assert report.chance(lists) == pytest.approx(0.5)


class Looking:
    """A model that reads the number off the image."""

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        assert len(conversations) <= runner.BATCH_SIZE
        return [str(int(np.asarray(one.images[0])[0, 0, 0])) for one in conversations]


class Blind:
    """A model that answers from the text alone and never looks."""

    def __init__(self, say: Callable[[tuple[str, ...]], str]) -> None:
        self.say = say

    def answer(self, conversations: Sequence[Conversation]) -> list[str]:
        return [self.say(one.turns) for one in conversations]


def only(answered: Sequence[runner.Answered]) -> report.TaskResult:
    (result,) = report.task_results(answered)
    return result


def test_a_model_that_looks_is_grounded() -> None:
    done: list[int] = []
    result = only(runner.run(Looking(), made(40), progress=done.append))
    assert done == [16, 32, 40]
    assert result.right.share == 1
    assert result.grounding is not None
    assert result.grounding.items == 40
    assert result.grounding.right_with_other.share == result.grounding.right_with_grey.share == 0
    assert result.grounding.changed == 1
    assert result.grounding.verdict == "grounded"


def test_a_fixed_answer_is_not_above_chance() -> None:
    result = only(runner.run(Blind(lambda turns: "7"), made(40)))
    assert result.grounding is not None
    assert (
        result.right.share
        == result.grounding.right_with_other.share
        == result.grounding.chance
        == 1 / 40
    )
    assert result.grounding.changed == 0
    assert result.grounding.verdict == "not above chance"


def test_a_model_that_knows_the_answer_from_the_question_is_not_grounded() -> None:
    items = [replace(item, turns=(item.answers[0],)) for item in made(40)]
    result = only(runner.run(Blind(lambda turns: turns[-1]), items))
    assert result.right.share == 1
    assert result.grounding is not None
    assert result.grounding.verdict == "not grounded"


@pytest.mark.parametrize(
    ("right", "other", "grey", "verdict"),
    [
        (90, 30, 25, "grounded"),
        (90, 50, 25, "not grounded"),
        (90, 25, 50, "not grounded"),
        (30, 25, 25, "not above chance"),
    ],
)
def test_verdict(right: int, other: int, grey: int, verdict: str) -> None:
    a, b, c = (Share(n / 100, *wilson(n, 100)) for n in (right, other, grey))
    assert report.Grounding(100, a, b, c, chance=0.25, changed=1).verdict == verdict


def test_tasks_without_other_images_have_no_grounding() -> None:
    items = [replace(item, images=(plain("1"),)) for item in made(3)]
    answered = runner.run(Blind(lambda turns: "1"), items)
    assert only(answered).grounding is None
    assert "Grounding is not measured" in report.markdown(answered)


@pytest.fixture(scope="module")
def generated() -> list[Item]:
    return list(test_set.items(2))


def test_the_test_set_is_the_same_each_time(generated: list[Item]) -> None:
    smaller = list(test_set.items(1))
    assert [item.task for item in smaller] == [row.name for row in test_set.TASKS]
    for one, other in zip(smaller, generated[::2], strict=True):
        assert one.turns == other.turns
        assert one.answers == other.answers
        images = [[p.load().tobytes() for p in item.images] for item in (one, other)]
        assert images[0] == images[1]


def test_the_test_set_has_every_skill_and_what_training_never_showed(
    generated: list[Item],
) -> None:
    rows = {row.name: row for row in test_set.TASKS}
    assert {"name", "name (ru)", "refuse", "refuse (ru)"} <= set(rows)
    assert rows["name, style never trained on"].scene_options["styles"] == (drawings.UNSEEN_STYLE,)
    assert rows["phrasings never trained on"].unseen_phrasing
    assert all(
        row.scene_options["unseen_words"] for name, row in rows.items() if name.startswith("read")
    )
    assert {len(item.images) for item in generated} == {1, 2}
    for item in generated:
        assert metrics.score(item.metric, item.answers[0], item.answers) == 1
        for image in item.images:
            assert all(160 <= side <= 640 for side in image.load().size)


def test_what_is_written_is_read_again(generated: list[Item], tmp_path: Path) -> None:
    items = [
        item
        for item in generated
        if item.task in ("count", "two_pictures", "many_turns (ru)", "refuse")
    ]
    assert [bool(item.choices) for item in items] == [True] * 2 + [False] * 6
    assert dataset.write(tmp_path / "set", items) == len(items) == 8
    again = dataset.read(tmp_path / "set" / dataset.FILE_NAME)
    for one, other in zip(items, again, strict=True):
        assert replace(one, images=()) == replace(other, images=())
        images = [[p.load().tobytes() for p in item.images] for item in (one, other)]
        assert images[0] == images[1]
    with pytest.raises(InputError, match="is not empty"):
        dataset.write(tmp_path / "set", items)


def test_images_by_address(tmp_path: Path) -> None:
    file = BytesIO()
    Image.new("RGB", (3, 2), (1, 2, 3)).save(file, "PNG")
    (tmp_path / "a b.png").write_bytes(file.getvalue())
    uri = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    images = ["a b.png", (tmp_path / "a b.png").as_uri(), uri]
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"turns": ["Q?"], "answers": ["red"], "images": images}))
    (item,) = dataset.read(path)
    assert [image.load().getpixel((2, 1)) for image in item.images] == [(1, 2, 3)] * 3


def test_the_right_choice_is_what_the_metric_scores_best(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    people = ["red"] * 6 + ["orange"] * 2 + ["pink"] * 2
    lines: list[dict[str, Any]] = [
        {"answers": ["Red."], "choices": ["blue", "red", "green"]},
        {"answers": people, "metric": "vqa_accuracy", "choices": ["orange", "blue", "red"]},
    ]
    path.write_text("".join(json.dumps({"turns": ["Color?"]} | line) + "\n" for line in lines))
    found = [item.choice_scores() for item in dataset.read(path)]
    assert found[0] == [0, 1, 0]
    assert 0 == found[1][1] < found[1][0] < found[1][2] == 1


def test_fields_may_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('\ufeff{"turns": ["1 + 1?\u2028"], "answers": ["2"]}\r\n\n', encoding="utf-8")
    assert dataset.read(path) == [Item("all", (), ("1 + 1?\u2028",), ("2",), "exact", "all")]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"task": 3}, "task: must be a string that is not empty, is 3"),
        ({"images": "a.png"}, "images: must be a list of one or more strings, is 'a.png'"),
        ({"images": ["missing.png"]}, "images: no image at"),
        ({"images": ["x" * 5000]}, "images: no image at"),
        ({"turns": []}, "turns: must be a list"),
        ({"turns": [" "]}, "turns: must hold strings that are not empty, holds ' '"),
        ({"turns": None}, "turns: must be a list"),
        ({"answers": "red"}, "answers: must be a list"),
        ({"answers": ["..."]}, "answers: the metric 'exact' gives '...' itself no score"),
        ({"metric": "iou"}, "answers: the metric 'iou' gives 'red' itself no score"),
        (
            {"metric": "vqa_accuracy"},
            "answers: the metric 'vqa_accuracy' gives 'red' itself no score",
        ),
        (
            {"metric": "taste"},
            "metric: must be one of exact, contains, vqa_accuracy, anls, iou, iou@0.5",
        ),
        ({"question_type": ""}, "question_type: must be a string"),
        ({"chance": 2}, "chance: must be a number from 0 to 1, is 2"),
        ({"question": "?"}, "question: unknown field; the fields are task, images"),
        ({"choices": "red"}, "choices: must be a list of one or more strings, is 'red'"),
        ({"choices": ["red"]}, "choices: must be at least two different strings, are ['red']"),
        ({"choices": ["red", " red"]}, "choices: must be at least two different strings"),
        (
            {"choices": ["green", "blue"]},
            "choices: the metric 'exact' must score one of them best, the scores of "
            "['green', 'blue'] are [0.0, 0.0]",
        ),
        (
            {"choices": ["red", "Red.", "blue"]},
            "choices: the metric 'exact' must score one of them best",
        ),
        (
            {"choices": ["red", "blue"], "turns": ["Is it a star?", "What color is it?"]},
            "choices: need a question of one turn, turns has 2",
        ),
    ],
)
def test_bad_lines_are_named(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    good = {"images": [SHAPES], "turns": ["What color is it?"], "answers": ["red"]}
    path.write_text(f"{json.dumps(good)}\n{json.dumps(good | change)}\n")
    with pytest.raises(InputError) as raised:
        dataset.read(path)
    assert str(raised.value).startswith(f"{path}, line 2: {complaint}")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "has no questions"),
        (b"[]", "line 1: must be a JSON object, is []"),
        (b"{", "line 1: Expecting"),
        (b'{"turns": ["?"]}', "line 1: answers: missing"),
        (b"\xff", "cannot read the questions"),
    ],
)
def test_bad_files_are_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as raised:
        dataset.read(path)
    assert complaint in str(raised.value)
    assert str(path) in str(raised.value)


def eval_(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edgevlm", "eval", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_eval_of_the_built_in_model(tmp_path: Path) -> None:
    done = eval_("edgevlm-nano", "--items", "2", "--json", str(tmp_path / "result.json"))
    assert done.returncode == 0
    assert "edgevlm-nano: 50 of 50 items" in done.stderr
    names = [line.split("|")[1].strip() for line in done.stdout.splitlines() if "|" in line]
    rows = [row.name for row in test_set.TASKS]
    assert [name for name in names if name in rows] == 2 * rows
    assert "\nGrounded: " in done.stdout
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(tmp_path.iterdir()) == [tmp_path / "result.json"]
    assert (result["model"], result["seed"]) == ("edgevlm-nano", test_set.SEED)
    assert "edgevlm" in result["versions"]
    assert len(result["answers"]) == 50
    assert all("said_with_other" in answer for answer in result["answers"])


@pytest.mark.slow  # and needs PyTorch
def test_eval_of_a_question_file_with_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    square = str(REPOSITORY / "examples" / "square.png")
    items = [
        {"images": [SHAPES], "turns": ["How many shapes are there?"], "answers": ["3"]},
        {"images": [square], "turns": ["What color is it?", "What shape is it?"], "answers": ["x"]},
        {"task": "none", "turns": ["What color is it?"], "answers": ["x"]},
        {"task": "two", "images": [SHAPES, square], "turns": ["What is it?"], "answers": ["x"]},
        {"task": "two", "images": [square, SHAPES], "turns": ["What is it?"], "answers": ["x"]},
    ]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    out = tmp_path / "result.json"
    done = eval_("--questions", str(path), "--reference", str(CHECKPOINT), "--json", str(out))
    assert done.returncode == 0, done.stderr
    assert "difference, points" in done.stdout
    assert "KL divergence, nats" in done.stdout
    result = json.loads(out.read_text(encoding="utf-8"))
    assert [row["name"] for row in result["tasks"]] == ["all", "none", "two"]
    assert [row["grounding"] is not None for row in result["tasks"]] == [True, False, True]
    assert result["seed"] is None
    for answer in result["answers"]:
        assert answer["said"]
        assert answer["reference_said"]
    assert result["answers"][1]["said"] == result["answers"][1]["reference_said"]


def test_eval_writes_its_test_set(tmp_path: Path) -> None:
    done = eval_("--items", "1", "--write", str(tmp_path / "set"))
    assert (done.returncode, done.stdout) == (0, "")
    assert len(dataset.read(tmp_path / "set" / "questions.jsonl")) == len(test_set.TASKS)


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["--items", "0"], 2, "must be a positive integer, is 0"),
        (["--questions", "a", "--write", "b"], 2, "not allowed with"),
        (["--questions", "missing.jsonl"], 1, "cannot read the questions in missing.jsonl"),
        (["--write", "set", "--json", "x"], 1, "--write asks nothing"),
        (["--json", "missing/x.json"], 1, "the folder 'missing' does not exist"),
        (["--reference-vision", "fp32"], 1, "there is no reference to choose precisions of"),
        (["--items", "1", "--reference", "missing"], 1, "no model 'missing'"),
        (
            ["--items", "1", "--reference", "edgevlm-nano", "--reference-decoder", "q2_k"],
            1,
            "the bundle has no decoder in 'q2_k'",
        ),
        (["--items", "1", "no-such-model"], 1, "no model 'no-such-model'"),
    ],
)
def test_wrong_usage_of_eval(arguments: list[str], code: int, complaint: str) -> None:
    done = eval_(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr
