"""Scores anything that answers questions about pictures, on freshly generated scenes.

`python -m training.evaluate --checkpoint training/nano` scores a checkpoint through transformers,
`--bundle edgevlm-nano` a bundle through edgevlm; both print the share of right answers per question
type as JSON. From elsewhere: `score(items(n), answer)` with any `answer(image, question) -> str`.
Its seeds are never used in training. Not covered: time, memory, free-form judgement; an answer is
right or wrong.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoProcessor, SmolVLMForConditionalGeneration

from training import questions, scenes

SEED = 7_700_000  # training draws from sequences of small numbers instead

Answer = Callable[[Image.Image, str], str]


@dataclass(frozen=True)
class Item:
    scene: scenes.Scene
    image: Image.Image
    question: questions.Question


def items(per_type: int, seed: int = SEED) -> Iterator[Item]:
    """`per_type` questions of each type, each about a picture of its own."""
    for number, type_ in enumerate(questions.TYPES):
        rng = np.random.default_rng([seed, number])
        made = 0
        while made < per_type:
            scene = scenes.sample(rng)
            question = questions.ask(type_, scene, rng)
            if question is not None:
                yield Item(scene, scenes.draw(scene), question)
                made += 1


@dataclass(frozen=True)
class Wrong:
    type: str
    question: str
    expected: str
    said: str


@dataclass(frozen=True)
class Score:
    """The share of right answers per question type, and every wrong one."""

    right: dict[str, float]
    wrong: list[Wrong]


def tally(asked: Iterable[Item], answers: Iterable[str]) -> Score:
    marks: dict[str, list[bool]] = defaultdict(list)
    wrong = []
    for item, said in zip(asked, answers, strict=True):
        question = item.question
        right = questions.is_right(question, said)
        marks[question.type].append(right)
        if not right:
            wrong.append(Wrong(question.type, question.text, question.answer, said))
    return Score({type_: sum(m) / len(m) for type_, m in marks.items()}, wrong)


def score(asked: Iterable[Item], answer: Answer) -> Score:
    """Score one function, a question at a time."""
    asked = list(asked)
    return tally(asked, (answer(item.image, item.question.text) for item in asked))


class Checkpoint:
    """A checkpoint in transformers, float32, greedy, several questions at once."""

    def __init__(self, folder: Path) -> None:
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        model = SmolVLMForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self._model: Any = model.eval()

    @torch.inference_mode()
    def answers(self, pairs: list[tuple[Image.Image, str]]) -> list[str]:
        messages = [
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": image}, {"type": "text", "text": text}],
                }
            ]
            for image, text in pairs
        ]
        inputs = self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
        out = self._model.generate(**inputs, do_sample=False, max_new_tokens=40)
        said = out[:, inputs["input_ids"].shape[1] :]
        return [s.strip() for s in self._processor.batch_decode(said, skip_special_tokens=True)]


def score_checkpoint(folder: Path, per_type: int, batch: int = 32, seed: int = SEED) -> Score:
    checkpoint = Checkpoint(folder)
    asked = list(items(per_type, seed))
    said: list[str] = []
    for first in range(0, len(asked), batch):
        part = asked[first : first + batch]
        said += checkpoint.answers([(item.image, item.question.text) for item in part])
    return tally(asked, said)


def score_bundle(model: str, per_type: int, seed: int = SEED) -> Score:
    """Score a bundle (name, folder or repository) with the precisions that edgevlm chooses."""
    from edgevlm import VLM

    with VLM.from_pretrained(model) as vlm:
        asked = items(per_type, seed)
        return score(asked, lambda image, text: vlm.ask(image, text, max_tokens=40).text)


def main() -> None:
    parser = argparse.ArgumentParser(description="Score a model per question type.")
    scored = parser.add_mutually_exclusive_group(required=True)
    scored.add_argument("--checkpoint", type=Path, help="through transformers")
    scored.add_argument("--bundle", help="through edgevlm")
    parser.add_argument("--per-type", type=int, default=200)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show N wrong answers")
    arguments = parser.parse_args()
    if arguments.bundle:
        result = score_bundle(arguments.bundle, arguments.per_type, seed=arguments.seed)
    else:
        result = score_checkpoint(arguments.checkpoint, arguments.per_type, seed=arguments.seed)
    print(json.dumps({type_: round(share, 4) for type_, share in result.right.items()}))
    for wrong in result.wrong[: arguments.wrong]:
        print(f"{wrong.type}: {wrong.question} {wrong.expected!r}, said {wrong.said!r}")


if __name__ == "__main__":
    main()
