"""Markdown of answers as HTML that is safe by construction.

Only the tags written here come out; all text is escaped. Covered are paragraphs with their line breaks,
headings, lists, quotes, rules, tables, code, emphasis and links to the web. HTML and images of an answer are
shown as the text that they are, and formulas, too: nothing is fetched, and a price keeps its dollar sign.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence

MAX_DEPTH = 8
"""Of lists, quotes and emphasis in one another; what is deeper stays text."""
# Emphasis is looked for in 500 characters at most: an answer that repeats itself must not cost its square.

_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(?:\1[ \t]*){2,}$")
_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r"([ \t]*)([-*+]|\d{1,9}[.)])([ \t]+)(?=\S)")
_CELL_RULE = re.compile(r":?-+:?")
_INLINE = re.compile(
    r"\\(?P<escaped>[!-/:-@\[-`{-~])"
    r"|(?P<ticks>`+)(?P<code>[^`]|[^`].{0,500}?[^`])(?P=ticks)(?!`)"
    r"|(?<!!)\[(?P<label>[^\[\]]+)\]\((?P<target>[^\s()]*(?:\([^\s()]*\)[^\s()]*)*)\)"
    r"|(?P<address>https?://[^\s<>\"'`*]+[^\s<>\"'`*.,;:!?)\]])"
    r"|(?P<strong>\*\*|(?<!\w)__)(?=\S)(?P<bold>.{1,500}?)(?<=\S)(?P=strong)(?!\*|(?<=_)\w)"
    r"|(?P<struck>~~)(?=\S)(?P<gone>.{1,500}?)(?<=\S)~~"
    r"|(?<![\w*])(?P<mark>[*_])(?![\s*_])(?P<italic>.{1,500}?)(?<![\s*_])(?P=mark)(?![\w*])",
    re.DOTALL,
)
_SCHEMES = ("http://", "https://", "mailto:")


def render(text: str) -> str:
    """Markdown, finished or not, as HTML."""
    return _blocks(text.replace("\r\n", "\n").split("\n"), 0)


def _blocks(lines: Sequence[str], depth: int) -> str:
    made: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        block, at = _block(lines, at)(lines, at, depth)
        made.append(block)
    return "".join(made)


Parser = Callable[[Sequence[str], int, int], tuple[str, int]]


def _block(lines: Sequence[str], at: int) -> Parser:
    """What kind of block begins at a line that is not empty."""
    line = lines[at]
    if _FENCE.match(line):
        return _code
    if _HEADING.match(line):
        return _heading
    if _RULE.match(line):
        return _rule
    if _QUOTE.match(line):
        return _quote
    if _ITEM.match(line):
        return _list
    if _table_columns(lines, at):
        return _table
    return _paragraph


def _code(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    """Up to the closing fence, or to the end as long as there is none."""
    match = _FENCE.match(lines[at])
    assert match is not None
    fence = match[1]
    closing = re.compile(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}\s*$")
    end = at + 1
    while end < len(lines) and not closing.match(lines[end]):
        end += 1
    code = html.escape("\n".join(lines[at + 1 : end]))
    return f'<pre tabindex="0"><code>{code}</code></pre>', end + 1


def _heading(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    match = _HEADING.match(lines[at])
    assert match is not None
    level = min(len(match[1]) + 2, 6)  # those above are the page's
    return f"<h{level}>{_inline(match[2])}</h{level}>", at + 1


def _rule(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    return "<hr>", at + 1


def _quote(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    end = at
    while end < len(lines) and _QUOTE.match(lines[end]):
        end += 1
    if depth >= MAX_DEPTH:
        return _text(lines[at:end]), end
    inner = [_QUOTE.sub("", line, count=1) for line in lines[at:end]]
    return f"<blockquote>{_blocks(inner, depth + 1)}</blockquote>", end


def _list(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    first = _ITEM.match(lines[at])
    assert first is not None
    if depth >= MAX_DEPTH:
        return _text(lines[at : at + 1]), at + 1
    ordered = first[2][0].isdigit()
    items: list[str] = []
    while at < len(lines) and (item := _item_of(lines[at], first, ordered)):
        end = _item_end(lines, at, len(item[1].expandtabs(4)))
        width = item.end()
        inner = [lines[at][width:], *(_dedented(line, width) for line in lines[at + 1 : end])]
        made = _blocks(inner, depth + 1)
        if made.count("<p>") == 1 and made.startswith("<p>"):
            made = made.replace("<p>", "", 1).replace("</p>", "", 1)
        items.append(f"<li>{made}</li>")
        at = end
    name = f'ol start="{int(first[2][:-1])}"' if ordered else "ul"
    return f"<{name}>{''.join(items)}</{name[:2]}>", at


def _item_of(line: str, first: re.Match[str], ordered: bool) -> re.Match[str] | None:
    """The item that a line begins, if it goes on with this list."""
    item = _ITEM.match(line)
    if item is None or _RULE.match(line) or item[2][0].isdigit() != ordered:
        return None
    return item if ordered or item[2] == first[2] else None


def _item_end(lines: Sequence[str], at: int, indent: int) -> int:
    """The line after an item: lines that are indented more belong to it, and text that goes on."""
    end, blank = at + 1, False
    while end < len(lines):
        line = lines[end]
        if not line.strip():
            blank = True
        elif _indent(line) <= indent and (blank or _block(lines, end) is not _paragraph):
            break
        else:
            blank = False
        end += 1
    while end > at + 1 and not lines[end - 1].strip():
        end -= 1
        if end < len(lines) - 1 and _ITEM.match(lines[end + 1]):
            return end + 1  # an empty line between two items of one list
    return end


def _indent(line: str) -> int:
    spread = line.expandtabs(4)
    return len(spread) - len(spread.lstrip())


def _dedented(line: str, width: int) -> str:
    spread = line.expandtabs(4)
    return spread[min(width, len(spread) - len(spread.lstrip())) :]


def _table(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    columns = _table_columns(lines, at)
    end = at + 2
    while end < len(lines) and "|" in lines[end]:
        end += 1
    rows = []
    for number in [at, *range(at + 2, end)]:
        kind = "th" if number == at else "td"
        cells = (_cells(lines[number]) + [""] * columns)[:columns]
        rows.append("".join(f"<{kind}>{_inline(cell)}</{kind}>" for cell in cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table>{body}</table></div>', end


def _table_columns(lines: Sequence[str], at: int) -> int:
    """How many columns the table has that begins at a line; 0 if none does."""
    if at + 1 >= len(lines) or "|" not in lines[at] or "|" not in lines[at + 1]:
        return 0
    rule = _cells(lines[at + 1])
    fits = len(rule) == len(_cells(lines[at])) and all(map(_CELL_RULE.fullmatch, rule))
    return len(rule) if fits else 0


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    if inner.endswith("|") and not inner.endswith("\\|"):
        inner = inner[:-1]
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _paragraph(lines: Sequence[str], at: int, depth: int) -> tuple[str, int]:
    end = at + 1
    while end < len(lines) and lines[end].strip() and _block(lines, end) is _paragraph:
        end += 1
    return _text(lines[at:end]), end


def _text(lines: Sequence[str]) -> str:
    return f"<p>{_inline(chr(10).join(line.strip() for line in lines))}</p>"


def _inline(text: str, depth: int = 0) -> str:
    """Text within a block; line breaks stay."""
    made, at = [], 0
    for match in _INLINE.finditer(text) if depth < MAX_DEPTH else ():
        made.append(_plain(text[at : match.start()]))
        made.append(_span(match, depth + 1))
        at = match.end()
    return "".join([*made, _plain(text[at:])])


def _span(match: re.Match[str], depth: int) -> str:
    found = match.groupdict()
    if found["escaped"] is not None:
        return _plain(found["escaped"])
    if found["code"] is not None:
        return f"<code>{_plain(found['code'])}</code>"
    if found["target"] is not None:
        if not found["target"].lower().startswith(_SCHEMES):
            return _plain(match[0])
        return _link(found["target"], _inline(found["label"], MAX_DEPTH))
    if found["address"] is not None:
        return _link(found["address"], _plain(found["address"]))
    for name, tag in (("bold", "strong"), ("gone", "s"), ("italic", "em")):
        if found[name] is not None:
            return f"<{tag}>{_inline(found[name], depth)}</{tag}>"
    raise AssertionError(match[0])


def _link(target: str, label: str) -> str:
    address = html.escape(target)
    return f'<a href="{address}" target="_blank" rel="noopener noreferrer">{label}</a>'


def _plain(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
