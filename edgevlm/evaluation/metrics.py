"""Metrics: score an answer against the accepted answers, from 0 to 1.

| name | score | used by |
|---|---|---|
| ``exact`` | 1 if it is the same text after `normalized` | |
| ``contains`` | 1 if it contains an accepted answer as whole words after `normalized` | |
| ``vqa_accuracy`` | agreement with ten people, see `edgevlm.evaluation.vqa_accuracy` | VQAv2, TextVQA |
| ``anls`` | average normalized Levenshtein similarity | DocVQA, InfographicVQA |
| ``iou`` | intersection over union of two boxes | |
| ``iou@0.5`` | 1 if intersection over union is above 0.5 | RefCOCO |
| ``mentions`` | share of the longer of two lists that both name, in any order | |

All but ``vqa_accuracy`` are the best score over the accepted answers. Paraphrases and synonyms score 0 unless
they are accepted answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TypeAlias

from edgevlm.boxes import find_box
from edgevlm.evaluation.vqa_accuracy import vqa_accuracy

_QUOTES = "\"'“”„«»‘’`"
_DOUBLE_QUOTES = re.compile("[“”„«»]")
_OPENING = re.compile(r"(?:there is|there are|there's|здесь|на картинке)\s*:?\s+")
_SEPARATOR = re.compile(r"\s*,\s*(?:(?:and|и)\s+)?|\s+(?:and|и)\s+")
_ARTICLE = re.compile(r"^(?:an?|the)\s+")
_MIN_SIMILARITY = 0.5
"""ANLS counts a less similar answer as wrong."""


def normalized(text: str) -> str:
    """Return a text for comparison.

    That is NFC, case folded, ё as е, single spaces, without outer quotes and without a final ``.!,``.
    """
    return _plain(text).lstrip(_QUOTES + " ").rstrip(_QUOTES + " .!,")


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.replace("ё", "е").split())


def _same_text(answer: str, accepted: str) -> float:
    answer = normalized(answer)
    return float(answer != "" and answer == normalized(accepted))


def _contains(answer: str, accepted: str) -> float:
    accepted = re.escape(normalized(accepted))
    return float(
        accepted != "" and re.search(rf"(?<!\w){accepted}(?!\w)", _plain(answer)) is not None
    )


def _similarity(answer: str, accepted: str) -> float:
    """Return ANLS of one answer.

    It is one minus the edit distance as a share of the longer text, or 0 if that is below 0.5. Case and the
    number of spaces do not count. Biten et al., "Scene Text Visual Question Answering", ICCV 2019, define it;
    at exactly 0.5 this follows the benchmark's evaluation code, which counts 0.5.
    """
    a, b = (" ".join(text.lower().split()) for text in (answer, accepted))
    longer = max(len(a), len(b), 1)
    similarity = 1 - _edit_distance(a, b) / longer
    return similarity if similarity >= _MIN_SIMILARITY else 0.0


def _edit_distance(a: str, b: str) -> int:
    """Return the Levenshtein distance: insertions, deletions and substitutions of one character."""
    distances = list(range(len(b) + 1))
    for row, character in enumerate(a, 1):
        before, distances[0] = distances[0], row
        for column, other in enumerate(b, 1):
            substituted = before + (character != other)
            before = distances[column]
            distances[column] = min(before + 1, distances[column - 1] + 1, substituted)
    return distances[-1]


def _iou(answer: str, accepted: str) -> float:
    a, b = find_box(answer), find_box(accepted)
    if a is None or b is None:
        return 0.0
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (a, b))
    return across * down / (areas - across * down)


@lru_cache(maxsize=4096)
def mentions(text: str) -> tuple[str, ...]:
    """Return the items that a sentence lists, without opening, articles and "and".

    Quoted words stay whole.
    """
    text = _DOUBLE_QUOTES.sub('"', _plain(text)).rstrip(" .!,")
    text = text[opening.end() :] if (opening := _OPENING.match(text)) else text
    parts = re.split('("[^"]*")', text)  # every second part is quoted
    parts[::2] = [_SEPARATOR.sub("\n", part) for part in parts[::2]]
    found = (_ARTICLE.sub("", item.strip()) for item in "".join(parts).split("\n"))
    return tuple(item for item in found if item)


def _same_list(answer: str, accepted: str) -> float:
    a, b = Counter(mentions(answer)), Counter(mentions(accepted))
    return (a & b).total() / max(a.total(), b.total(), 1)


Metric: TypeAlias = "Callable[[str, Sequence[str]], float]"


def _best(compare: Callable[[str, str], float]) -> Metric:
    """Return the metric that is the best result of a comparison with each accepted answer."""

    def score(answer: str, accepted: Sequence[str]) -> float:
        return max((compare(answer, one) for one in accepted), default=0.0)

    return score


_METRICS: dict[str, Metric] = {
    "exact": _best(_same_text),
    "contains": _best(_contains),
    "vqa_accuracy": vqa_accuracy,
    "anls": _best(_similarity),
    "iou": _best(_iou),
    "iou@0.5": _best(lambda answer, accepted: float(_iou(answer, accepted) > 0.5)),
    "mentions": _best(_same_list),
}
METRICS = tuple(_METRICS)
"""Names of the metrics."""


def score(metric: str, answer: str, accepted: Sequence[str]) -> float:
    """Return the score of an answer, from 0 to 1.

    Args:
        metric: one of `METRICS`.
        answer: the answer of the model.
        accepted: the accepted answers; for ``vqa_accuracy`` the answers of all people.
    """
    return _METRICS[metric](answer, accepted)
