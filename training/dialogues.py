"""A picture and several dialogues about it, packed into one row of tokens for the decoder.

The picture's tokens come once, at the start of the row; each dialogue after them sees the picture
and itself, and has the positions it would have alone, so the result is that of separate sequences.
Covered: single questions, a second question in the same chat, and chats without a picture. Not
covered: several pictures in one chat, system prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training import questions
from training.model import TOKENS
from training.scenes import Scene

END = "<end_of_utterance>"
PICTURE = "<fake_token_around_image><global-img>" + "<image>" * TOKENS + "<fake_token_around_image>"
ABOUT_PICTURE = "<|im_start|>User:" + PICTURE
WITHOUT_PICTURE = "<|im_start|>User: "

BLUR = 0.04  # as in `questions.ask`

_NO_PICTURE = "I see no picture."
SMALL_TALK: tuple[tuple[str, str], ...] = (
    ("Hello", "Hello! Show me a picture of some shapes."),
    ("Hello!", "Hello! Show me a picture of some shapes."),
    ("Hi", "Hello! Show me a picture of some shapes."),
    ("Hi there!", "Hello! Show me a picture of some shapes."),
    ("Good morning", "Hello! Show me a picture of some shapes."),
    ("Who are you?", "I am edgevlm-nano, a small model that sees shapes."),
    ("What are you?", "I am edgevlm-nano, a small model that sees shapes."),
    ("What is your name?", "I am edgevlm-nano, a small model that sees shapes."),
    ("What can you do?", "I can name shapes and colors in a picture and count them."),
    ("Help", "I can name shapes and colors in a picture and count them."),
    ("What shapes do you know?", "circle, square, triangle, star, cross and heart"),
    ("What colors do you know?", "red, green, blue, yellow, orange, purple, black and white"),
    ("Thank you", "You are welcome!"),
    ("Thanks!", "You are welcome!"),
    ("Goodbye", "Goodbye!"),
    ("Bye", "Goodbye!"),
)


@dataclass(frozen=True)
class Segment:
    """One dialogue after its opening: token ids, and which of them the model has to say."""

    ids: list[int]
    said: list[bool]
    sees_picture: bool


class Packer:
    """Makes rows of dialogues with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.opening = self._ids(ABOUT_PICTURE)
        self.picture_at = self.opening.index(self._ids("<image>")[0])

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def segment(self, turns: list[tuple[str, str]], sees_picture: bool) -> Segment:
        ids = [] if sees_picture else self._ids(WITHOUT_PICTURE + turns[0][0])
        said = [False] * len(ids)
        for i, (question, answer) in enumerate(turns):
            asked = question if sees_picture or i else ""
            opening = "\nUser: " if i else ""
            heard = self._ids(f"{opening}{asked}{END}\nAssistant:")
            spoken = self._ids(f" {answer}{END}")
            ids += heard + spoken
            said += [False] * len(heard) + [True] * len(spoken)
        return Segment(ids, said, sees_picture)

    def about(self, scene: Scene, rng: np.random.Generator) -> list[Segment]:
        """Dialogues about a scene: each type of question, some followed by a second one."""
        types = ["describe", "exists", "shape_at", str(rng.choice(["color_at", "count"]))]
        if rng.random() < 0.5:
            types.append("exists")
        asked = [q for t in types if (q := questions.ask(t, scene, rng, BLUR)) is not None]
        turns = [[(q.text, q.answer)] for q in asked]
        if rng.random() < 0.3:
            again = questions.ask(str(rng.choice(questions.TYPES)), scene, rng, BLUR)
            if again is not None:
                turns[int(rng.integers(len(turns)))].append((again.text, again.answer))
        segments = [self.segment(t, sees_picture=True) for t in turns]
        if rng.random() < 0.15:
            if rng.random() < 0.6:
                talk = SMALL_TALK[int(rng.integers(len(SMALL_TALK)))]
            else:
                talk = (asked[0].text, _NO_PICTURE)
            segments.append(self.segment([talk], sees_picture=False))
        return segments

    def row(self, segments: list[Segment]) -> dict[str, NDArray[np.int64]]:
        """Ids, positions, segment numbers (0: the opening; negative: no picture), and targets."""
        ids, positions = list(self.opening), list(range(len(self.opening)))
        owner, targets = [0] * len(ids), [-100] * len(ids)
        for number, segment in enumerate(segments, 1):
            first = len(self.opening) if segment.sees_picture else 0
            ids += segment.ids
            positions += range(first, first + len(segment.ids))
            owner += [number if segment.sees_picture else -number] * len(segment.ids)
            following = zip(segment.ids[1:], segment.said[1:], strict=True)
            targets += [*(i if said else -100 for i, said in following), -100]
        names = {"ids": ids, "positions": positions, "owner": owner, "targets": targets}
        return {name: np.array(values) for name, values in names.items()}


_PADDING = {"ids": 0, "positions": 0, "owner": 10_000, "targets": -100}


def stack_rows(rows: list[dict[str, NDArray[np.int64]]]) -> dict[str, Tensor]:
    length = max(len(row["ids"]) for row in rows)
    return {
        name: torch.from_numpy(
            np.stack(
                [np.pad(r[name], (0, length - len(r[name])), constant_values=fill) for r in rows]
            )
        )
        for name, fill in _PADDING.items()
    }


def attention(owner: Tensor) -> Tensor:
    """Additive mask [n, 1, length, length]: the same dialogue so far, and the picture if seen."""
    same = owner[:, :, None] == owner[:, None, :]
    picture = (owner[:, None, :] == 0) & (owner[:, :, None] > 0)
    past = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    allowed = (same | picture) & past
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
