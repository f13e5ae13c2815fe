"""HTML of the page that Gradio has no component for, and how text gets into it."""

from __future__ import annotations

import difflib
import html
import math
from collections.abc import Iterable, Sequence

from edgevlm.results import PromptText, PromptTile, Stats, TokenLogprob

TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
"""Gradio reads HTML as a template; these would begin one."""

PHASES = ("wait", "prepare", "encode", "prefill", "decode")


def escaped(text: str) -> str:
    """Text as HTML that shows it letter for letter."""
    return html.escape(text).translate(TEMPLATE_CHARACTERS)


def block(*parts: str) -> str:
    """Pieces of HTML as one that `STYLE` holds for."""
    return f'<div class="edgevlm">{"".join(parts)}</div>'


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Names and values, both plain text."""
    cells = (f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>" for name, value in rows)
    return f"<table>{''.join(cells)}</table>"


def problem(text: str) -> str:
    return block(f'<div class="problem">{escaped(text)}</div>')


def waterfall(stats: Stats) -> str:
    """When each phase of an answer began and ended, as bars under one another."""
    total = max(stats.total_ms, 1e-9)
    begin, rows = 0.0, []
    for phase in PHASES:
        took = getattr(stats, f"{phase}_ms")
        place = f"left:{begin / total:.2%};width:{took / total:.2%}"
        rows.append(
            f'<tr><td>{phase}</td><td style="width:70%">'
            f'<div class="bar"><span style="{place}"></span></div></td>'
            f'<td class="number">{took:,.1f} ms</td></tr>'
        )
        begin += took
    return f'<table class="waterfall">{"".join(rows)}</table>'


def bars(shares: Sequence[tuple[str, float]]) -> str:
    """Shares from 0 to 1 as bars of that length."""
    rows = (
        f'<tr><td>{escaped(name)}</td><td style="width:60%"><div class="bar">'
        f'<span style="left:0;width:{share:.2%}"></span></div></td>'
        f'<td class="number">{share:.1%}</td></tr>'
        for name, share in shares
    )
    return f'<table class="bars">{"".join(rows)}</table>'


def prompt(parts: Sequence[PromptText | PromptTile]) -> str:
    """A prompt in its order, with a mark where each tile's embeddings stand."""
    pieces = []
    for part in parts:
        if isinstance(part, PromptText):
            pieces.append(escaped(part.text))
        else:
            pieces.append(f'<span class="tile">{escaped(tile_name(part))}: {part.tokens}</span>')
    return f'<div class="prompt">{"".join(pieces)}</div>'


def tile_name(tile: PromptTile) -> str:
    place = f"row {tile.row}, column {tile.column}" if tile.row else "whole"
    return f"picture {tile.picture + 1}, {place}"


def tokens(logprobs: Sequence[TokenLogprob]) -> str:
    """An answer's tokens, coloured from red (unlikely) to green, with what else might have come on hover."""
    pieces = []
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
            f'<span class="others"><b>{chosen}</b> of<table>{others}</table></span></span>'
        )
    return f'<div class="tokens">{"".join(pieces)}</div>'


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


def size(count: int | None) -> str:
    """Bytes as a person reads them."""
    return "unknown" if count is None else f"{count / 1e6:,.1f} MB"
