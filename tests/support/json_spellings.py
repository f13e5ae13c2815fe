"""The ways in which a JSON value can be written without white space.

An answer is written in one of them: names in the order of the schema, numbers as their bounds need it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from edgevlm.runtimes.json_schema.constraint import JsonConstraint
from tests.support.json_texts import refused_at

MAX_TRIED = 2000
"""Most spellings of one value that are tried."""


def spellings(value: Any) -> Iterator[str]:
    """Yield the value with its names in each order, and with each number in several forms."""
    if isinstance(value, dict):
        members = [
            [f"{json.dumps(name, ensure_ascii=False)}:{text}" for text in spellings(one)]
            for name, one in value.items()
        ]
        for order in itertools.permutations(members):
            for texts in itertools.product(*order):
                yield "{" + ",".join(texts) + "}"
    elif isinstance(value, list):
        for texts in itertools.product(*(list(spellings(one)) for one in value)):
            yield "[" + ",".join(texts) + "]"
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _numbers(value)
    else:
        yield json.dumps(value, ensure_ascii=False)


def _numbers(value: int | float) -> Iterator[str]:
    plain = format(Decimal(repr(value)), "f")
    short = plain.rstrip("0").rstrip(".") if "." in plain else plain
    more = f"{short}0" if "." in short else f"{short}.0"
    zero = ["0", "-0", "-0.0"] if value == 0 else []
    yield from dict.fromkeys([plain, short, more, repr(value), *zero])


def allowed_spelling(texts: JsonConstraint, schema: dict[str, Any], value: Any) -> str | None:
    """Return a spelling of a value that the schema allows byte by byte; None if it allows none.

    Raises:
        OverflowError: the value has more than `MAX_TRIED` spellings that begin in different ways.
    """
    tried, refused = 0, b"\0"
    for text in spellings(value):
        written = text.encode()
        if written.startswith(refused):
            continue
        tried += 1
        if tried > MAX_TRIED:
            raise OverflowError(f"{value} has too many spellings")
        at = refused_at(texts, schema, written)
        if at is None:
            return text
        refused = written[: at + 1] if at < len(written) else written + b"\0"
    return None
