"""VQA accuracy: agreement with ten people, as VQA, VQAv2 and TextVQA measure it.

An answer is worth ``min(n / 3, 1)`` if n people gave it. This is averaged over all choices of people that
leave one of them out (Antol et al., "VQA: Visual Question Answering", ICCV 2015). Answers are compared after
the normalization of the official evaluation code, github.com/GT-Vision-Lab/VQA: punctuation, articles, digits
and contractions. As there, answers are compared as they are if all people gave the same one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_THOUSANDS = re.compile(r"\d,\d")
_ARTICLES = {"a", "an", "the"}
_NUMBERS = "zero one two three four five six seven eight nine ten"
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS.split())} | {"none": "0"}
_WITH_APOSTROPHE = """
ain't aren't can't couldn't could've didn't doesn't don't hadn't hasn't haven't isn't mightn't might've
mustn't must've needn't not've oughtn't shan't shouldn't should've wasn't weren't won't wouldn't would've
he'd he's it'd it'll someone'd someone'll someone's somebody'll somebody's something'd something'll that's
there'd there're there's they'd they'll they're they've we've y'all you'd you'll you're you've
how'd how'll how's what'll what're what's what've when's where'd where's where've who'd who'll who's who've
why'll why're why's ma'am o'clock 'twas 'ow's'at
couldn't've hadn't've mightn't've shouldn't've wouldn't've he'd've it'd've she'd've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've you'd've y'all'd've y'all'll
"""


def _contractions() -> Iterator[tuple[str, str]]:
    """Yield each spelling of a contraction that lacks one apostrophe, with the right spelling."""
    for word in _WITH_APOSTROPHE.split():
        for place, character in enumerate(word):
            if character == "'":
                yield word[:place] + word[place + 1 :], word
    yield "somebody'd", "somebodyd"  # the other way round, as in the official code


_CONTRACTIONS = dict(_contractions())


def vqa_accuracy(answer: str, given: Sequence[str]) -> float:
    """Return the VQA accuracy of an answer, from 0 to 1.

    Args:
        given: the answers of all people, ten in the published files; equal ones stand there several times.
    """
    answer, *given = (_one_line(text) for text in (answer, *given))
    if len(set(given)) > 1:
        answer, *given = (normalized(text) for text in (answer, *given))
    same = [text == answer for text in given]
    return sum(min((sum(same) - own) / 3, 1.0) for own in same) / len(same)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=2**16)
def normalized(text: str) -> str:
    """Return an answer without punctuation and articles, in lower case, with digits and contractions.

    Punctuation beside a space disappears, in a word it becomes a space. If the text has a number with a comma
    between two digits, all of its punctuation disappears.
    """
    has_thousands = _THOUSANDS.search(text) is not None
    plain = text
    for mark in _PUNCTUATION:
        outside = f"{mark} " in text or f" {mark}" in text or has_thousands
        plain = plain.replace(mark, "" if outside else " ")
    words = (_DIGITS.get(word, word) for word in _PERIOD.sub("", plain).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)
