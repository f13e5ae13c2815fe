"""Whether what a model said is right, as a number from 0 to 1.

Three judges: `words` (the same text), `box` (the same place, in percent of the picture) and
`mentions` (the same list, in any order). Not covered: paraphrases and synonyms; what may also be
said stands in the accepted answers.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

from edgevlm.boxes import box

_QUOTES = "\"'“”„«»‘’`"
_DOUBLE_QUOTES = re.compile("[“”„«»]")
_OPENING = re.compile(r"(?:there is|there are|there's|здесь|на картинке)\s*:?\s+")
_SEPARATOR = re.compile(r"\s*,\s*(?:(?:and|и)\s+)?|\s+(?:and|и)\s+")
_ARTICLE = re.compile(r"^(?:an?|the)\s+")
_SAME_PLACE = 0.5  # intersection over union above which two boxes count as one


def normalized(text: str) -> str:
    """For comparing: NFC, case folded, ё as е, single spaces, no outer quotes, no final ``.!,``."""
    return _plain(text).lstrip(_QUOTES + " ").rstrip(_QUOTES + " .!,")


def _plain(text: str) -> str:
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.replace("ё", "е").split())


def _words(said: str, accepted: str) -> float:
    said = normalized(said)
    return float(said != "" and said == normalized(accepted))


def _same_place(said: str, accepted: str) -> float:
    a, b = box(said), box(accepted)
    if a is None or b is None:
        return 0.0
    across = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    down = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = sum((right - left) * (bottom - top) for left, top, right, bottom in (a, b))
    return float(across * down > _SAME_PLACE * (areas - across * down))


@lru_cache(maxsize=4096)
def mentions(text: str) -> tuple[str, ...]:
    """What a sentence lists, without opening, articles and "and"; quoted words stay whole."""
    text = _DOUBLE_QUOTES.sub('"', _plain(text)).rstrip(" .!,")
    text = text[opening.end() :] if (opening := _OPENING.match(text)) else text
    pieces = re.split('("[^"]*")', text)  # every second one is quoted
    pieces[::2] = [_SEPARATOR.sub("\n", piece) for piece in pieces[::2]]
    found = (_ARTICLE.sub("", item.strip()) for item in "".join(pieces).split("\n"))
    return tuple(item for item in found if item)


def _same_list(said: str, accepted: str) -> float:
    a, b = Counter(mentions(said)), Counter(mentions(accepted))
    return (a & b).total() / max(a.total(), b.total(), 1)


_JUDGES: dict[str, Callable[[str, str], float]] = {
    "words": _words,
    "box": _same_place,
    "mentions": _same_list,
}
JUDGES = tuple(_JUDGES)


def score(judge: str, said: str, accepted: Sequence[str]) -> float:
    """How right an answer is, from 0 to 1; of several accepted answers the nearest counts.

    words: 1 if both are the same after `normalized`, else 0.
    box: 1 if intersection over union is above 0.5, else 0; also 0 for what is no box.
    mentions: the items that both lists have over the length of the longer one, so that each item
    left out, invented or repeated costs.

    Raises:
        KeyError: a judge that is not in `JUDGES`.
    """
    judged = _JUDGES[judge]
    return max((judged(said, answer) for answer in accepted), default=0.0)
