"""The built-in model: it answers as its checkpoint does, and it looks at the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgevlm import VLM
from edgevlm.bundle import DEFAULT_MODEL, Bundle
from edgevlm.export.pipeline import export
from training import evaluate, questions, scenes

CHECKPOINT = Path(__file__).parent.parent / "training" / "nano"


@pytest.fixture(scope="module")
def nano() -> Iterator[VLM]:
    with VLM.from_pretrained() as vlm:
        yield vlm


def test_it_ships_small_and_whole() -> None:
    bundle = Bundle.open(DEFAULT_MODEL)
    bundle.check_hashes()
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) < 20e6
    assert list(bundle.manifest.vision.files) == ["int8"]
    assert list(bundle.manifest.decoder.files) == ["q8_0"]
    assert bundle.manifest.parity is not None and not bundle.manifest.parity.drift_allowed


def test_it_is_right_about_scenes_it_has_not_seen(nano: VLM) -> None:
    """The bar that the model card promises, per question type, with the files that ship."""
    asked = evaluate.items(per_type=100, seed=90_001)
    scored = evaluate.score(asked, lambda image, question: nano.ask(image, question).text)
    assert set(scored.right) == set(questions.TYPES)
    assert min(scored.right.values()) >= 0.9, scored.right


def test_another_picture_gets_another_answer(nano: VLM) -> None:
    """The same questions with the picture of the next item: mostly other answers, and wrong ones."""
    asked = [
        item for item in evaluate.items(per_type=20, seed=90_002) if item.question.type != "exists"
    ]
    pictures = [item.image for item in asked]
    right = [nano.ask(item.image, item.question.text).text for item in asked]
    wrong = [
        nano.ask(picture, item.question.text).text
        for item, picture in zip(asked, [*pictures[1:], pictures[0]], strict=True)
    ]
    assert np.mean([a != b for a, b in zip(right, wrong, strict=True)]) > 0.7


def test_a_conversation_goes_on_about_the_same_picture(nano: VLM) -> None:
    rng = np.random.default_rng(90_003)
    right: list[bool] = []
    while len(right) < 20:
        scene = scenes.sample(rng)
        first = questions.ask("describe", scene, rng)
        second = questions.ask("count", scene, rng)
        if first is None or second is None:
            continue
        chat = nano.chat()
        chat.send(first.text, images=[scenes.draw(scene)])
        answer = chat.send(second.text)
        assert answer.stats.encoded_tiles == 0
        right.append(questions.is_right(second, answer.text))
    assert np.mean(right) >= 0.8


def test_the_exported_text_is_the_checkpoints(tmp_path: Path) -> None:
    """Greedy text of transformers in float32 and of the fp32 and f16 bundle, on 50 scenes."""
    export(CHECKPOINT, tmp_path / "nano", vision=("fp32",), decoder=("f16",), progress=False)
    asked = list(evaluate.items(per_type=-(-50 // len(questions.TYPES)), seed=90_004))
    assert len(asked) >= 50
    pairs: list[tuple[Image.Image, str]] = [(item.image, item.question.text) for item in asked]
    checkpoint = evaluate.Checkpoint(CHECKPOINT)
    theirs = [checkpoint.answers([pair])[0] for pair in pairs]
    with VLM.from_pretrained(tmp_path / "nano") as vlm:
        ours = [vlm.ask(image, question).text for image, question in pairs]
    assert ours == theirs
