"""The grammar of answers with tool calls, letter by letter, and the parser of such answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevlm.errors import InputError
from edgevlm.manifest import ToolCallFormat
from edgevlm.runtimes.json_schema.constraint import JsonConstraint
from edgevlm.tool_calls import ToolCall, call_grammar, check_tools, parse_calls

FORMAT = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "\n")
END = 256
TEXTS = JsonConstraint(
    [bytes([byte]) for byte in range(256)] + [b""], [END], lambda text: list(text.encode())
)
NODE = {
    "type": "object",
    "properties": {"name": {"enum": ["a", "b"]}, "next": {"$ref": "#/$defs/Node"}},
    "required": ["name"],
    "additionalProperties": False,
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {
                "type": "object",
                "properties": {
                    "side": {"enum": ["left", "right"]},
                    "node": {"$ref": "#/$defs/Node"},
                },
                "required": ["side"],
                "$defs": {"Node": NODE},
            },
        },
    },
    {"type": "function", "function": {"name": "stop"}},
    {
        "type": "function",
        "function": {"name": "again", "parameters": {**NODE, "$defs": {"Node": NODE}}},
    },
]
LEFT = '<tool_call>\n{"name": "look", "arguments": {"side": "left"}}\n</tool_call>'
NESTED = (
    '<tool_call>\n{"name": "look", "arguments": {"side": "right", "node": {"name": "a", "next": '
    '{"name": "b"}}}}\n</tool_call>'
)
STOP = '<tool_call>\n{"name": "stop", "arguments": {}}\n</tool_call>'
AGAIN = '<tool_call>\n{"name": "again", "arguments": {"name": "a", "next": {"name": "b"}}}\n</tool_call>'


def accepted(text: str, choice: str = "auto", *, parallel: bool = True) -> str:
    """Return the longest beginning of a text that the grammar allows, with ``$`` if it may end there."""
    grammar = call_grammar(TOOLS, choice, FORMAT, parallel=parallel)
    matcher = TEXTS.call_matcher(grammar)
    written = b""
    for byte in text.encode():
        if byte not in matcher.allowed_tokens():
            return written.decode(errors="replace")
        matcher.accept(byte)
        written += bytes([byte])
    forced = matcher.accept_forced()
    ends = forced[-1:] == [END] if forced else END in matcher.allowed_tokens()
    return text + ("$" if ends else "")


@pytest.mark.parametrize(
    ("text", "choice", "parallel"),
    [
        ("", "auto", True),
        ("It is green.", "auto", True),
        ("a < b, <tool_cal", "auto", True),
        ("<tool_call>", "auto", True),
        (LEFT, "auto", True),
        (f"I look.\n{LEFT}", "auto", False),
        (f"I look.\n{LEFT}\n{STOP}", "auto", True),
        (LEFT, "required", True),
        (NESTED, "required", False),
        (AGAIN, "required", False),
        (f"{STOP}\n{LEFT}\n{NESTED}", "required", True),
        (STOP, "stop", True),
    ],
)
def test_what_the_grammar_allows(text: str, choice: str, parallel: bool) -> None:
    assert accepted(text, choice, parallel=parallel) == f"{text}$"


@pytest.mark.parametrize(
    ("text", "choice", "parallel", "ends"),
    [
        ("Green", "required", True, 0),
        (STOP, "look", True, STOP.index("stop")),
        (f"{STOP}\n{STOP}", "stop", True, len(STOP)),
        (f"{STOP}\n{STOP}", "auto", False, len(STOP)),
        (f"{STOP} Done.", "auto", True, len(STOP)),
        (LEFT.replace("left", "lest"), "auto", True, LEFT.index("left") + 2),
        (LEFT.replace("look", "loop"), "auto", True, LEFT.index("look") + 3),
        (LEFT.replace('": ', '":'), "auto", True, LEFT.index('": ') + 2),
        (LEFT.replace('"}', '", "speed": 1}'), "auto", True, LEFT.index('"}') + 4),
        ("<tool_call>\nlook", "auto", True, len("<tool_call>\n")),
    ],
)
def test_what_the_grammar_refuses(text: str, choice: str, parallel: bool, ends: int) -> None:
    found = accepted(text, choice, parallel=parallel)
    assert found == text[: len(found)] and len(found) <= ends < len(text)
    assert len(found) >= ends - 1


def test_calls_are_parsed() -> None:
    assert parse_calls("Green.", FORMAT) == ()
    assert parse_calls(f"I look.\n{NESTED}\n{STOP}", FORMAT) == (
        ToolCall("look", {"side": "right", "node": {"name": "a", "next": {"name": "b"}}}),
        ToolCall("stop", {}),
    )


@settings(max_examples=50)
@given(st.integers(0, len(f"{LEFT}\n{STOP}")))
def test_an_answer_that_was_cut_has_its_complete_calls(length: int) -> None:
    found = parse_calls(f"{LEFT}\n{STOP}"[:length], FORMAT)
    complete = [ToolCall("look", {"side": "left"}), ToolCall("stop", {})]
    assert list(found) == complete[: (length >= len(LEFT)) + (length >= len(f"{LEFT}\n{STOP}"))]


def test_texts_with_signs_of_grammars_are_taken_as_they_are() -> None:
    odd = ToolCallFormat('\\n[/C "é.*+?|{}$^', "/]\\", "")
    grammar = call_grammar(TOOLS[1:2], "auto", odd, parallel=False)
    text = f'x{odd.begin}{{"name": "stop", "arguments": {{}}}}{odd.end}'
    matcher = TEXTS.call_matcher(grammar)
    for byte in text.encode():
        assert byte in matcher.allowed_tokens()
        matcher.accept(byte)
    assert matcher.accept_forced() == [END]
    assert parse_calls(text, odd) == (ToolCall("stop", {}),)


@pytest.mark.parametrize(
    ("tools", "choice", "said"),
    [
        ("look", "auto", "must be a list"),
        ([{}] * 129, "auto", "at most 128"),
        ([7], "auto", "tools.0 must be an object such as"),
        ([{"type": "function", "function": {"name": "required"}}], "auto", "none of auto, none"),
        ([TOOLS[1], TOOLS[1]], "auto", "there twice"),
        (
            [{"type": "function", "function": {"name": "a", "parameters": []}}],
            "auto",
            "tools.0.function.parameters must be a JSON schema",
        ),
        (TOOLS, "jump", "the name of a tool, is 'jump'"),
        ([], "required", "there are no tools"),
    ],
)
def test_wrong_tools(tools: Any, choice: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        check_tools(tools, choice)


def test_the_tools_of_the_request_stay_as_they_are() -> None:
    before = json.dumps(TOOLS)
    call_grammar(TOOLS, "auto", FORMAT, parallel=True)
    assert json.dumps(TOOLS) == before
