"""Validation of a model in training: figures for each skill, on scenes that training never sees.

An item is right if greedy decoding, given the true answer so far (teacher forcing), predicts each token.
Generation would give the same, apart from equally good wordings. Boxes must have the same digits, which is
much stricter than overlap. The test set is another one, see `edgevlm eval`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import SmolVLMForConditionalGeneration

from edgevlm.scenes import composition, questions
from edgevlm.scenes.pairs import sample_pair
from training.data import SHAPES, SIDES, draw_tiles, normalize
from training.decoding import decode
from training.dialogues import Packer, stack_rows
from training.model import encode_images

SEED = 880_000
SHOWN = 2  # sample answers per skill


class Validation:
    """Fixed items of each skill; English and Russian take turns."""

    def __init__(self, packer: Packer, tokenizer: Any, per_skill: int) -> None:
        self._packer, self._tokenizer = packer, tokenizer
        self._sets: dict[str, tuple[dict[str, Tensor], list[str]]] = {}
        for number, skill in enumerate(questions.SKILLS):
            rng = np.random.default_rng([SEED, number])
            shown: list[composition.Scene] = []
            rows: list[dict[str, Any]] = []
            questions_asked: list[str] = []
            while len(rows) < per_skill:
                language = questions.LANGUAGES[len(rows) % 2]
                if skill == "two_pictures":
                    pair = sample_pair(rng, sides=SIDES, shapes=SHAPES)
                    question = questions.ask_pair(pair, rng, language)
                    seen = [pair.first, pair.second]
                else:
                    layouts = questions.LAYOUTS_FOR[skill]
                    layout = layouts[int(rng.integers(len(layouts)))]
                    seen = [composition.sample(rng, layout, SIDES, shapes=SHAPES)]
                    question = questions.ask(skill, seen[0], rng, language)
                if question is None:
                    continue
                turns = [(turn.question, turn.answer) for turn in question.turns]
                rows.append(packer.row([packer.segment(turns, len(seen))]))
                shown += seen
                questions_asked.append(question.turns[-1].question)
            self._sets[skill] = draw_tiles(shown) | stack_rows(rows), questions_asked

    @torch.no_grad()
    def run(self, model: SmolVLMForConditionalGeneration) -> dict[str, Any]:
        """Return loss, share of right answers per skill, and sample answers."""
        model.eval()
        right: dict[str, float] = {}
        losses: list[float] = []
        samples: list[str] = []
        for skill, (batch, questions_asked) in self._sets.items():
            tokens = encode_images(model, normalize(batch["tiles"]))["tokens"]
            at = self._packer.image_positions(len(tokens) // len(batch["ids"]))
            logits: Tensor = model.lm_head(decode(model, tokens, batch, at).last_hidden_state)
            targets = batch["targets"]
            wanted = targets >= 0
            losses.append(float(functional.cross_entropy(logits[wanted], targets[wanted])))
            chosen = logits.argmax(-1)
            marks = []
            for i in range(len(targets)):
                last = self._last_answer(wanted[i])
                marks.append(bool((chosen[i, last] == targets[i, last]).all()))
                if i < SHOWN:
                    answer = self._tokenizer.decode(chosen[i, last].tolist())
                    true = self._tokenizer.decode(targets[i, last].tolist())
                    samples.append(f"{questions_asked[i]} {answer} ({true})")
            right[skill] = round(float(np.mean(marks)), 3)
        model.train()
        return {"validation_loss": round(float(np.mean(losses)), 3), "right": right} | {
            "samples": samples
        }

    @staticmethod
    def _last_answer(wanted: Tensor) -> Tensor:
        """Return the positions of the last answer: the last continuous ones that have a target."""
        places = wanted.nonzero().squeeze(-1)
        breaks = (places.diff() > 1).nonzero().squeeze(-1)
        return places[int(breaks[-1]) + 1 :] if len(breaks) else places
