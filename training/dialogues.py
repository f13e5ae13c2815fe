"""Pictures and several dialogues about them, packed into one row of tokens for the decoder.

The tokens of one or two pictures come once, at the start of the row; each dialogue after them sees
the pictures and itself, and has the positions it would have alone, so the result is that of
separate sequences. Covered: single questions, chats of several turns, two pictures in one message,
and chats without a picture, in English and Russian. Not covered: pictures in later turns, system
prompts.
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
PICTURE = "<fake_token_around_image><global-img>" + "<image>" * TOKENS + "<fake_token_around_image>"
ABOUT_PICTURE = "<|im_start|>User:"  # the pictures follow, then the text without a space
WITHOUT_PICTURE = "<|im_start|>User: "

BLUR = 0.04  # as in `questions.ask`
RUSSIAN = 0.4  # share of the dialogues
# How often each skill is tried; what a scene does not allow is left out.
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
_DIALOGUES = (6, 10)  # per scene; the end is left out
_ROOM = 150  # tokens for a scene's dialogues; rows of like lengths waste little on padding
_PAIR_DIALOGUES = (3, 6)
_AT_MOST = 2  # dialogues of one skill per scene

NO_PICTURE = {"en": "I see no picture.", "ru": "Я не вижу картинки."}

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
    """One dialogue after its opening: token ids, and which of them the model has to say."""

    ids: list[int]
    said: list[bool]
    pictures: int


def _one_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _language(rng: np.random.Generator) -> str:
    return "ru" if rng.random() < RUSSIAN else "en"


def _turns(question: Question) -> list[tuple[str, str]]:
    return [(turn.text, turn.answer) for turn in question.turns]


def _weights(scene: Scene) -> NDArray[np.float64]:
    """`SKILL_WEIGHTS`, moved towards what the scene was laid out for."""
    weights = dict(SKILL_WEIGHTS)
    if len(scene.words) == 1:
        weights["read"] *= 2
    elif scene.words:  # of several words, none is asked about alone
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
    """Makes rows of dialogues with one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._encoder = tokenizer.backend_tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._picture = self._ids(PICTURE)
        self._about = self._ids(ABOUT_PICTURE)
        self._first = len(self._about) + self._picture.index(self._ids("<image>")[0])

    def _ids(self, text: str) -> tuple[int, ...]:
        """Questions and answers come again and again, so what was encoded is kept."""
        ids = self._known.get(text)
        if ids is None:
            if len(self._known) > 100_000:
                self._known.clear()
            ids = tuple(self._encoder.encode(text, add_special_tokens=False).ids)
            self._known[text] = ids
        return ids

    def opening(self, pictures: int) -> list[int]:
        """What the dialogues of a row share; nothing without a picture."""
        return [*self._about, *self._picture * pictures] if pictures else []

    def picture_positions(self, pictures: int) -> list[int]:
        """Where each picture's run of `TOKENS` tokens starts in the opening."""
        return [self._first + i * len(self._picture) for i in range(pictures)]

    def segment(self, turns: Sequence[tuple[str, str]], pictures: int) -> Segment:
        """A chat of questions with their answers."""
        # without a picture, the space of the opening belongs to the first word
        ids: list[int] = [] if pictures else list(self._ids(WITHOUT_PICTURE + turns[0][0]))
        said = [False] * len(ids)
        for i, (question, answer) in enumerate(turns):
            asked = f"\nUser: {question}" if i else question if pictures else ""
            heard = self._ids(f"{asked}{END}\nAssistant:")
            spoken = self._ids(f" {answer}{END}")
            ids += heard + spoken
            said += [False] * len(heard) + [True] * len(spoken)
        return Segment(ids, said, pictures)

    def about(self, scene: Scene, rng: np.random.Generator) -> list[Segment]:
        """About six dialogues on what the scene shows, and now and then one without a picture."""
        wanted = int(rng.integers(*_DIALOGUES))
        draws = np.searchsorted(_weights(scene), rng.random(3 * wanted)).tolist()
        sure = ["read"] if scene.words else []
        tried = [*sure, *(_SKILLS[min(i, len(_SKILLS) - 1)] for i in draws), "describe"]
        asked = self._ask(scene, rng, tried, wanted)
        chats = [_turns(question) for question in asked]
        if len(chats) > 2 and rng.random() < 0.3:
            chats = [chats[0] + chats[1], *chats[2:]]
        if chats and rng.random() < 0.05:
            thanks = THANKS[asked[-1].language]
            chats[-1].append(_one_of(rng, thanks))
        segments = [self.segment(chat, 1) for chat in chats]
        if rng.random() < 0.15:
            segments.append(self._without_picture(asked, rng))
        kept: list[Segment] = []
        room = _ROOM
        for segment in segments:
            if len(segment.ids) <= room or not kept:
                kept.append(segment)
                room -= len(segment.ids)
        return kept

    def _ask(
        self, scene: Scene, rng: np.random.Generator, skills: Sequence[str], wanted: int
    ) -> list[Question]:
        """Different questions of the given skills, in a random order of languages."""
        asked: dict[str, Question] = {}
        often: Counter[str] = Counter()
        for skill in skills:
            if len(asked) == wanted:
                break
            if often[skill] == _AT_MOST:
                continue
            question = questions.ask(skill, scene, rng, _language(rng), blur=BLUR)
            if question is not None:
                often[skill] += 1
                asked.setdefault(question.turns[0].text, question)
        return list(asked.values())

    def _without_picture(self, asked: Sequence[Question], rng: np.random.Generator) -> Segment:
        """Small talk, or a question that would need the picture, or one after the other."""
        language = _language(rng)
        turns = [_one_of(rng, SMALL_TALK[language])]
        if asked and rng.random() < 0.5:
            question = _one_of(rng, asked)
            refused = question.turns[0].text, NO_PICTURE[question.language]
            turns = [*turns, refused] if rng.random() < 0.2 else [refused]
        return self.segment(turns, 0)

    def about_pair(self, pair: Pair, rng: np.random.Generator) -> list[Segment]:
        """Three to five different questions about two pictures."""
        wanted = int(rng.integers(*_PAIR_DIALOGUES))
        asked: dict[str, Question] = {}
        for _ in range(3 * wanted):
            question = questions.ask_pair(pair, rng, _language(rng))
            if question is not None:
                asked.setdefault(question.turns[0].text, question)
            if len(asked) == wanted:
                break
        return [self.segment(_turns(question), 2) for question in asked.values()]

    def captions(self, scene: Scene, rng: np.random.Generator) -> list[Segment]:
        """One or two dialogues that say what is in the picture."""
        skills = ["read"] if scene.words else []
        if scene.things:
            skills.append("name" if len(scene.things) == 1 and rng.random() < 0.5 else "describe")
        rng.shuffle(skills)
        others = ["describe", "point", "name", "yes_no"]
        asked = self._ask(scene, rng, skills, 2) or self._ask(scene, rng, others, 1)
        return [self.segment(_turns(question), 1) for question in asked]

    def row(
        self, segments: Sequence[Segment], pictures: int | None = None
    ) -> dict[str, NDArray[np.int64]]:
        """Ids, positions, segment numbers (0: the opening; negative: no picture), and targets.

        The number of pictures is that of the segments unless given.
        """
        if pictures is None:
            pictures = max((segment.pictures for segment in segments), default=0)
        if any(segment.pictures not in (0, pictures) for segment in segments):
            raise ValueError("the dialogues of a row have to be about the same pictures")
        ids = self.opening(pictures)
        shared = len(ids)
        positions, owner, targets = list(range(shared)), [0] * shared, [-100] * shared
        for number, segment in enumerate(segments, 1):
            first = shared if segment.pictures else 0
            ids += segment.ids
            positions += range(first, first + len(segment.ids))
            owner += [number if segment.pictures else -number] * len(segment.ids)
            following = zip(segment.ids[1:], segment.said[1:], strict=True)
            targets += [*(i if said else -100 for i, said in following), -100]
        names = {"ids": ids, "positions": positions, "owner": owner, "targets": targets}
        return {name: np.array(values, dtype=np.int64) for name, values in names.items()}


_PADDING = {"ids": 0, "positions": 0, "owner": 10_000, "targets": -100}


def stack_rows(rows: Sequence[dict[str, NDArray[np.int64]]]) -> dict[str, Tensor]:
    """Rows with the same number of pictures as one batch, padded to the longest."""
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
