"""Boxes and points in answers: what is one, what is none, where it is on the image, how likely it is."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.boxes import Box, Point
from edgevlm.errors import InputError
from edgevlm.inputs.tiling import Layout
from edgevlm.inputs.tiling.tiles import Region
from edgevlm.locations import locate, location_question
from edgevlm.manifest import (
    BoxTokenFormat,
    JsonFormat,
    ListFormat,
    LocationFormat,
    LocTokenFormat,
    Tasks,
    Usage,
)

PERCENT = ListFormat(100)
FRACTIONS = ListFormat(1)
LOC = LocTokenFormat(1024)
TOKENS = BoxTokenFormat(1000)
PIXELS = JsonFormat(("bbox_2d",), ("point_2d",), "label", None)
THOUSAND = JsonFormat(("bbox_2d",), ("point_2d",), "label", 1000)
SIDES = JsonFormat(("x_min", "y_min", "x_max", "y_max"), ("x", "y"), None, 1)

LAYOUT = Layout(300, 400, tile_sizes=((200, 500),))
"""An image of 400 x 300 pixels, which the model sees in a tile of 500 x 200."""
SIZE = (400, 300)


def found(text: str, location_format: LocationFormat) -> tuple[tuple[Box, ...], tuple[Point, ...]]:
    return locate([text.encode()], [], location_format, LAYOUT, None)


def boxes(text: str, location_format: LocationFormat) -> list[tuple[float, ...]]:
    return [(box.left, box.top, box.right, box.bottom) for box in found(text, location_format)[0]]


def labels(text: str, location_format: LocationFormat) -> list[str]:
    return [box.label for box in found(text, location_format)[0]]


ANSWERS: dict[str, tuple[LocationFormat, str, list[tuple[float, ...]], list[str]]] = {
    "percent": (PERCENT, "[62, 57, 87, 90]", [(0.62, 0.57, 0.87, 0.9)], [""]),
    "percent with labels": (
        PERCENT,
        "Two things:\nthe key: [0,0,100,100]; a cat – [1.5, 2, 3 , 4.25].",
        [(0, 0, 1, 1), (0.015, 0.02, 0.03, 0.0425)],
        ["the key", "a cat"],
    ),
    "fractions": (FRACTIONS, "[0.25, 0.5, 1, 0.75]", [(0.25, 0.5, 1, 0.75)], [""]),
    "loc tokens": (
        LOC,
        "<loc0256><loc0128><loc0512><loc0640> tabby cat ; <loc0000><loc0000><loc1023><loc1023> dog",
        [(0.125, 0.25, 0.625, 0.5), (0, 0, 1023 / 1024, 1023 / 1024)],
        ["tabby cat", "dog"],
    ),
    "loc tokens with a segmentation": (
        LOC,
        "<loc0256><loc0128><loc0512><loc0640>" + "<seg001>" * 16 + " cat",
        [(0.125, 0.25, 0.625, 0.5)],
        ["cat"],
    ),
    "box tokens": (
        TOKENS,
        "<|object_ref_start|>a bird<|object_ref_end|><|box_start|>(530,351),(602,516)<|box_end|>"
        "<|box_start|>(176,106),(232,160)<|box_end|> <|box_start|>(0,0),(1000,1000)<|box_end|>",
        [(0.53, 0.351, 0.602, 0.516), (0.176, 0.106, 0.232, 0.16), (0, 0, 1, 1)],
        ["a bird", "a bird", "a bird"],
    ),
    "box tokens without a label": (
        TOKENS,
        "<|box_start|>(1,2), (3,4)<|box_end|>",
        [(0.001, 0.002, 0.003, 0.004)],
        [""],
    ),
    "pixels of the resized image": (
        PIXELS,
        'Here:\n```json\n[\n\t{"bbox_2d": [0, 100, 250, 200], "label": "cat {1}"},\n'
        '\t{"bbox_2d": [10.5, 20, 500, 199.5], "label": "dog"}\n]\n```',
        [(0, 0.5, 0.5, 1), (0.021, 0.1, 1, 0.9975)],
        ["cat {1}", "dog"],
    ),
    "thousandths": (
        THOUSAND,
        '{"things": [{"label": "кот", "bbox_2d": [1, 2, 999, 1000]}]}',
        [(0.001, 0.002, 0.999, 1)],
        ["кот"],
    ),
    "one key for each side": (
        SIDES,
        '{"objects":[{"x_min":0.1,"y_min":0.2,"x_max":0.3,"y_max":0.4}]}',
        [(0.1, 0.2, 0.3, 0.4)],
        [""],
    ),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_each_format(case: str) -> None:
    location_format, text, expected, names = ANSWERS[case]
    assert boxes(text, location_format) == expected
    assert labels(text, location_format) == names


@pytest.mark.parametrize("case", ANSWERS)
def test_an_incomplete_answer_has_the_complete_boxes(case: str) -> None:
    location_format, text, expected, _ = ANSWERS[case]
    numbers = set()
    for end in range(len(text) + 1):
        cut = boxes(text[:end], location_format)
        assert cut == expected[: len(cut)]
        numbers.add(len(cut))
    assert numbers == set(range(len(expected) + 1))


def test_points() -> None:
    text = '[{"point_2d": [125, 50], "label": "handle"}, {"bbox_2d": [0, 0, 1, 1], "point_2d": [0, 0]}]'
    box_list, points = found(text, PIXELS)
    assert points == (Point(0.25, 0.25, "handle", None, SIZE), Point(0, 0, "", None, SIZE))
    assert len(box_list) == 1
    assert [point.pixels() for point in points] == [(100, 75), (0, 0)]
    assert found('{"points": [{"x": 0.5, "y": 1}, {"x": 0.5}]}', SIDES)[1][0].pixels() == (200, 299)
    assert found('{"point_2d": [501, 3]} {"point_2d": [5, 3, 4]} {"point_2d": 5}', PIXELS)[1] == ()


NO_BOXES: dict[LocationFormat, list[str]] = {
    PERCENT: [
        "",
        "key",
        "[62, 57, 87]",
        "[62, 57, 87, 90",
        "[62, 57, 87, 90, 95]",
        "[62 57 87 90]",
        "[87, 57, 62, 90]",
        "[62, 90, 87, 57]",
        "[62, 57, 62, 90]",
        "[62, 57, 101, 90]",
        "[-62, 57, 87, 90]",
        "[62, 57, 87, 1e1]",
        "[62, 57, 87, nan]",
        "[62, 57, 87, inf]",
        "[62, 57, 87, ٩٠]",
        f"[62, 57, 87, {'9' * 5000}]",
        f"[0.{'0' * 5000}1, 57, 87, 90]",
        "[" * 100_000,
        "[ " * 50_000,
        "[1," * 50_000,
    ],
    LOC: [
        "<loc0256><loc0128><loc0512> cat",
        "<loc0256><loc0128><loc0512><loc0640><loc0640> cat",
        "<loc0256><loc0128><loc0512><loc1024> cat",
        "<loc0256><loc0640><loc0512><loc0128> cat",
        "<loc0256><loc0128><loc0256><loc0640> cat",
        "<loc256><loc128><loc512><loc640> cat",
        "<loc0001>" * 10_000,
        "<loc" * 50_000,
    ],
    TOKENS: [
        "(1,2),(3,4)",
        "<|box_start|>(1,2),(3,4)",
        "<|box_start|>(1,2,3,4)<|box_end|>",
        "<|box_start|>(1,2),(3,1001)<|box_end|>",
        "<|box_start|>(3,2),(1,4)<|box_end|>",
        "<|object_ref_start|>" * 5_000,
        "<|box_start|>(" * 5_000,
    ],
    PIXELS: [
        '{"bbox_2d": [1, 2, 3]}',
        '{"bbox_2d": [1, 2, 3, 4, 5]}',
        '{"bbox_2d": [1, 2, 501, 4]}',
        '{"bbox_2d": [1, 2, 3, 201]}',
        '{"bbox_2d": [3, 2, 1, 4]}',
        '{"bbox_2d": [-1, 2, 3, 4]}',
        '{"bbox_2d": ["1", "2", "3", "4"]}',
        '{"bbox_2d": [false, false, true, true]}',
        '{"bbox_2d": [1, 2, NaN, Infinity]}',
        '{"bbox_2d": [1, 2, 3, 1e999]}',
        f'{{"bbox_2d": [1, 2, 3, {"9" * 400}]}}',
        f'{{"bbox_2d": [1, 2, 3, {"9" * 5000}]}}',
        '{"bbox": [1, 2, 3, 4]}',
        '{"bbox_2d": {"0": 1}}',
        '{"bbox_2d": "1, 2, 3, 4"}',
        "{" * 50_000,
        '{"a":' * 3_000,
    ],
    SIDES: [
        '{"x_min": 0.1, "y_min": 0.2, "x_max": 0.3}',
        '{"x_min": 0.1, "y_min": 0.2, "x_max": 1.3, "y_max": 0.4}',
        '{"x_min": [0.1], "y_min": 0.2, "x_max": 0.3, "y_max": 0.4}',
    ],
}


@pytest.mark.parametrize(
    ("location_format", "text"),
    [(location_format, text) for location_format, texts in NO_BOXES.items() for text in texts],
    ids=lambda value: value[:30] if isinstance(value, str) else value.kind,
)
def test_what_is_no_box(location_format: LocationFormat, text: str) -> None:
    assert boxes(text, location_format) == []


def write(location_format: LocationFormat, box: tuple[int, int, int, int], label: str) -> str:
    """Write a box in tenths of the image as a model does."""
    left, top, right, bottom = box
    if isinstance(location_format, ListFormat):
        return f"{label} {[side * location_format.scale / 10 for side in box]}\n"
    if isinstance(location_format, LocTokenFormat):
        bins = [side * 1023 // 10 for side in (top, left, bottom, right)]
        return "".join(f"<loc{index:04}>" for index in bins) + f" {label} ; "
    if isinstance(location_format, BoxTokenFormat):
        return (
            f"<|object_ref_start|>{label}<|object_ref_end|>"
            f"<|box_start|>({left * 100},{top * 100}),({right * 100},{bottom * 100})<|box_end|>"
        )
    if len(location_format.box_keys) == 4:
        return json.dumps(
            dict(zip(location_format.box_keys, (side / 10 for side in box), strict=True))
        )
    across, down = (50, 20) if location_format.scale is None else (100, 100)
    sides = [left * across, top * down, right * across, bottom * down]
    return json.dumps({"bbox_2d": sides, "label": label}, ensure_ascii=False)


@st.composite
def tenths(draw: st.DrawFn) -> tuple[int, int, int, int]:
    side = st.lists(st.integers(0, 10), min_size=2, max_size=2, unique=True).map(sorted)
    (left, right), (top, bottom) = draw(side), draw(side)
    return left, top, right, bottom


@pytest.mark.parametrize(
    "location_format",
    [PERCENT, FRACTIONS, LOC, TOKENS, PIXELS, THOUSAND, SIDES],
    ids=lambda one: one.kind,
)
@given(given=st.lists(st.tuples(tenths(), st.text("abя ", max_size=5)), max_size=4))
def test_every_box_is_found(
    location_format: LocationFormat, given: list[tuple[tuple[int, int, int, int], str]]
) -> None:
    text = "".join(write(location_format, box, label) for box, label in given)
    places = boxes(text, location_format)
    assert len(places) == len(given)
    for place, (box, _) in zip(places, given, strict=True):
        assert place == pytest.approx([side / 10 for side in box], abs=2 / 1024)
    if location_format != SIDES:
        assert labels(text, location_format) == [label.strip() for _, label in given]


@pytest.mark.parametrize("location_format", list(NO_BOXES), ids=lambda one: one.kind)
@given(
    st.text(st.sampled_from("[], .-+0123456789e\n"), max_size=80)
    | st.text(max_size=80)
    | st.lists(
        st.sampled_from(
            ("<loc0900>", "<loc9999>", "(9,1)", ",", "<|box_start|>", "<|box_end|>", '{"x":1', "}")
        )
    ).map("".join)
)
def test_whatever_is_said_a_box_is_inside_the_image(
    location_format: LocationFormat, text: str
) -> None:
    for left, top, right, bottom in boxes(text, location_format):
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1


def test_a_box_of_a_padded_image_loses_what_is_on_padding() -> None:
    # 400 x 300 pixels in the middle of a square: above and below is an eighth of padding.
    layout = Layout(300, 400, tile_sizes=((80, 80),), region=Region(0, -1 / 6, 1, 7 / 6))

    def at(text: str) -> list[tuple[float, ...]]:
        made, _ = locate([text.encode()], [], PERCENT, layout, None)
        return [(box.left, box.top, box.right, box.bottom) for box in made]

    assert at("[0, 12.5, 100, 87.5]") == [pytest.approx((0, 0, 1, 1))]
    assert at("[50, 50, 75, 75]") == [pytest.approx((0.5, 0.5, 0.75, 5 / 6))]
    assert at("[0, 0, 10, 50]") == [pytest.approx((0, 0, 0.1, 0.5))]
    assert at("[0, 0, 10, 12]") == [], "all of it is padding"
    point = '{"point_2d": [40, %d]}'
    for y, expected in ((40, [(0.5, 0.5)]), (5, []), (75, [])):
        _, points = locate([(point % y).encode()], [], PIXELS, layout, None)
        assert [(one.x, round(one.y, 9)) for one in points] == expected


def test_the_probability_is_that_of_the_coordinates() -> None:
    pieces: list[Any] = [
        b"\xd0",
        b"\xba",
        "лю".encode(),
        b" [1",
        b"0,20",
        b",30,40",
        b"] key",
        b"[0,0,9,9]",
    ]
    logprobs = [math.log(one) for one in (0.1, 0.1, 0.1, 0.5, 0.25, 0.5, 0.5, 0.9)]
    first, second = locate(pieces, logprobs, PERCENT, LAYOUT, None)[0]
    assert first.label == "клю" and second.label == "key"
    assert first.probability == pytest.approx((0.5 * 0.25 * 0.5 * 0.5) ** 0.25)
    assert second.probability == pytest.approx(0.9)
    pieces = [b'[{"bbox_2d"', b": ", b"[1,2,3,4]", b', "label": "a"}]']
    (box,), _ = locate(pieces, [-3, -2, -1, -4], PIXELS, LAYOUT, None)
    assert box.probability == pytest.approx(math.exp(-1))
    pieces = [b'{"x_min": ', b'0.1,"y_min":0.2,"x_max":0.3,"y_max":0.4', b"}"]
    (box,), _ = locate(pieces, [-3, -1, -4], SIDES, LAYOUT, None)
    assert box.probability == pytest.approx(math.exp(-1))
    escaped = [b'{"bbox\\u005f2d":', b"[1,2,3,4]}"]
    (box,), _ = locate(escaped, [-1, -3], PIXELS, LAYOUT, None)
    assert box.probability == pytest.approx(math.exp(-2)), "of the whole object"


def test_pixels_of_the_image() -> None:
    (box,) = found("[50, 0, 100, 50]", PERCENT)[0]
    assert box.image_size == SIZE and box.probability is None
    assert box.pixels() == (200, 0, 399, 150)
    assert box.pixels(40, 30) == (20, 0, 39, 15)
    assert box.center == Point(0.75, 0.25, "", None, SIZE)
    assert box.center.pixels() == (300, 75)
    with pytest.raises(InputError, match="pass width and height, or neither; they are 4 and None"):
        box.pixels(4)
    with pytest.raises(InputError, match="size of the image is not known"):
        Box(0, 0, 1, 1).pixels()


def test_questions() -> None:
    tasks = {"en": Tasks(detect="Where is the {thing}?"), "ru": Tasks(detect="Где {thing}?")}
    usage = Usage(location_format=PERCENT, tasks=tasks)
    assert location_question("detect", usage, " {thing} ", "en") == "Where is the {thing}?"
    assert location_question("detect", usage, "ключ", "ru") == "Где ключ?"
    pointing = Usage(location_format=PIXELS, tasks={"en": Tasks(point="Point to {thing}.")})
    assert location_question("point", pointing, "the handle", "en") == "Point to the handle."
    for of, task, thing, language, message in (
        (usage, "detect", "", "en", "thing must be the name of a thing, is ''"),
        (usage, "detect", None, "en", "thing must be the name of a thing, is None"),
        (
            usage,
            "detect",
            "Schlüssel",
            "de",
            "language must be one of en, ru for this model, is 'de'",
        ),
        (usage, "point", "key", "en", "no question for the task point; use detect, and Box.center"),
        (pointing, "detect", "key", "en", "no question for the task detect$"),
        (Usage(tasks=tasks), "detect", "key", "en", "writes no boxes and no points; use one"),
        (None, "detect", "key", "en", "writes no boxes and no points; use one"),
    ):
        with pytest.raises(InputError, match=message):
            location_question(task, of, thing, language)  # type: ignore[arg-type]
