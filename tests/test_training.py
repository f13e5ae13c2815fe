"""The recipe behind the built-in model: its questions are right, and it runs from end to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training import evaluate, questions, scenes
from training.tokenizer import build_processor, save_processor

REPOSITORY = Path(__file__).parent.parent
CHECKPOINT = REPOSITORY / "training" / "nano"


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.sampled_from(questions.TYPES))
def test_answers_follow_from_the_scene(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scene = scenes.sample(rng)
    question = questions.ask(kind, scene, rng)
    assert 1 <= len(scene.shapes) <= scenes.MAX_SHAPES
    if question is None:
        return
    assert questions.is_right(question, question.answer)
    if kind == "count":
        assert question.answer == str(len(scene.shapes))
    elif kind == "color_at":
        assert question.answer in {shape.color for shape in scene.shapes}
    elif kind == "shape_at":
        assert question.answer in {shape.kind for shape in scene.shapes}
    elif kind == "exists":
        assert question.answer in ("yes", "no")
    else:
        assert all(question.answer.count(shape.name) for shape in scene.shapes)


def test_yes_and_no_are_balanced() -> None:
    asked = [item for item in evaluate.items(120) if item.question.type == "exists"]
    assert 0.4 < np.mean([item.question.answer == "yes" for item in asked]) < 0.6


def test_a_list_is_right_in_any_order_and_only_whole() -> None:
    question = questions.Question(
        "describe", "What is in the picture?", "a red circle and a blue star"
    )
    assert questions.is_right(question, "a blue star and a red circle")
    for wrong in (
        "a red circle",
        "a red star and a blue circle",
        "a red circle and a blue star and a blue star",
    ):
        assert not questions.is_right(question, wrong)


def test_the_same_seed_draws_the_same_picture() -> None:
    def pixels(seed: int) -> bytes:
        return scenes.draw(scenes.sample(np.random.default_rng(seed))).tobytes()

    assert pixels(5) == pixels(5) != pixels(6)


def test_the_tokenizer_can_be_made_again(tmp_path: Path) -> None:
    save_processor(build_processor(), tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert made == json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_recipe_runs_is_resumed_and_is_scored(tmp_path: Path) -> None:
    """A few steps of every stage; a second run finds all of them done."""
    command = [sys.executable, "-m", "training.train", str(tmp_path), "--processes", "1"]
    stages = ["--look", "64", "--speak", "48", "--polish", "48"]
    subprocess.run([*command, *stages], cwd=REPOSITORY, check=True, capture_output=True)
    first = (tmp_path / "nano" / "model.safetensors").read_bytes()
    subprocess.run([*command, *stages], cwd=REPOSITORY, check=True, capture_output=True)
    assert (tmp_path / "nano" / "model.safetensors").read_bytes() == first
    score = evaluate.score_checkpoint(tmp_path / "nano", per_type=2)
    assert set(score.right) == set(questions.TYPES)
