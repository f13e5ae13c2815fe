"""HTML of the page that Gradio has no component for, and how text gets into it.

Functions that write words of their own take the request, whose language these are in; None is English.
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
from edgevlm.demo.language import language, say
from edgevlm.results import PromptText, PromptTile, Stats, TokenLogprob

TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
"""Gradio reads HTML as a template; these would begin one."""

PHASES = ("wait", "prepare", "encode", "prefill", "decode")

ANNOUNCED = "element.setAttribute('role', 'status');"
"""For ``js_on_load`` of `gr.HTML`: screen readers say what changes in it."""

MAX_SIDE = 1024
"""Pixels of an image within HTML."""


def escaped(text: str) -> str:
    """Text as HTML that shows it letter for letter."""
    return html.escape(text).translate(TEMPLATE_CHARACTERS)


def block(*parts: str) -> str:
    """Pieces of HTML as one that `STYLE` holds for."""
    return f'<div class="edgevlm">{"".join(parts)}</div>'


def table(rows: Iterable[Sequence[str]], head: Sequence[str] = (), numbers: bool = False) -> str:
    """Plain texts as a table whose first column names the rows.

    Args:
        head: names of the columns, if they have any.
        numbers: whether the other columns hold numbers.
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
    return block(f'<div class="quiet">{escaped(text)}</div>')


def problem(text: str) -> str:
    return block(f'<div class="problem">{escaped(text)}</div>')


def picture(image: Image.Image, alt: str) -> str:
    """An image within HTML, made smaller if it is large."""
    shown = image.convert("RGB")
    shown.thumbnail((MAX_SIDE, MAX_SIDE))
    file = io.BytesIO()
    shown.save(file, "JPEG", quality=90, subsampling=0)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="picture" alt="{escaped(alt)}" src="data:image/jpeg;base64,{data}">'


def figure(image: Image.Image, caption: str) -> str:
    """An image over its caption."""
    drawn = picture(image, caption)
    return f"<figure>{drawn}<figcaption>{escaped(caption)}</figcaption></figure>"


def phase_names(request: gr.Request | None) -> dict[str, str]:
    return {
        "wait": say(request, "wait for the model"),
        "prepare": say(request, "prepare pictures"),
        "encode": say(request, "encode pictures"),
        "prefill": say(request, "read the prompt"),
        "decode": say(request, "write the answer"),
    }


def waterfall(stats: Stats, request: gr.Request | None = None) -> str:
    """When each phase of an answer began and ended, as bars under one another."""
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
    """A prompt in its order, with a mark where each tile's embeddings stand."""
    pieces = []
    for part in parts:
        if isinstance(part, PromptText):
            pieces.append(escaped(part.text))
        else:
            name = f"{tile_name(part, request)}: {part.tokens}"
            pieces.append(f'<span class="tile">{escaped(name)}</span>')
    hint = escaped(say(request, "A frame stands for a picture, with its number of tokens."))
    return f'<div class="prompt">{"".join(pieces)}</div><div class="quiet">{hint}</div>'


def tile_name(tile: PromptTile, request: gr.Request | None = None) -> str:
    number = tile.image + 1
    if not tile.row:
        return say(request, "picture {number}, whole", number=number)
    return say(
        request,
        "picture {number}, row {row}, column {column}",
        number=number,
        row=tile.row,
        column=tile.column,
    )


def tokens(logprobs: Sequence[TokenLogprob], request: gr.Request | None = None) -> str:
    """An answer's tokens, coloured from red (unlikely) to green, with what else might have come on hover."""
    pieces = []
    instead = escaped(say(request, "Most likely here:"))
    for token in logprobs:
        hue = round(120 * math.exp(token.logprob))
        others = "".join(
            f"<tr><td>{escaped(spelled(other))}</td>"
            f'<td class="number">{math.exp(other.logprob):.2%}</td></tr>'
            for other in token.top
        )
        chosen = f"{escaped(spelled(token))} {math.exp(token.logprob):.2%}"
        pieces.append(
            f'<span class="token" tabindex="0" style="border-color:hsl({hue},70%,45%)">'
            f"{escaped(token.piece.decode('utf-8', errors='replace') or spelled(token))}"
            f'<span class="others"><b>{chosen}</b><br>{instead}<table>{others}</table></span></span>'
        )
    hint = escaped(say(request, "Point at a token, or tap it, to see what else might have come."))
    return f'<div class="tokens">{"".join(pieces)}<span class="quiet hint">{hint}</span></div>'


def spelled(token: TokenLogprob) -> str:
    """A token's text, or its number where it has none that could be shown."""
    text = token.piece.decode("utf-8", errors="replace")
    return text if text.strip() else f"{text!r}" if text else f"[{token.token_id}]"


def differing(left: str, right: str) -> tuple[str, str]:
    """Two texts as HTML, the words that only one of them has marked."""
    a, b = left.split(), right.split()
    marked: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for words, out in ((a[i:j], marked[0]), (b[k:m], marked[1])):
            text = escaped(" ".join(words))
            if text:
                out.append(text if kind == "equal" else f"<mark>{text}</mark>")
    return " ".join(marked[0]), " ".join(marked[1])


def size(count: int | None, request: gr.Request | None = None) -> str:
    """Bytes as a person reads them."""
    if count is None:
        return say(request, "unknown")
    return say(request, "{count} MB", count=number(count / 1e6, request, 1))


def milliseconds(count: float, request: gr.Request | None = None, digits: int = 0) -> str:
    return say(request, "{count} ms", count=number(count, request, digits))


def number(value: float, request: gr.Request | None = None, digits: int = 0) -> str:
    """With thousands apart, as the language writes it."""
    text = f"{value:,.{digits}f}"
    if request is not None and language(request) == "ru":
        text = text.translate(str.maketrans(",.", "\u00a0,"))
    return text
