"""Markdown of answers: any text becomes HTML with few tags."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.demo.markdown import render

TAGS = {
    *("a", "blockquote", "br", "code", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre"),
    *("s", "strong", "table", "td", "th", "tr", "ul", "div"),
}
ATTRIBUTES = {"href", "target", "rel", "start", "tabindex", "class", "style"}
VOID = {"br", "hr"}


class Reader(HTMLParser):
    """Collects texts and links; fails for tags and attributes that `render` must not write."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS
        assert {name for name, _ in attrs} <= ATTRIBUTES
        for name, value in attrs:
            if name == "href":
                assert value is not None
                assert value.lower().startswith(("http://", "https://", "mailto:"))
                assert dict(attrs)["rel"] == "noopener noreferrer"
                assert dict(attrs)["target"] == "_blank"
                self.links.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def read(markdown: str) -> Reader:
    reader = Reader()
    reader.feed(render(markdown))
    reader.close()
    assert reader.open == []
    return reader


MARKS = [
    "*",
    "**",
    "_",
    "__",
    "~~",
    "`",
    "```",
    "~~~",
    "|",
    "|-|",
    "[",
    "]",
    "(",
    ")",
    "](",
    "![",
    "<b>",
    "</b>",
    "<script>",
    "<!--",
    "&lt;",
    "&",
    '"',
    "'",
    "$",
    "\\",
]
TEXTS = ["\n", "\n\n", " ", "    ", "- ", "1. ", "> ", "# ", "\r\n", "a", "word", "é"]
ADDRESSES = [
    "http://a.b",
    "javascript:x",
    "data:x",
    "<http://a.b>",
    "<javascript:x>",
    "//a.b",
    "#a",
]
PIECES = st.sampled_from([*MARKS, *TEXTS, *ADDRESSES])


@given(st.lists(PIECES, max_size=40).map("".join))
def test_only_known_tags_come_out_closed(markdown: str) -> None:
    read(markdown)


@given(st.text(alphabet=st.characters(categories=["L", "N"]), max_size=50))
def test_plain_words_stay(text: str) -> None:
    assert read(text).text == text.strip()


@given(st.text(max_size=60))
def test_any_text_is_read(text: str) -> None:
    read(text)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("**bold** and *thin*", "<p><strong>bold</strong> and <em>thin</em></p>"),
        ("***both***", "<p><em><strong>both</strong></em></p>"),
        ("2 * 3 * 4 is 24", "<p>2 * 3 * 4 is 24</p>"),
        ("a_b_c and __init__", "<p>a_b_c and <strong>init</strong></p>"),
        ("a\nb", "<p>a<br>b</p>"),
        ("- a\n- b", "<ul><li>a</li><li>b</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n  - b\n- c", "<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>"),
        ("# A", "<h3>A</h3>"),
        ("> a", "<blockquote><p>a</p></blockquote>"),
        ("---", "<hr>"),
        ("`<b>`", "<p><code>&lt;b&gt;</code></p>"),
        ("<b>a</b>", "<p>&lt;b&gt;a&lt;/b&gt;</p>"),
        ("costs $5 or $6", "<p>costs $5 or $6</p>"),
        ("[a](javascript:b)", "<p>[a](javascript:b)</p>"),
        (r"\*a\*", "<p>*a*</p>"),
    ],
)
def test_html(markdown: str, expected: str) -> None:
    assert re.sub(r"(?<=>)\n|\n(?=<)", "", render(markdown)) == expected


def test_code_is_kept_as_it_is() -> None:
    code = "if a < b:\n\n    print('**x**')  # $1"
    for end in ("\n```", ""):  # while it is written there is no end yet
        made = render(f"```python\n{code}{end}")
        assert html.unescape(re.sub("<[^>]+>", "", made)) == code


def test_a_table() -> None:
    made = render("| a | b |\n|---|--:|\n| 1 | **2** |\n| 3 |")
    assert made.count("<tr>") == 3 and made.count("<td") == 4
    assert "<th>a</th>" in made and "<strong>2</strong>" in made


def test_links_open_elsewhere_and_images_are_not_fetched() -> None:
    reader = read(
        "[a](https://a.example/x_(y)) ![b](https://b.example/c.png) <https://c.example/d>. [e](/f)"
    )
    assert reader.links == ["https://a.example/x_(y)", "https://c.example/d"]
    assert "![b](https://b.example/c.png)" in reader.text


@pytest.mark.parametrize(
    "piece", ["**a ", "*a **b ", "_a ", "> ", "- ", "[a](", "~~a ", "`a ", "|a"]
)
def test_an_answer_that_repeats_itself(piece: str) -> None:
    read(piece * 3000)
