"""Markdown of answers as safe HTML.

HTML, images and formulas in an answer are shown as text: the page loads nothing, and a price keeps its
dollar sign. Links open in a new tab.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

_SCHEMES = ("http://", "https://", "mailto:")
_TOP_LEVEL = 3
"""Highest level of headings; the page uses the levels above."""


def render(text: str) -> str:
    """Return Markdown as HTML; the Markdown may be incomplete."""
    rendered: str = _MARKDOWN.render(text)
    return rendered.strip()


def _image(tokens: Sequence[Token], index: int, *_: Any) -> str:
    token = tokens[index]
    return html.escape(f"![{token.content}]({token.attrGet('src')})")


def _code(tokens: Sequence[Token], index: int, *_: Any) -> str:
    code = html.escape(tokens[index].content.removesuffix("\n"))
    return f'<pre tabindex="0"><code>{code}</code></pre>'  # focusable, so that the keyboard can scroll it


def _adapt(tokens: Sequence[Token]) -> None:
    """Open links in a new tab, and lower the level of headings."""
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
    # markdown-it documents that both may be replaced; its types do not allow it.
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
