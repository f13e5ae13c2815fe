"""The recipe behind the built-in model runs from end to end, and survives a kill."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgevlm import VLM
from edgevlm.export.pipeline import export
from edgevlm.scenes import composition, drawings, questions
from training import labels, letters
from training.stages import STAGES
from training.tokenizer import build_processor, save_processor

REPOSITORY = Path(__file__).resolve().parents[2]
CHECKPOINT = REPOSITORY / "training" / "nano"


def command(run: Path, stage: str, *options: str) -> list[str]:
    small = ["--batch", "4", "--processes", "2", "--validation", "2", "--report-seconds", "0"]
    return [sys.executable, "-m", "training.train", str(run), stage, *small, *options]


def train(run: Path, stage: str, *options: str) -> None:
    done = subprocess.run(
        command(run, stage, *options), cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def log(run: Path, stage: str) -> list[dict[str, Any]]:
    lines = (run / f"{stage}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_labels_say_what_stands_where() -> None:
    """Each thing's own middle is labelled with its kind, colour and box."""
    rng = np.random.default_rng(5)
    for _ in range(40):
        scene = composition.sample(rng, "mixed")
        found = labels.label(scene, 10)
        assert found.centre.sum() <= len(scene.things)
        for thing in scene.things:
            x, y = scene.center(thing)
            cell = int(y * 10) * 10 + int(x * 10)
            if found.kind[cell] != 1 + labels.KINDS.index(thing.name):
                continue  # covered by another thing, or hollow there
            assert scene.things[found.thing[cell] - 1].name == thing.name
            left, top, right, bottom = thing.box()
            size = [(right - left) / scene.width, (bottom - top) / scene.height]
            same = [t for t in scene.things if t.name == thing.name]
            assert len(same) > 1 or np.allclose(found.box[cell], [x, y, *size], atol=1e-6)
            assert (found.color[cell] >= 0) == (thing.color is not None)


def test_labels_spell_the_words() -> None:
    """Read from left to right, the labels of a level word's row are its letters in order."""
    rng = np.random.default_rng(6)
    spelt = 0
    while spelt < 20:
        scene = composition.sample(rng, "text")
        word = scene.words[0] if scene.words else None
        if word is None or word.angle or word.extent()[0] / scene.width < 0.1 * len(word.text):
            continue
        found = labels.label(scene, 10).letters.reshape(10, 20)
        at = int(scene.center(word)[1] * 10)
        row = found[at]
        seen = [labels.LETTERS[c - 1] for c in row[row > 0]]
        order = labels.label(scene, 10).order.reshape(10, 20)[at]
        assert [word.text[i].lower() for i in order[order >= 0]] == seen
        assert all(letter in word.text.lower() for letter in seen)
        order = [word.text.lower().index(letter) for letter in seen if word.text.count(letter) == 1]
        if len(set(word.text.lower())) == len(word.text):
            assert order == sorted(order)
            spelt += 1


def test_the_tokenizer_can_be_made_again(tmp_path: Path) -> None:
    save_processor(build_processor(), tmp_path)
    made = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    assert made == json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))


def test_what_is_kept_for_the_test_is_never_trained_on() -> None:
    assert drawings.UNSEEN_STYLE not in drawings.STYLES
    assert not set(drawings.UNSEEN_TYPEFACES) & set(drawings.training_typefaces())
    assert not set(drawings.words(unseen=True)) & set(drawings.words(unseen=False))
    assert len(drawings.drawing_names()) >= 120


@pytest.mark.slow
def test_the_whole_recipe_runs_in_minutes(tmp_path: Path) -> None:
    """Every stage for a few steps, then checkpoint, bundle and an answer."""
    run = tmp_path / "run"
    for stage in STAGES:
        train(run, stage, "--images", "48", "--accumulate", "2")
    for stage in (name for name, stage in STAGES.items() if stage.text_data != "none"):
        last = log(run, stage)[-1]
        assert set(last["right"]) == set(questions.SKILLS)
        assert last["samples"]
    aligned = torch.load(run / "align-a.pt", weights_only=True)["model"]
    looked = torch.load(run / "read.pt", weights_only=True)["model"]
    changed = {name for name in aligned if not torch.equal(aligned[name], looked[name])}
    started = {  # by `start_words`
        "model.text_model.embed_tokens.weight",
        "model.text_model.layers.1.self_attn.q_proj.weight",
        "model.text_model.layers.1.self_attn.k_proj.weight",
    }
    assert changed == {"model.connector.modality_projection.proj.weight", *started}
    assert letters.read(run / "polish.pt", scenes_read=5)["word"][0] > 0
    train(run, "polish", "--export", str(tmp_path / "nano"))
    export(
        tmp_path / "nano",
        tmp_path / "bundle",
        vision=("int8",),
        decoder=("q8_0",),
        quick=True,
        progress=False,
    )
    scene = composition.sample(np.random.default_rng(1), "mixed")
    with VLM.from_pretrained(tmp_path / "bundle") as vlm:
        assert vlm.ask(composition.draw(scene), "What is this?", max_tokens=8).stats.answer_tokens


@pytest.mark.slow
def test_a_killed_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    options = ("--images", "4000", "--save-seconds", "0", "--bf16", "--checkpointing")
    running = subprocess.Popen(
        command(tmp_path, "look", *options),
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    state = tmp_path / "look.pt"
    deadline = time.monotonic() + 240
    while not state.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    subprocess.run(["pkill", "-9", "-s", str(running.pid)], check=False)
    running.wait()
    reached = torch.load(state, weights_only=True)["pictures"]
    assert reached > 0
    before = len(log(tmp_path, "look"))
    train(tmp_path, "look", "--images", str(reached + 16))
    after = log(tmp_path, "look")[before:]
    assert [line["pictures"] for line in after] == [reached + 8, reached + 16]
