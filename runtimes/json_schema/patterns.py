r"""Regular expressions that ECMAScript and Rust read alike.

JSON Schema means ECMAScript's expressions, pydantic those of Rust. The two differ in ``\d``, ``\w``, ``\s``,
their opposites and the dot: ``é`` is a ``\w`` in Rust alone. An answer keeps to both.
"""

from __future__ import annotations

import re

_SPACES = r"\t\n\f\r\x20\u{a0}\u{1680}\u{2000}-\u{200a}\u{2028}\u{2029}\u{202f}\u{205f}\u{3000}"
_MORE_SPACES = rf"{_SPACES}\v\u{{85}}\u{{feff}}"
_WORD = r"\p{Alphabetic}\p{Mark}\p{Decimal_Number}\p{Connector_Punctuation}\p{Join_Control}"

_BOTH = {
    "d": "[0-9]",
    "D": r"\P{Decimal_Number}",
    "w": "[0-9A-Za-z_]",
    "W": f"[^{_WORD}]",
    "s": f"[{_SPACES}]",
    "S": f"[^{_MORE_SPACES}]",
}
"""Characters that a class stands for in both languages."""

_EITHER = {
    "d": r"\p{Decimal_Number}",
    "D": "[^0-9]",
    "w": f"[{_WORD}]",
    "W": "[^0-9A-Za-z_]",
    "s": f"[{_MORE_SPACES}]",
    "S": f"[^{_SPACES}]",
}
"""Characters that a class stands for in one of the languages."""

_DOT = r"[^\n\r\u{2028}\u{2029}]"
"""What a dot stands for in both languages."""

_DOT_IS_ALL = re.compile(r"\(\?[a-zA-Z]*s")
_EVERYTHING = r"\[(?:\\s\\S|\\S\\s|\\d\\D|\\D\\d|\\w\\W|\\W\\w)\]"
_TOKEN = re.compile(rf"{_EVERYTHING}|\\.?|\[\^?\]?|\]|\.|[^\\\[\].]+", re.DOTALL)


def common_pattern(pattern: str) -> str:
    """Return an expression that matches what the pattern matches in both languages."""
    dot = "." if _DOT_IS_ALL.search(pattern) else _DOT
    negated: list[bool] = []
    """Whether each open bracket, the outermost first, begins with ``^``."""
    parts: list[str] = []
    for part in _TOKEN.findall(pattern):
        if part[0] == "\\":
            classes = _EITHER if sum(negated) % 2 else _BOTH
            part = classes.get(part[1:], part)
        elif part[0] == "[" and len(part) < 4:
            negated.append("^" in part)
        elif part == "]" and negated:
            negated.pop()
        elif part == "." and not negated:
            part = dot
        parts.append(part)
    return "".join(parts)
