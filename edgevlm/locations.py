"""Boxes and points in answers: the question that asks for them, the parsers, and the way back to the image.

How a model writes them is data in the manifest (`edgevlm.manifest.Usage.location_format`). The parsers leave
out what is none: a wrong number of coordinates, coordinates outside of what the model sees, swapped corners,
no area. From an incomplete answer they take the complete boxes and points.

Coordinates are those of what the model sees of the image as a whole (`Layout.region`). `locate` converts them
to fractions of the image itself. It cuts off the part of a box that is on padding.
"""

from __future__ import annotations

import codecs
import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgevlm.boxes import Box, Point
from edgevlm.errors import InputError
from edgevlm.inputs.tiling import Layout
from edgevlm.manifest import (
    BoxTokenFormat,
    JsonFormat,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
    Usage,
)

_NUMBER = r"\s*(\d{1,6}(?:\.\d{1,9})?)\s*"
_LIST = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]", re.ASCII)
_BETWEEN = " \t,.;:!?()[]{}-–—"
"""Characters between a box and the label of the next one."""
_LOC_TOKENS = re.compile(
    r"(?P<tokens>(?:<loc\d{4}>)+)\s*(?:<seg\d{3}>)*(?P<label>[^;<>\n]*)", re.ASCII
)
_BOX_TOKENS = re.compile(
    r"<\|object_ref_start\|>(?P<label>[^<]*)<\|object_ref_end\|>"
    rf"|<\|box_start\|>\({_NUMBER},{_NUMBER}\),\s*\({_NUMBER},{_NUMBER}\)<\|box_end\|>",
    re.ASCII,
)


@dataclass(frozen=True)
class ParsedLocation:
    """Coordinates in a text."""

    coordinates: tuple[float, ...]
    """Left, top, right and bottom of a box or x and y of a point, in fractions of what the model sees."""
    label: str
    start: int
    """Place of the coordinates in the text: the first character, and the first one after them."""
    end: int

    @property
    def valid(self) -> bool:
        """True for a box or a point inside of what the model sees."""
        if not all(0 <= one <= 1 for one in self.coordinates):
            return False
        if len(self.coordinates) == 2:
            return True
        left, top, right, bottom = self.coordinates
        return left < right and top < bottom


def location_question(
    task: Literal["detect", "point"], usage: Usage | None, thing: str, language: str
) -> str:
    """Return the question for the boxes of a thing or for points on it.

    Args:
        usage: of the manifest.
        thing: the name of the thing.
        language: ISO 639-1 code of the language of the name.

    Raises:
        InputError: the name is empty, or the model has no such question in this language.
    """
    if not isinstance(thing, str) or not thing.strip():
        raise InputError(f"thing must be the name of a thing, is {thing!r}")
    if usage is None or usage.location_format is None:
        raise InputError(
            "this model writes no boxes and no points; use one for which `edgevlm inspect` shows them, such "
            "as edgevlm-nano; if an older edgevlm exported the model, export it again"
        )
    questions: dict[str, str] = {
        code: question
        for code, tasks in usage.tasks.items()
        if (question := getattr(tasks, task)) is not None
    }
    if not questions:
        other = "" if task == "detect" else "; use detect, and Box.center"
        raise InputError(f"this model has no question for the task {task}{other}")
    if language not in questions:
        raise InputError(
            f"language must be one of {', '.join(questions)} for this model, is {language!r}"
        )
    return questions[language].replace("{thing}", thing.strip())


def locate(
    pieces: Sequence[bytes],
    logprobs: Sequence[float],
    location_format: LocationFormat,
    layout: Layout,
    tile_size: tuple[int, int] | None,
) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
    """Return the boxes and points in an answer, each in the order of the answer.

    Args:
        pieces: UTF-8 bytes of the tokens of the answer, with special tokens spelled out.
        logprobs: natural logarithm of the probability of each token; empty: not known.
        location_format: how the model writes boxes and points.
        layout: that of the image which they are on.
        tile_size: as of `Layout.region_size`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    texts = [decoder.decode(piece) for piece in pieces]
    ends = list(itertools.accumulate(map(len, texts)))
    size = layout.width, layout.height
    boxes: list[Box] = []
    points: list[Point] = []
    for location in parse("".join(texts), location_format, layout.region_size(tile_size)):
        chosen = [
            logprob
            for logprob, text, end in zip(logprobs, texts, ends, strict=False)
            if end - len(text) < location.end and location.start < end
        ]
        probability = math.exp(sum(chosen) / len(chosen)) if chosen else None
        x, y = layout.region.to_image(*location.coordinates[:2])
        if len(location.coordinates) == 2:
            if 0 <= x <= 1 and 0 <= y <= 1:
                points.append(Point(x, y, location.label, probability, size))
            continue
        right, bottom = layout.region.to_image(*location.coordinates[2:])
        left, top, right, bottom = (min(max(side, 0.0), 1.0) for side in (x, y, right, bottom))
        if left < right and top < bottom:
            boxes.append(Box(left, top, right, bottom, location.label, probability, size))
    return tuple(boxes), tuple(points)


def parse(
    text: str, location_format: LocationFormat, size: tuple[int, int]
) -> list[ParsedLocation]:
    """Return the boxes and points in a text, in order.

    Args:
        text: the answer, with special tokens spelled out; it may be incomplete.
        size: height and width in pixels of what the model sees.
    """
    found = _PARSERS[type(location_format)](text, location_format, size)
    return [location for location in found if location.valid]


def _parse_lists(
    text: str, location_format: ListFormat, size: tuple[int, int]
) -> Iterator[ParsedLocation]:
    end = 0
    for match in _LIST.finditer(text):
        label = text[end : match.start()].rpartition("\n")[2].strip(_BETWEEN)
        end = match.end()
        coordinates = tuple(float(number) / location_format.scale for number in match.groups())
        yield ParsedLocation(coordinates, label, *match.span())


def _parse_loc_tokens(
    text: str, location_format: LocTokenFormat, size: tuple[int, int]
) -> Iterator[ParsedLocation]:
    for match in _LOC_TOKENS.finditer(text):
        bins = [int(number) for number in re.findall(r"\d+", match["tokens"])]
        if len(bins) == 4 and max(bins) < location_format.bins:
            top, left, bottom, right = (index / location_format.bins for index in bins)
            span = match.span("tokens")
            yield ParsedLocation((left, top, right, bottom), match["label"].strip(), *span)


def _parse_box_tokens(
    text: str, location_format: BoxTokenFormat, size: tuple[int, int]
) -> Iterator[ParsedLocation]:
    label = ""
    for match in _BOX_TOKENS.finditer(text):
        if match["label"] is not None:
            label = match["label"].strip()
            continue
        _, *corners = match.groups()
        coordinates = tuple(float(number) / location_format.scale for number in corners)
        yield ParsedLocation(coordinates, label, *match.span())


def _parse_json(
    text: str, location_format: JsonFormat, size: tuple[int, int]
) -> Iterator[ParsedLocation]:
    height, width = size
    scales = (
        (width, height)
        if location_format.scale is None
        else (location_format.scale, location_format.scale)
    )
    decoder = json.JSONDecoder()
    start = -1
    while (start := text.find("{", start + 1)) >= 0:
        try:
            values, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):  # incomplete, or no JSON
            continue
        label = values.get(location_format.label_key)
        for keys, count in ((location_format.box_keys, 4), (location_format.point_keys, 2)):
            numbers = _read_numbers(values, keys)
            if len(numbers) == count:
                coordinates = tuple(
                    number / scale
                    for number, scale in zip(numbers, itertools.cycle(scales), strict=False)
                )
                yield ParsedLocation(
                    coordinates,
                    label.strip() if isinstance(label, str) else "",
                    *_find_values(text, keys, start, end),
                )


def _read_numbers(values: dict[str, Any], keys: Sequence[str]) -> list[float]:
    """Return the numbers under one key or several; none if any of them is no number of a sane size."""
    found = values.get(keys[0]) if len(keys) == 1 else [values.get(key) for key in keys]
    if not isinstance(found, list):
        return []
    sane = all(type(one) in (int, float) and 0 <= one < 1e9 for one in found)
    return found if sane else []


def _find_values(text: str, keys: Sequence[str], start: int, end: int) -> tuple[int, int]:
    """Return where the values of some keys of a JSON object are in a text, from the first to the last.

    Args:
        start, end: the place of the object.
    """
    spans = [
        match.span(1)
        for key in keys
        if (
            match := re.compile(rf'"{re.escape(key)}"\s*:\s*(\[[^]]*]|[^,}}\s]+)').search(
                text, start, end
            )
        )
    ]
    if len(spans) < len(keys):  # a key with escapes
        return start, end
    return min(spans)[0], max(spans)[1]


_PARSERS: dict[type, Callable[[str, Any, tuple[int, int]], Iterator[ParsedLocation]]] = {
    ListFormat: _parse_lists,
    LocTokenFormat: _parse_loc_tokens,
    BoxTokenFormat: _parse_box_tokens,
    JsonFormat: _parse_json,
}
