"""HTML of the page that Gradio has no component for, its style sheet, and how text gets into it."""

from __future__ import annotations

import difflib
import html
import math
from collections.abc import Iterable, Sequence

from edgevlm.results import PromptText, PromptTile, Stats, TokenLogprob

TEMPLATE_CHARACTERS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})
"""Gradio reads HTML as a template; these would begin one."""

PHASES = ("wait", "prepare", "encode", "prefill", "decode")

STYLE = """
.edgevlm table { border-collapse: collapse; width: 100%; margin: 0; border: 0 !important; }
.edgevlm td, .edgevlm th { text-align: left; padding: 3px 8px 3px 0; vertical-align: top;
  border: 0 !important; }
.edgevlm tr { border: 0 !important; }
.edgevlm tr + tr td { border-top: 1px solid var(--border-color-primary) !important; }
.labelled { flex: 1 1 300px !important; min-width: min(300px, 100%) !important; }
.labelled .edgevlm { padding-top: 1.7em; }
.edgevlm td.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.edgevlm .bar { position: relative; height: 1.1em; min-width: 4em; overflow: hidden;
  background: var(--background-fill-secondary); }
.edgevlm .bar span { position: absolute; top: 0; bottom: 0; min-width: 2px; background: var(--color-accent); }
.edgevlm .prompt { white-space: pre-wrap; overflow-wrap: anywhere; font-family: var(--font-mono); }
.edgevlm .special { color: var(--body-text-color-subdued); }
.edgevlm .tile { border: 1px solid var(--color-accent); border-radius: 4px; padding: 0 4px; margin: 0 1px;
  display: inline-block; }
.edgevlm .tokens { position: relative; padding-bottom: 11em; line-height: 1.9; overflow-wrap: anywhere; }
.edgevlm .token { border-bottom: 3px solid; padding: 1px 0; cursor: help; white-space: pre-wrap; }
.edgevlm .token .others { display: none; position: absolute; left: 0; bottom: 0; height: 10.5em; width: 100%;
  white-space: pre-wrap; line-height: 1.4; }
.edgevlm .token:hover, .edgevlm .token:focus { background: var(--background-fill-secondary); }
.edgevlm .token:hover .others, .edgevlm .token:focus .others { display: block; }
.edgevlm .tokens:hover .token:focus:not(:hover) .others { display: none; }
.edgevlm mark { background: color-mix(in srgb, var(--color-accent) 35%, transparent); color: inherit;
  border-radius: 3px; padding: 0 2px; }
.edgevlm .answer { font-size: 1.25em; white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.6em; }
.edgevlm .quiet { color: var(--body-text-color-subdued); }
.edgevlm .problem { color: var(--error-text-color); }
footer { margin-top: 0 !important; }
button[aria-label="Share"] { display: none; }
"""


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
