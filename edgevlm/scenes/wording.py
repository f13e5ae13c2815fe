"""Names, short answers and places in English and Russian, for questions and answers.

`English` and `Russian` have the same methods: articles and plurals, Russian gender, nominative and
genitive. The phrasings need no other Russian case of a thing. Counts are digits.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar

from edgevlm.scenes.drawings import Noun, nouns
from edgevlm.scenes.phrasings_en import ENGLISH, Phrasings
from edgevlm.scenes.phrasings_ru import RUSSIAN

_GENERIC = {
    "shape": Noun("shape", "shapes", "фигура", "фигуры", "фигур", "f"),
    "text": Noun("text", "texts", "текст", "текста", "текстов", "m"),
    "word": Noun("word", "words", "слово", "слова", "слов", "n"),
    "number": Noun("number", "numbers", "число", "числа", "чисел", "n"),
}
_STEMS = {
    "red": "красн",
    "green": "зелён",
    "blue": "син",
    "yellow": "жёлт",
    "orange": "оранжев",
    "purple": "фиолетов",
    "black": "чёрн",
    "white": "бел",
}
_HARD = {
    "nominative": {"m": "ый", "f": "ая", "n": "ое", "p": "ые"},
    "genitive": {"m": "ого", "f": "ой", "n": "ого", "p": "ых"},
    "instrumental": {"m": "ым", "f": "ой", "n": "ым", "p": "ыми"},
}
_SOFT = {
    "nominative": {"m": "ий", "f": "яя", "n": "ее", "p": "ие"},
    "genitive": {"m": "его", "f": "ей", "n": "его", "p": "их"},
    "instrumental": {"m": "им", "f": "ей", "n": "им", "p": "ими"},
}


def color_forms(color: str) -> tuple[str, ...]:
    """Return the name of a color in English, and each Russian form that questions and answers use."""
    ends = _SOFT if color == "blue" else _HARD
    russian = [_STEMS[color] + end for case in ends.values() for end in case.values()]
    return tuple(dict.fromkeys((color, *russian)))


@cache
def noun(name: str) -> Noun:
    """Return the noun of a shape, a drawing, or a general word as "shape" or "text"."""
    return _GENERIC[name] if name in _GENERIC else nouns()[name]


def _article(words: str) -> str:
    return "a" if words.startswith("uni") or words[0] not in "aeiou" else "an"


class English:
    """Questions and answers in English."""

    phrasings: ClassVar[dict[str, Phrasings]] = ENGLISH
    """Phrasings by kind of question."""
    terms: ClassVar[dict[str, str]] = {
        "top left": "top left",
        "top right": "top right",
        "bottom left": "bottom left",
        "bottom right": "bottom right",
        "left": "left",
        "right": "right",
        "above": "above",
        "below": "below",
        "yes": "yes",
        "no": "no",
        "filled": "filled",
        "outlined": "outlined",
        "first": "the first",
        "second": "the second",
        "which first": "first",
        "which second": "second",
    }
    """Fixed words of answers, by their English name."""
    directions: ClassVar[dict[str, str]] = {
        "left": "to the left of",
        "right": "to the right of",
        "above": "above",
        "below": "below",
    }
    """Words for the slot `dir`, by direction."""
    places: ClassVar[dict[str, tuple[str, ...]]] = {
        "top left": ("at the top left", "in the top left corner", "at the upper left"),
        "top right": ("at the top right", "in the top right corner", "at the upper right"),
        "bottom left": ("at the bottom left", "in the bottom left corner", "at the lower left"),
        "bottom right": ("at the bottom right", "in the bottom right corner", "at the lower right"),
    }

    def bare(self, name: str, color: str | None = None) -> str:
        """Return a name without article."""
        return f"{color} {name}" if color else name

    def a(self, name: str, color: str | None = None) -> str:
        """Return a name with the indefinite article: "an owl", "a red star", "scissors"."""
        words = self.bare(name, color)
        return words if noun(name).gender == "p" else f"{_article(words)} {words}"

    def the(self, name: str, color: str | None = None) -> str:
        """Return a name with the definite article."""
        return f"the {self.bare(name, color)}"

    def slots(self, name: str, color: str | None = None) -> dict[str, str]:
        """Return the text for each slot of a phrasing that refers to a thing."""
        many, the = noun(name).gender == "p", self.the(name, color)
        plural = noun(name).plural
        return {
            "a": self.a(name, color),
            "the": the,
            "of": the,
            "many": f"{color} {plural}" if color else plural,
            "be": "are" if many else "is",
            "Be": "Are" if many else "Is",
            "it": "they" if many else "it",
            "them": "them" if many else "it",
        }

    def anchor(self, name: str, color: str | None = None) -> str:
        """Return a name for a thing that something else is compared with."""
        return self.the(name, color)

    def color_slots(self, color: str) -> dict[str, str]:
        """Return the text for each slot of a phrasing that names a color."""
        return {"color": color}

    def color_answers(self, color: str) -> tuple[str, ...]:
        """Return the accepted answers to the question which color it is."""
        return color, f"it is {color}"

    def name_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers to the question what a thing is."""
        words = self.bare(name, color)
        return tuple(dict.fromkeys((self.a(name, color), words, f"the {words}")))

    def choice_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers to the question which of two things it is."""
        words = self.bare(name, color)
        return tuple(dict.fromkeys((f"the {words}", words, self.a(name, color))))

    def quoted(self, text: str) -> str:
        """Return a printed text in double quotes, called a word or a number."""
        return f'the {"number" if text.isdigit() else "word"} "{text}"'

    def list_sentence(self, parts: list[str], first: str | None) -> str:
        """Return one sentence that lists all parts; `first` is the first thing's name, if it is a thing."""
        be = "are" if first is not None and noun(first).gender == "p" else "is"
        return f"There {be} {_list(parts, ' and ')}."

    def absent_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers that say that there is no such thing."""
        words = self.bare(name, color)
        be = "are" if noun(name).gender == "p" else "is"
        start = f"There {be} no {words}"
        return f"{start}.", f"{start} here.", f"{start} in the picture.", f"No {words}."

    def removed_answers(self, name: str, color: str | None) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing is gone."""
        be = self.slots(name)["be"]
        words = self.bare(name, color)
        return tuple(
            f"{the}{words} {end}" for end in (f"{be} gone", "disappeared") for the in ("the ", "")
        )

    def added_answers(self, name: str, color: str | None) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing was added."""
        was = "were" if noun(name).gender == "p" else "was"
        start, bare = self.a(name, color), self.bare(name, color)
        return tuple(
            dict.fromkeys((f"{start} {was} added", f"{bare} {was} added", f"{start} appeared"))
        )

    def recolored_answers(self, name: str, old: str, new: str) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing has a new color."""
        ends = (f"turned {new}", f"became {new}")
        return tuple(f"the {who} {end}" for end in ends for who in (f"{old} {name}", name))

    def replaced_answers(
        self, old: str, old_color: str | None, new: str, new_color: str | None
    ) -> tuple[str, ...]:
        """Return the accepted answers that say that one thing replaced another."""
        was, now = self.the(old, old_color), self.a(new, new_color)
        return f"{was} became {now}", f"{was} turned into {now}"


class Russian:
    """Questions and answers in Russian."""

    phrasings: ClassVar[dict[str, Phrasings]] = RUSSIAN
    """Phrasings by kind of question."""
    terms: ClassVar[dict[str, str]] = {
        "top left": "сверху слева",
        "top right": "сверху справа",
        "bottom left": "снизу слева",
        "bottom right": "снизу справа",
        "left": "слева",
        "right": "справа",
        "above": "выше",
        "below": "ниже",
        "yes": "да",
        "no": "нет",
        "filled": "сплошная",
        "outlined": "контур",
        "first": "на первой",
        "second": "на второй",
        "which first": "первой",
        "which second": "второй",
    }
    """Fixed words of answers, by their English name."""
    directions: ClassVar[dict[str, str]] = {
        "left": "слева от",
        "right": "справа от",
        "above": "выше",
        "below": "ниже",
    }
    """Words for the slot `dir`, by direction."""
    places: ClassVar[dict[str, tuple[str, ...]]] = {
        "top left": ("сверху слева", "слева сверху", "в левом верхнем углу"),
        "top right": ("сверху справа", "справа сверху", "в правом верхнем углу"),
        "bottom left": ("снизу слева", "слева снизу", "в левом нижнем углу"),
        "bottom right": ("снизу справа", "справа снизу", "в правом нижнем углу"),
    }

    def _colored(self, color: str | None, case: str, gender: str) -> str:
        if color is None:
            return ""
        return _STEMS[color] + (_SOFT if color == "blue" else _HARD)[case][gender] + " "

    def a(self, name: str, color: str | None = None) -> str:
        """Return a name in the nominative: "красная звезда"."""
        known = noun(name)
        return self._colored(color, "nominative", known.gender) + known.russian

    def anchor(self, name: str, color: str | None = None) -> str:
        """Return a name in the genitive, for a thing that something else is compared with."""
        known = noun(name)
        return self._colored(color, "genitive", known.gender) + known.genitive

    def slots(self, name: str, color: str | None = None) -> dict[str, str]:
        """Return the text for each slot of a phrasing that refers to a thing."""
        known, words = noun(name), self.a(name, color)
        return {
            "a": words,
            "the": words,
            "of": self.anchor(name, color),
            "many": self._colored(color, "genitive", "p") + known.genitive_plural,
            "lies": "находятся" if known.gender == "p" else "находится",
            "it": {"m": "он", "f": "она", "n": "оно", "p": "они"}[known.gender],
        }

    def bare(self, name: str, color: str | None = None) -> str:
        """Return a name; Russian has no articles."""
        return self.a(name, color)

    def the(self, name: str, color: str | None = None) -> str:
        """Return a name; Russian has no articles."""
        return self.a(name, color)

    def color_slots(self, color: str) -> dict[str, str]:
        """Return the text for each slot of a phrasing that names a color."""
        forms = {
            "color": ("genitive", "m"),
            "fcolor": ("nominative", "f"),
            "mcolor": ("nominative", "m"),
        }
        return {key: self._colored(color, *form).strip() for key, form in forms.items()}

    def color_answers(self, color: str) -> tuple[str, ...]:
        """Return the accepted answers to the question which color it is."""
        genitive = self._colored(color, "genitive", "m")
        forms = [self._colored(color, "nominative", g).strip() for g in "mfnp"]
        return (genitive.strip(), f"{genitive}цвета", *forms)

    def name_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers to the question what a thing is."""
        return self.a(name, color), f"это {self.a(name, color)}"

    def choice_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers to the question which of two things it is."""
        return (self.a(name, color),)

    def quoted(self, text: str) -> str:
        """Return a printed text in double quotes, called a word or a number."""
        return f'{"число" if text.isdigit() else "слово"} "{text}"'

    def list_sentence(self, parts: list[str], first: str | None) -> str:
        """Return one sentence that lists all parts; `first` is not used in Russian."""
        return f"Здесь {_list(parts, ' и ')}."

    def absent_answers(self, name: str, color: str | None = None) -> tuple[str, ...]:
        """Return the accepted answers that say that there is no such thing."""
        words = self.anchor(name, color)
        return f"Здесь нет {words}.", f"Нет {words}.", f"На картинке нет {words}."

    def _past(self, stem: str, name: str, ends: tuple[str, str, str, str]) -> str:
        return stem + ends["mfnp".index(noun(name).gender)]

    def removed_answers(self, name: str, color: str | None) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing is gone."""
        words = self.a(name, color)
        gone = self._past("исчез", name, ("", "ла", "ло", "ли"))
        lost = self._past("пропал", name, ("", "а", "о", "и"))
        return f"{words} {gone}", f"{words} {lost}", f"{gone} {words}"

    def added_answers(self, name: str, color: str | None) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing was added."""
        words = self.a(name, color)
        came = self._past("появил", name, ("ся", "ась", "ось", "ись"))
        return f"{came} {words}", f"{words} {came}"

    def recolored_answers(self, name: str, old: str, new: str) -> tuple[str, ...]:
        """Return the accepted answers that say that a thing has a new color."""
        became = self._past("стал", name, ("", "а", "о", "и"))
        tint = self._colored(new, "instrumental", noun(name).gender).strip()
        return f"{self.a(name, old)} {became} {tint}", f"{self.a(name)} {became} {tint}"

    def replaced_answers(
        self, old: str, old_color: str | None, new: str, new_color: str | None
    ) -> tuple[str, ...]:
        """Return the accepted answers that say that one thing replaced another."""
        was, now = self.anchor(old, old_color), self.a(new, new_color)
        came = self._past("появил", new, ("ся", "ась", "ось", "ись"))
        return f"вместо {was} {now}", f"вместо {was} {came} {now}"


def _list(parts: list[str], last: str) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + last + parts[-1]


WORDINGS: dict[str, English | Russian] = {"en": English(), "ru": Russian()}
