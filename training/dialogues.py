"""Sequence packing: images and several dialogues about them in one row of tokens for the decoder.

The tokens of one or two images are at the start of the row. Each dialogue after them attends to the images
and to itself only, and has the positions that it would have alone. So the result equals that of separate
sequences. Dialogues are single questions, chats of several turns, two images in one message, and chats
without an image, in English and Russian. There are no images in later turns and no system prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from edgevlm.scenes import questions
from edgevlm.scenes.composition import Scene
from edgevlm.scenes.pairs import Pair
from edgevlm.scenes.questions import Question
from training.model import TOKENS

T = TypeVar("T")

END = "<end_of_utterance>"
IMAGE_TEXT = (
    "<fake_token_around_image><global-img>" + "<image>" * TOKENS + "<fake_token_around_image>"
)
PREFIX_WITH_IMAGE = "<|im_start|>User:"  # then the images, then the text without a space
PREFIX_WITHOUT_IMAGE = "<|im_start|>User: "

ORDER_NOISE = 0.04  # as in `questions.ask`
RUSSIAN_SHARE = 0.4  # share of the dialogues
# Weight of each skill in the random choice; a question that a scene does not allow is left out.
SKILL_WEIGHTS: dict[str, float] = {
    "name": 0.8,
    "attribute": 1.5,
    "count": 2.4,
    "relation": 1.6,
    "point": 1.2,
    "read": 1.2,
    "yes_no": 1.8,
    "describe": 1.0,
    "many_turns": 1.4,
    "refuse": 1.2,
}
_SKILLS = tuple(SKILL_WEIGHTS)
_DIALOGUES = (6, 10)  # per scene; the end is excluded
_MAX_TOKENS_PER_SCENE = 150  # of all dialogues; rows of similar lengths need little padding
_PAIR_DIALOGUES = (3, 6)
_MAX_PER_SKILL = 2  # dialogues of one skill per scene

NO_IMAGE = {"en": "I see no picture.", "ru": "Я не вижу картинки."}

_HELLO = "Hello! Show me a picture and ask me about it."
_SELF = "I am edgevlm-nano, a small model that sees drawn things, shapes and printed words."
_CAN = "I can name and count things in a picture, say where they are, and read printed words."
_WELCOME = "You are welcome!"
_HELLO_RU = "Здравствуйте! Покажите мне картинку и спросите о ней."
_SELF_RU = "Я edgevlm-nano, маленькая модель, которая видит рисунки, фигуры и печатные слова."
_CAN_RU = "Я называю и считаю предметы на картинке, говорю, где они, и читаю печатные слова."
_WELCOME_RU = "Пожалуйста!"
THANKS: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (("Thank you", _WELCOME), ("Thanks!", _WELCOME), ("Thank you!", _WELCOME)),
    "ru": (("Спасибо", _WELCOME_RU), ("Спасибо!", _WELCOME_RU), ("Благодарю", _WELCOME_RU)),
}
SMALL_TALK: dict[str, tuple[tuple[str, str], ...]] = {
    "en": (
        ("Hello", _HELLO),
        ("Hello!", _HELLO),
        ("hello", _HELLO),
        ("Hi", _HELLO),
        ("Hi there!", _HELLO),
        ("hi", _HELLO),
        ("Good morning", _HELLO),
        ("Who are you?", _SELF),
        ("What are you?", _SELF),
        ("who are you", _SELF),
        ("What is your name?", _SELF),
        ("What can you do?", _CAN),
        ("what can you do", _CAN),
        ("Help", _CAN),
        ("What can I ask?", _CAN),
        ("What shapes do you know?", "circle, square, triangle, star, cross and heart"),
        ("What colors do you know?", "red, green, blue, yellow, orange, purple, black and white"),
        ("Do you speak Russian?", "Yes, English and Russian."),
        ("Goodbye", "Goodbye!"),
        ("Bye", "Goodbye!"),
        *THANKS["en"],
    ),
    "ru": (
        ("Привет", _HELLO_RU),
        ("Привет!", _HELLO_RU),
        ("привет", _HELLO_RU),
        ("Здравствуй", _HELLO_RU),
        ("Здравствуйте!", _HELLO_RU),
        ("Добрый день", _HELLO_RU),
        ("Кто ты?", _SELF_RU),
        ("кто ты", _SELF_RU),
        ("Кто вы?", _SELF_RU),
        ("Как тебя зовут?", _SELF_RU),
        ("Что ты умеешь?", _CAN_RU),
        ("что ты умеешь", _CAN_RU),
        ("Что вы умеете?", _CAN_RU),
        ("Помощь", _CAN_RU),
        ("Какие фигуры ты знаешь?", "круг, квадрат, треугольник, звезда, крест и сердце"),
        (
            "Какие цвета ты знаешь?",
            "красный, зелёный, синий, жёлтый, оранжевый, фиолетовый, чёрный и белый",
        ),
        ("Ты говоришь по-английски?", "Да, по-русски и по-английски."),
        ("До свидания", "До свидания!"),
        ("Пока", "До свидания!"),
        *THANKS["ru"],
    ),
}


@dataclass(frozen=True)
class Segment:
    """One dialogue without the shared prefix: token ids, and which of them are answers."""

    ids: list[int]
    is_answer: list[bool]
    images: int


def _one_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _random_language(rng: np.random.Generator) -> str:
    return "ru" if rng.random() < RUSSIAN_SHARE else "en"


def _turns(question: Question) -> list[tuple[str, str]]:
    return [(turn.question, turn.answer) for turn in question.turns]


def _weights(scene: Scene) -> NDArray[np.float64]:
    """Return cumulative weights of the skills, with more weight for those that fit the layout."""
    weights = dict(SKILL_WEIGHTS)
    if len(scene.words) == 1:
        weights["read"] *= 2
    elif scene.words:  # no question asks about one of several words
        weights["describe"] *= 4
        weights["many_turns"] *= 4
    if len(scene.things) == 1:
        weights["name"] *= 2
        weights["attribute"] *= 2
    repeated = Counter(thing.name for thing in scene.things)
    if max(repeated.values(), default=0) > 1:
        weights["count"] *= 2
    values = np.array(list(weights.values()))
    return np.cumsum(values / values.sum())


class Packer:
    """Builds rows of dialogues with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encoder = tokenizer.backend_tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._image = self._ids(IMAGE_TEXT)
        self._prefix = self._ids(PREFIX_WITH_IMAGE)
        self._first_image_position = len(self._prefix) + self._image.index(self._ids("<image>")[0])

    def _ids(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text; they are cached, since texts repeat often."""
        ids = self._known.get(text)
        if ids is None:
            if len(self._known) > 100_000:
                self._known.clear()
            ids = tuple(self._encoder.encode(text, add_special_tokens=False).ids)
            self._known[text] = ids
        return ids

    def opening(self, images: int) -> list[int]:
        """Return the prefix that the dialogues of a row share; empty without an image."""
        return [*self._prefix, *self._image * images] if images else []

    def image_positions(self, images: int) -> list[int]:
        """Return the positions at which the `TOKENS` tokens of each image start in the prefix."""
        return [self._first_image_position + i * len(self._image) for i in range(images)]

    def segment(self, turns: Sequence[tuple[str, str]], images: int) -> Segment:
        """Return a chat of questions with their answers."""
        # Without an image, the space of the prefix belongs to the first word.
        ids: list[int] = [] if images else list(self._ids(PREFIX_WITHOUT_IMAGE + turns[0][0]))
        is_answer = [False] * len(ids)
        for i, (question, answer) in enumerate(turns):
            asked = f"\nUser: {question}" if i else question if images else ""
            prompt_ids = self._ids(f"{asked}{END}\nAssistant:")
            answer_ids = self._ids(f" {answer}{END}")
            ids += prompt_ids + answer_ids
            is_answer += [False] * len(prompt_ids) + [True] * len(answer_ids)
        return Segment(ids, is_answer, images)

    def dialogues(self, scene: Scene, rng: np.random.Generator) -> list[Segment]:
        """Return about six dialogues about the scene, and sometimes one without an image."""
        wanted = int(rng.integers(*_DIALOGUES))
        draws = np.searchsorted(_weights(scene), rng.random(3 * wanted)).tolist()
        first = ["read"] if scene.words else []
        tried = [*first, *(_SKILLS[min(i, len(_SKILLS) - 1)] for i in draws), "describe"]
        asked = self._ask(scene, rng, tried, wanted)
        chats = [_turns(question) for question in asked]
        if len(chats) > 2 and rng.random() < 0.3:
            chats = [chats[0] + chats[1], *chats[2:]]
        if chats and rng.random() < 0.05:
            thanks = THANKS[asked[-1].language]
            chats[-1].append(_one_of(rng, thanks))
        segments = [self.segment(chat, 1) for chat in chats]
        if rng.random() < 0.15:
            segments.append(self._dialogue_without_image(asked, rng))
        kept: list[Segment] = []
        room = _MAX_TOKENS_PER_SCENE
        for segment in segments:
            if len(segment.ids) <= room or not kept:
                kept.append(segment)
                room -= len(segment.ids)
        return kept

    def _ask(
        self, scene: Scene, rng: np.random.Generator, skills: Sequence[str], wanted: int
    ) -> list[Question]:
        """Return different questions of the given skills, each in a random language."""
        asked: dict[str, Question] = {}
        often: Counter[str] = Counter()
        for skill in skills:
            if len(asked) == wanted:
                break
            if often[skill] == _MAX_PER_SKILL:
                continue
            question = questions.ask(
                skill, scene, rng, _random_language(rng), order_noise=ORDER_NOISE
            )
            if question is not None:
                often[skill] += 1
                asked.setdefault(question.turns[0].question, question)
        return list(asked.values())

    def _dialogue_without_image(
        self, asked: Sequence[Question], rng: np.random.Generator
    ) -> Segment:
        """Return small talk, a question that would need the image, or one after the other."""
        language = _random_language(rng)
        turns = [_one_of(rng, SMALL_TALK[language])]
        if asked and rng.random() < 0.5:
            question = _one_of(rng, asked)
            refused = question.turns[0].question, NO_IMAGE[question.language]
            turns = [*turns, refused] if rng.random() < 0.2 else [refused]
        return self.segment(turns, 0)

    def pair_dialogues(self, pair: Pair, rng: np.random.Generator) -> list[Segment]:
        """Return three to five different questions about two scenes."""
        wanted = int(rng.integers(*_PAIR_DIALOGUES))
        asked: dict[str, Question] = {}
        for _ in range(3 * wanted):
            question = questions.ask_pair(pair, rng, _random_language(rng))
            if question is not None:
                asked.setdefault(question.turns[0].question, question)
            if len(asked) == wanted:
                break
        return [self.segment(_turns(question), 2) for question in asked.values()]

    def captions(self, scene: Scene, rng: np.random.Generator) -> list[Segment]:
        """Return one or two dialogues that describe the scene."""
        skills = ["read"] if scene.words else []
        if scene.things:
            skills.append("name" if len(scene.things) == 1 and rng.random() < 0.5 else "describe")
        rng.shuffle(skills)
        others = ["describe", "point", "name", "yes_no"]
        asked = self._ask(scene, rng, skills, 2) or self._ask(scene, rng, others, 1)
        return [self.segment(_turns(question), 1) for question in asked]

    def row(
        self, segments: Sequence[Segment], images: int | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Return one row of dialogues.

        Args:
            segments: the dialogues.
            images: number of images; None: that of the segments.

        Returns:
            `ids`, `positions`, `owner` (number of the segment; 0: the prefix; negative: a segment without
            an image) and `targets` (-100: no loss), [length] each.
        """
        if images is None:
            images = max((segment.images for segment in segments), default=0)
        if any(segment.images not in (0, images) for segment in segments):
            raise ValueError("all dialogues of a row must be about the same images")
        ids = self.opening(images)
        shared = len(ids)
        positions, owner, targets = list(range(shared)), [0] * shared, [-100] * shared
        for number, segment in enumerate(segments, 1):
            first = shared if segment.images else 0
            ids += segment.ids
            positions += range(first, first + len(segment.ids))
            owner += [number if segment.images else -number] * len(segment.ids)
            following = zip(segment.ids[1:], segment.is_answer[1:], strict=True)
            targets += [*(i if is_answer else -100 for i, is_answer in following), -100]
        names = {"ids": ids, "positions": positions, "owner": owner, "targets": targets}
        return {name: np.array(values, dtype=np.int64) for name, values in names.items()}


_PADDING = {"ids": 0, "positions": 0, "owner": 10_000, "targets": -100}


def stack_rows(rows: Sequence[dict[str, NDArray[np.int64]]]) -> dict[str, Tensor]:
    """Return rows with the same number of images as one batch, padded to the longest."""
    length = max(len(row["ids"]) for row in rows)
    return {
        name: torch.from_numpy(
            np.stack(
                [np.pad(r[name], (0, length - len(r[name])), constant_values=fill) for r in rows]
            )
        )
        for name, fill in _PADDING.items()
    }


def attention_mask(owner: Tensor) -> Tensor:
    """Return the additive mask [n, 1, length, length].

    A token attends to earlier tokens of its dialogue, and to the prefix if the dialogue has an image.
    """
    same = owner[:, :, None] == owner[:, None, :]
    image = (owner[:, None, :] == 0) & (owner[:, :, None] > 0)
    past = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    allowed = (same | image) & past
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
