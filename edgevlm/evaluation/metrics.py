"""Metrics: score an answer against the accepted answers, from 0 to 1.

The metrics are `words` (the same text), `box` (the same place, in percent of the image) and `mentions`
(the same list, in any order). Paraphrases and synonyms score 0 unless they are accepted answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from edgevlm.boxes import find_box

_QUOTES = "\"'“”„«»‘’`"
_DOUBLE_QUOTES = re.compile("[“”„«»]")
_OPENING = re.compile(r"(?:there is|there are|there's|здесь|на картинке)\s*:?\s+")
_SEPARATOR = re.compile(r"\s*,\s*(?:(?:and|и)\s+)?|\s+(?:and|и)\s+")
_ARTICLE = re.compile(r"^(?:an?|the)\s+")
_MIN_IOU = 0.5  # two boxes with a larger intersection over union are the same place


def normalized(text: str) -> str:
    """Return a text for comparison.

    That is NFC, case folded, ё as е, single spaces, without outer quotes and without a final ``.!,``.
    """
    return _plain(text).lstrip(_QUOTES + " ").rstrip(_QUOTES + " .!,")


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.replace("ё", "е").split())


def _same_words(answer: str, accepted: str) -> float:
    answer = normalized(answer)
    return float(answer != "" and answer == normalized(accepted))


def _same_place(answer: str, accepted: str) -> float:
    a, b = find_box(answer), find_box(accepted)
    if a is None or b is None:
        return 0.0
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (a, b))
    return float(across * down > _MIN_IOU * (areas - across * down))


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


_METRICS: dict[str, Callable[[str, str], float]] = {
    "words": _same_words,
    "box": _same_place,
    "mentions": _same_list,
}
METRICS = tuple(_METRICS)
"""Names of the metrics."""


def score(metric: str, answer: str, accepted: Sequence[str]) -> float:
    """Return the score of an answer, from 0 to 1: the best one over the accepted answers.

    - words: 1 if both texts are the same after `normalized`, else 0.
    - box: 1 if intersection over union is above 0.5, else 0. An answer without a box scores 0.
    - mentions: the number of items in both lists divided by the length of the longer list. Thus each
      missing, invented or repeated item lowers the score.

    Raises:
        KeyError: the metric is not in `METRICS`.
    """
    compare = _METRICS[metric]
    return max((compare(answer, one) for one in accepted), default=0.0)
