"""Checks of messages and tools before the chat template sees them, and the texts in them."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edgevlm.errors import ContextError, PromptError

ROLES = ("system", "user", "assistant", "tool")

MAX_TOKEN_LENGTH = 128
"""Characters of the longest token that a vocabulary has: Llama 3's of 128 spaces. So a text of more
characters than this for each position cannot fit, which is known without tokenizing it."""

NO_TOOLS = (
    "this model has no tools: its chat template takes none, or writes calls in a form that is not supported; "
    "if an older edgevlm exported the model, export it again"
)
SHORTEN = "shorten the conversation or load the model with a larger context_length"


def check_length(
    messages: Sequence[Mapping[str, Any]], max_positions: int, tools: Sequence[Mapping[str, Any]]
) -> None:
    """Check what cannot fit with any vocabulary: each message takes at least one token.

    Raises:
        ContextError: the messages cannot fit.
    """
    length = sum(map(len, texts_in(tools)))
    for message in messages:
        if isinstance(message, Mapping):
            length += sum(map(len, texts_in(message.get("tool_calls"))))
        content = message.get("content") if isinstance(message, Mapping) else None
        parts = [{"text": content}] if isinstance(content, str) else content
        for part in parts if isinstance(parts, list | tuple) else ():
            text = part.get("text") if isinstance(part, Mapping) else None
            length += len(text) if isinstance(text, str) else 0
    if len(messages) > max_positions or length > max_positions * MAX_TOKEN_LENGTH:
        raise ContextError(
            f"{len(messages)} messages with {length} characters do not fit a context of {max_positions} "
            f"positions; {SHORTEN}"
        )


def check_message(message: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return a checked deep copy, with the content as a list of parts.

    Raises:
        PromptError: the message has another form.
    """
    if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
        raise PromptError(
            f"message {index} must be a mapping with role and content, is {_shown(message)}"
        )
    role, content = message["role"], message["content"]
    if role not in ROLES:
        raise PromptError(
            f"message {index}: role must be one of {', '.join(ROLES)}, is {_shown(role)}"
        )
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    calls = message.get("tool_calls")
    if calls is not None:
        _check_calls(calls, role, index)
    if not isinstance(content, Sequence) or (not content and not calls):
        raise PromptError(
            f"message {index}: content must be text or a list of parts, is {_shown(content)}"
        )
    parts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("image", "video"):
            parts.append({"type": kind})
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise PromptError(
                f"message {index}: a part must be an image, a video or a text, is {_shown(part)}"
            )
    if calls:
        return {"role": role, "content": parts, "tool_calls": calls}
    return {"role": role, "content": parts}


def _check_calls(calls: object, role: str, index: int) -> None:
    """Check the tool calls of a message.

    Raises:
        PromptError: they have another form, or the message is not one of the assistant.
    """
    if role != "assistant" or not isinstance(calls, Sequence):
        raise PromptError(
            f"message {index}: tool_calls must be a list, in a message of the assistant"
        )
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if (
            not isinstance(function, Mapping)
            or not isinstance(function.get("name"), str)
            or not isinstance(function.get("arguments"), Mapping)
        ):
            raise PromptError(
                f'message {index}: a call must be {{"type": "function", "function": {{"name": a text, '
                f'"arguments": a mapping}}}}, is {_shown(call)}'
            )


def texts_in(value: object) -> Iterator[str]:
    """Yield all texts in a JSON value, names of properties included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from texts_in([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for one in value:
            yield from texts_in(one)


def map_texts(value: Any, convert: Callable[[str], str]) -> Any:
    """Return a copy of a JSON value with each text converted, names of properties included."""
    if isinstance(value, str):
        return convert(value)
    if isinstance(value, Mapping):
        return {map_texts(key, convert): map_texts(one, convert) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [map_texts(one, convert) for one in value]
    return value


def _shown(value: object) -> str:
    """Return a value for error messages, shortened if it is long."""
    return reprlib.repr(value)
