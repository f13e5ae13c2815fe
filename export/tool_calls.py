"""Find how a chat template writes tool calls, by what it writes for an example."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from edgevlm.inputs.prompt import PromptBuilder
from edgevlm.manifest import PromptSpec, ToolCallFormat

FUNCTION = {"name": "look_there", "arguments": {"place": "at the left"}}
CALL = {"type": "function", "function": FUNCTION}
DESCRIPTION = "Turns the camera."
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": FUNCTION["name"],
            "description": DESCRIPTION,
            "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
        },
    }
]
QUESTION = {"role": "user", "content": [{"type": "text", "text": "What is there?"}]}
RESULT_TEXT = "The camera turned."
RESULT = {"role": "tool", "content": [{"type": "text", "text": RESULT_TEXT}]}
SEVERAL = 2


def find_tool_calls(spec: PromptSpec) -> ToolCallFormat | None:
    """Return how the template writes calls of tools; None if it has no tools, or another form of calls.

    The form is that of Hermes: a JSON object with ``name`` and ``arguments`` between two texts without
    special tokens. The template must also write the tools and the text of a tool's result.
    """
    builder = PromptBuilder(dataclasses.replace(spec, splitting=None), lambda _: [0])

    def render(messages: Sequence[Mapping[str, Any]], *, ask: bool) -> str:
        return builder.render(
            [dict(message) for message in messages], add_generation_prompt=ask, tools=TOOLS
        )

    try:
        prompt = render([QUESTION], ask=True)
        answers = [
            render([QUESTION, {"role": "assistant", "content": [], "tool_calls": calls}], ask=False)
            for calls in ([CALL], [CALL] * SEVERAL)
        ]
        whole = render(
            [QUESTION, {"role": "assistant", "content": [], "tool_calls": [CALL]}, RESULT], ask=True
        )
    except Exception:  # PromptError, or whatever a template without tools makes Python raise
        return None
    if DESCRIPTION not in prompt or f"{RESULT_TEXT}'" in whole or RESULT_TEXT not in whole:
        return None
    if not all(answer.startswith(prompt) for answer in answers):
        return None
    special = re.compile("|".join(re.escape(token.text) for token in spec.special_tokens))
    one, several = (special.split(answer[len(prompt) :])[0] for answer in answers)
    begin, _, end = one.partition(json.dumps(FUNCTION))
    if not begin or not end:
        return None
    between = several.split(one)
    if len(between) != SEVERAL + 1 or between[0] or between[-1]:
        return None
    return ToolCallFormat(begin, end, between[1])
