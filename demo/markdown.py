"""Markdown of answers as HTML that is safe, by markdown-it.

HTML and images of an answer are shown as the text that they are, and formulas, too: nothing is fetched, and
a price keeps its dollar sign. Links lead to the web and open in a tab of their own.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

_SCHEMES = ("http://", "https://", "mailto:")
_TOP_LEVEL = 3
"""Of headings; those above are the page's."""


def render(text: str) -> str:
    """Markdown, finished or not, as HTML."""
    made: str = _MARKDOWN.render(text)
    return made.strip()


def _image(tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    return html.escape(f"![{token.content}]({token.attrGet('src')})")


def _code(tokens: Sequence[Token], index: int, *_: Any) -> str:
    code = html.escape(tokens[index].content.removesuffix("\n"))
    return f'<pre tabindex="0"><code>{code}</code></pre>'  # the keyboard scrolls what has focus


def _adapt(tokens: Sequence[Token]) -> None:
    """Links that do not take this page's place, and headings below the page's own."""
    for token in tokens:
        if token.type == "link_open":
            token.attrs |= {"target": "_blank", "rel": "noopener noreferrer"}
        elif token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(int(token.tag[1]) + _TOP_LEVEL - 1, 6)}"
        _adapt(token.children or ())


def _is_link(url: str) -> bool:
    return url.lower().startswith(_SCHEMES)


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False})
    parser.enable(["table", "strikethrough"])
    # markdown-it documents both of these for being replaced; its types do not say so.
    parser.validateLink = _is_link  # type: ignore[method-assign]
    parser.core.ruler.push("adapt", lambda state: _adapt(state.tokens))
    rules: dict[str, Any] = {
        "image": _image,
        "fence": _code,
        "code_block": _code,
        "table_open": lambda *_: '<div class="wide" tabindex="0"><table>',
        "table_close": lambda *_: "</table></div>",
    }
    parser.renderer.rules.update(rules)  # type: ignore[attr-defined]  # of its HTML renderer
    return parser


_MARKDOWN = _parser()
