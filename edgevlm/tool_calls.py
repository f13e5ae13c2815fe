"""Tool calls: the checks of tools, the grammar of their calls, and the parser of an answer.

A call in an answer is a JSON object with ``name`` and ``arguments`` between two texts, which are data in the
manifest (`edgevlm.manifest.ToolCallFormat`). The grammar allows nothing else, so each complete call can be
parsed, and its arguments keep to the JSON schema of the tool.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import InputError
from edgevlm.manifest import ToolCallFormat
from edgevlm.runtimes.protocols import CallGrammar

MODES = ("auto", "none", "required")
"""Values of ``tool_choice`` that are no names of tools."""

MAX_TOOLS = 128
"""Most tools of one request, as in OpenAI's API."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NOT_SCHEMAS = frozenset({"const", "default", "enum", "examples"})
"""Keywords whose values are no schemas."""


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool in an answer."""

    name: str
    """Name of the tool."""
    arguments: Mapping[str, Any]
    """Its arguments; they keep to the JSON schema of the tool."""


def check_tools(tools: object, choice: object) -> None:
    """Check the form of tools, and that the choice is possible.

    Raises:
        InputError: they are wrong; the message names the place.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str) or len(tools) > MAX_TOOLS:
        raise InputError(f"tools must be a list of at most {MAX_TOOLS} functions")
    names: list[str] = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or tool.get("type") != "function":
            raise InputError(
                f'tools.{index} must be an object such as {{"type": "function", "function": '
                f'{{"name": "look", "parameters": {{"type": "object"}}}}}}'
            )
        name, parameters = function.get("name"), function.get("parameters")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in MODES:
            raise InputError(
                f"tools.{index}.function.name must be 1 to 64 letters, digits, underscores and hyphens, and "
                f"none of {', '.join(MODES)}, is {name!r}"
            )
        if name in names:
            raise InputError(f"tools.{index}.function.name {name!r} is there twice")
        if parameters is not None and not isinstance(parameters, Mapping):
            raise InputError(f"tools.{index}.function.parameters must be a JSON schema")
        names.append(name)
    if choice not in (*MODES, *names):
        raise InputError(
            f"tool_choice must be one of {', '.join(MODES)} or the name of a tool, is {choice!r}"
        )
    if choice != "none" and choice != "auto" and not names:
        raise InputError(f"tool_choice is {choice!r}, and there are no tools")


def call_grammar(
    tools: Sequence[Mapping[str, Any]],
    choice: str,
    tool_format: ToolCallFormat,
    *,
    parallel: bool,
) -> CallGrammar:
    """Return the grammar of an answer with calls.

    Args:
        tools: as `check_tools` accepts them.
        choice: ``auto``: a text, and calls or none; ``required``: calls only; a name: one call of this tool.
        parallel: allow several calls.
    """
    functions = [tool["function"] for tool in tools]
    named = [function for function in functions if function["name"] == choice]
    schema = {
        "anyOf": [
            _call_schema(function, f"#/anyOf/{index}/properties/arguments")
            for index, function in enumerate(named or functions)
        ]
    }
    return CallGrammar(
        begin=tool_format.begin,
        end=tool_format.end,
        separator=tool_format.separator,
        schema=schema,
        required=choice != "auto",
        several=parallel and not named,
    )


def parse_calls(text: str, tool_format: ToolCallFormat) -> tuple[ToolCall, ...]:
    """Return the complete calls in an answer, in order.

    Args:
        text: the answer, with all its calls.
    """
    calls = []
    decoder = json.JSONDecoder()
    start = text.find(tool_format.begin)
    while start >= 0:
        try:
            call, end = decoder.raw_decode(text, start + len(tool_format.begin))
        except (ValueError, RecursionError):  # incomplete
            break
        if not text.startswith(tool_format.end, end):
            break
        calls.append(ToolCall(call["name"], call["arguments"]))
        start = text.find(tool_format.begin, end)
    return tuple(calls)


def _call_schema(function: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Return the JSON schema of the calls of a function.

    Args:
        place: JSON pointer of its parameters within the schema of all calls.
    """
    parameters = dict(function.get("parameters") or {"properties": {}})
    for name in ("$schema", "$id"):
        parameters.pop(name, None)
    parameters.setdefault("type", "object")
    if "properties" in parameters:  # a function takes no arguments that it does not name
        parameters.setdefault("additionalProperties", False)
    return {
        "type": "object",
        "properties": {
            "name": {"const": function["name"]},
            "arguments": _move_references(parameters, place),
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _move_references(schema: Any, place: str) -> Any:
    """Return a copy of a schema whose references are right at another place."""
    if isinstance(schema, list | tuple):
        return [_move_references(one, place) for one in schema]
    if not isinstance(schema, Mapping):
        return schema
    moved = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and re.match(r"#(/|$)", value):
            moved[key] = place + value[1:]
        else:
            moved[key] = value if key in _NOT_SCHEMAS else _move_references(value, place)
    return moved
