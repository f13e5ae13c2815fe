"""Options refuse invalid values, and the detokenizer gives the same text piece by piece as at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevlm.engine.detokenizer import Detokenizer
from edgevlm.errors import InputError
from edgevlm.options import Generation


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": -1},
        {"max_tokens": 2**40},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": "9"},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_k": -1},
        {"top_p": 1.1},
        {"min_p": -1},
        {"repetition_penalty": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"stop": ""},
        {"stop": ("a", "")},
        {"stop": (1,)},
        {"stop": 5},
        {"stop": b"x"},
        {"cap_max_tokens": 1},
        {"cache_images": None},
    ],
    ids=str,
)
def test_a_setting_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InputError, match=f"^{name} must"):
        Generation(**options)


@pytest.mark.parametrize("none", [None, (), []])
def test_no_stop_strings(none: Any) -> None:
    assert Generation(stop=none) == Generation()


def whole(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """Return the text that `Detokenizer` must give, computed from the whole text at once."""
    text = text.lstrip()
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return (text[: min(found)[1]], True) if found else (text, False)


@given(
    st.text(alphabet="ab \n€😀", max_size=30),
    st.lists(st.text(alphabet="ab€", min_size=1, max_size=4), max_size=3).map(tuple),
    st.data(),
)
def test_pieces_come_to_the_same_as_the_whole(text: str, stops: tuple[str, ...], data: Any) -> None:
    spelled = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(spelled)), max_size=12)))
    answer = Detokenizer(stops)
    shown = ""
    expected, stopped = whole(text, stops)
    for start, end in zip([0, *cuts], [*cuts, len(spelled)], strict=True):
        shown += answer.push(spelled[start:end])
        assert expected.startswith(shown)
        if answer.stopped:
            break
    shown += answer.finish()
    assert (shown, answer.stopped) == (expected, stopped)


def test_half_a_character_is_replaced_at_the_end() -> None:
    answer = Detokenizer(())
    assert answer.push("€".encode()[:2]) == ""
    assert answer.finish() == "\N{REPLACEMENT CHARACTER}"
