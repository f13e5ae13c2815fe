"""Split plain text before its bytes are merged, by a rule that llama.cpp does not have.

Tekken is the tokenizer of newer Mistral models. llama.cpp's rule of this name takes upper case outside ASCII
and combining marks in another way than the tokenizer's own regular expression.
"""

from __future__ import annotations

import re
import unicodedata

_SPACES = (
    "\t\v\f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""White space but for the two characters that end a line."""


class _Classes(dict[int, str]):
    """Each character to a letter for its class: what Tekken's regular expression tells apart.

    ``U`` upper and title case, ``l`` lower case, ``o`` other letters, ``m`` marks, ``1`` numbers, ``n`` the
    ends of lines, ``t`` other white space, ``.`` everything else. Space and slash are classes of their own.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        found = {"Lu": "U", "Lt": "U", "Ll": "l", "Lm": "o", "Lo": "o"}.get(category)
        if found is None and character in _SPACES:
            found = "t"
        if found is None:
            found = {"M": "m", "N": "1"}.get(category[0], ".")
        self[code] = found
        return found


_CLASSES = _Classes({ord(" "): " ", ord("/"): "/", ord("\r"): "n", ord("\n"): "n"})
_TEKKEN = re.compile(
    "[^nUlo1]?[Uom]*[lom]+|[^nUlo1]?[Uom]+[lom]*|1| ?[m./]+[n/]*|[ tn]*n+|[ tn]+(?![^ tn])|[ tn]+"
)
"""Tekken's regular expression, over classes of characters."""


def split_tekken(text: str) -> list[str]:
    """Split a text into the parts within which Tekken merges bytes."""
    return [text[slice(*match.span())] for match in _TEKKEN.finditer(text.translate(_CLASSES))]
