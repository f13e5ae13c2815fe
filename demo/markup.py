"""HTML for which Gradio has no component.

Functions that add words have a parameter `request`; they use its language. None means English.
"""

from __future__ import annotations

import base64
import difflib
import html
import io
import math
from collections.abc import Iterable, Sequence

from PIL import Image

from edgevlm.demo.gradio_setup import gr
from edgevlm.demo.language import language, translate
from edgevlm.results import PromptText, PromptTile, Stats, TokenLogprob

TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
"""Gradio reads HTML as a template; these characters would begin an expression."""

PHASES = ("wait", "prepare", "encode", "prefill", "decode")

ANNOUNCED = "element.setAttribute('role', 'status');"
"""JavaScript for ``js_on_load`` of `gr.HTML`: screen readers announce changes."""

MAX_SIDE = 1024
"""Longer side in pixels of an image in HTML."""


def escaped(text: str) -> str:
    """Escape a text for HTML and for Gradio's templates."""
    return html.escape(text).translate(TEMPLATE_CHARACTERS)


def block(*parts: str) -> str:
    """Join parts of HTML into an element to which the style sheets apply."""
    return f'<div class="edgevlm">{"".join(parts)}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numbers: bool = False) -> str:
    """Return plain texts as a table whose first column has the names of the rows.

    Args:
        rows: the cells of each row.
        head: names of the columns.
        numbers: True if the other columns hold numbers.
    """
    kind = ' class="number"' if numbers else ""
    lines = []
    if head:
        names = "".join(f'<th scope="col">{escaped(name)}</th>' for name in head)
        lines.append(f"<thead><tr>{names}</tr></thead>")
    for name, *values in rows:
        cells = "".join(f"<td{kind}>{escaped(value)}</td>" for value in values)
        lines.append(f'<tr><th scope="row">{escaped(name)}</th>{cells}</tr>')
    return f"<table>{''.join(lines)}</table>"


def quiet(text: str) -> str:
    """Return a text in a lighter color."""
    return block(f'<div class="quiet">{escaped(text)}</div>')


def problem(text: str) -> str:
    """Return a text in the color of errors."""
    return block(f'<div class="problem">{escaped(text)}</div>')


def image_tag(image: Image.Image, alt: str) -> str:
    """Return an image as HTML, at most `MAX_SIDE` pixels wide and high."""
    shown = image.convert("RGB")
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="picture" alt="{escaped(alt)}" src="data:image/jpeg;base64,{data}">'


def figure(image: Image.Image, caption: str) -> str:
    """Return an image with its caption below."""
    tag = image_tag(image, caption)
    return f"<figure>{tag}<figcaption>{escaped(caption)}</figcaption></figure>"


def phase_names(request: gr.Request | None) -> dict[str, str]:
    """Return the names of `PHASES` in words."""
    return {
        "wait": translate(request, "wait for the model"),
        "prepare": translate(request, "prepare pictures"),
        "encode": translate(request, "encode pictures"),
        "prefill": translate(request, "read the prompt"),
        "decode": translate(request, "write the answer"),
    }


def waterfall(stats: Stats, request: gr.Request | None = None) -> str:
    """Return begin and end of each phase of an answer as a chart."""
    total = max(stats.total_ms, 1e-9)
    names = phase_names(request)
    begin, rows = 0.0, []
    for phase in PHASES:
        took = getattr(stats, f"{phase}_ms")
        place = f"left:{begin / total:.2%};width:{took / total:.2%}"
        rows.append(
            f'<tr><th scope="row">{escaped(names[phase])}</th><td class="wide">'
            f'<div class="bar"><span style="{place}"></span></div></td>'
            f'<td class="number">{milliseconds(took, request, 1)}</td></tr>'
        )
        begin += took
    return f'<table class="waterfall">{"".join(rows)}</table>'


def prompt(parts: Sequence[PromptText | PromptTile], request: gr.Request | None = None) -> str:
    """Return the parts of a prompt in order, with a frame for each tile."""
    spans = []
    for part in parts:
        if isinstance(part, PromptText):
            spans.append(escaped(part.text))
        else:
            name = f"{tile_name(part, request)}: {part.tokens}"
            spans.append(f'<span class="tile">{escaped(name)}</span>')
    hint = escaped(translate(request, "A frame stands for a picture, with its number of tokens."))
    return f'<div class="prompt">{"".join(spans)}</div><div class="quiet">{hint}</div>'


def tile_name(tile: PromptTile, request: gr.Request | None = None) -> str:
    """Return the place of a tile in words."""
    number = tile.image + 1
    if not tile.row:
        return translate(request, "picture {number}, whole", number=number)
    return translate(
        request,
        "picture {number}, row {row}, column {column}",
        number=number,
        row=tile.row,
        column=tile.column,
    )


def tokens(logprobs: Sequence[TokenLogprob], request: gr.Request | None = None) -> str:
    """Return the tokens of an answer, from red (unlikely) to green, with their alternatives on hover."""
    spans = []
    heading = escaped(translate(request, "Most likely here:"))
    for token in logprobs:
        hue = round(120 * math.exp(token.logprob))
        others = "".join(
            f"<tr><td>{escaped(token_text(other))}</td>"
            f'<td class="number">{math.exp(other.logprob):.2%}</td></tr>'
            for other in token.top
        )
        chosen = f"{escaped(token_text(token))} {math.exp(token.logprob):.2%}"
        spans.append(
            f'<span class="token" tabindex="0" style="border-color:hsl({hue},70%,45%)">'
            f"{escaped(token.piece.decode('utf-8', errors='replace') or token_text(token))}"
            f'<span class="others"><b>{chosen}</b><br>{heading}<table>{others}</table></span></span>'
        )
    hint = escaped(
        translate(request, "Point at a token, or tap it, to see what else might have come.")
    )
    return f'<div class="tokens">{"".join(spans)}<span class="quiet hint">{hint}</span></div>'


def token_text(token: TokenLogprob) -> str:
    """Return the text of a token; its id if it has no text."""
    text = token.piece.decode("utf-8", errors="replace")
    return text if text.strip() else f"{text!r}" if text else f"[{token.token_id}]"


def mark_differences(left: str, right: str) -> tuple[str, str]:
    """Return two texts as HTML, with marks on the words that differ."""
    a, b = left.split(), right.split()
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for words, out in ((a[i:j], marked[0]), (b[k:m], marked[1])):
            text = escaped(" ".join(words))
            if text:
                out.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(marked[0]), " ".join(marked[1])


def size(count: int | None, request: gr.Request | None = None) -> str:
    """Return a number of bytes in MB."""
    if count is None:
        return translate(request, "unknown")
    return translate(request, "{count} MB", count=number(count / 1e6, request, 1))


def milliseconds(count: float, request: gr.Request | None = None, digits: int = 0) -> str:
    """Return a time in milliseconds."""
    return translate(request, "{count} ms", count=number(count, request, digits))


def number(value: float, request: gr.Request | None = None, digits: int = 0) -> str:
    """Return a number with separators of thousands and decimals as in the language."""
    text = f"{value:,.{digits}f}"
    if request is not None and language(request) == "ru":
        text = text.translate(str.maketrans(",.", "\u00a0,"))
    return text
