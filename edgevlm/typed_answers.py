"""Answers as values of a Python type: the JSON schema that the model keeps to, and the parser."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgevlm.errors import AnswerError, IncompleteAnswerError, InputError
from edgevlm.results import Answer
from edgevlm.runtimes.imports import import_library
from edgevlm.runtimes.json_schema.grammar import INSTALL_TYPED

MAX_SHOWN = 200
"""Characters of an answer or of another library's message that an error shows."""


@dataclass(frozen=True)
class AnswerFormat:
    """The JSON schema of a type, and the parser of a JSON text that keeps to it."""

    schema: Mapping[str, Any]
    parse: Callable[[str], Any]

    def value(self, answer: Answer) -> Any:
        """Return the value of an answer that was kept to `schema`.

        Raises:
            IncompleteAnswerError: a limit ended the answer.
            AnswerError: a validator of the type refuses the value.
        """
        if answer.finish_reason != "stop":
            raise IncompleteAnswerError(
                f"the answer was not complete after {len(answer.token_ids)} tokens: {_shorten(answer.text)}; "
                f"raise max_tokens, or bound the texts, lists and numbers of the type",
                answer.text,
                answer.token_ids,
            )
        try:
            return self.parse(answer.text)
        except ValueError as error:
            raise AnswerError(
                f"the answer keeps to the JSON schema of the type, and the type refuses it: "
                f"{_shorten(answer.text)}: {_shorten(str(error))}",
                answer.text,
                answer.token_ids,
            ) from error


def answer_format(answer_type: Any) -> AnswerFormat:
    """Return schema and parser of a type, or those of a JSON schema.

    Args:
        answer_type: a type that pydantic's ``TypeAdapter`` takes, or a JSON schema as a mapping, whose values
            are what ``json.loads`` returns.

    Raises:
        InputError: the type has no JSON schema, or the parser demands what a grammar cannot keep to.
        MissingDependencyError: pydantic is not installed.
    """
    if isinstance(answer_type, Mapping):
        return AnswerFormat(answer_type, json.loads)
    pydantic = import_library(
        "pydantic", "pydantic", "a typed answer", INSTALL_TYPED, INSTALL_TYPED
    )
    from pydantic_core import SchemaError

    from edgevlm.pydantic_schemas import StrictJsonSchema

    try:
        adapter = pydantic.TypeAdapter(answer_type)
        schema = adapter.json_schema(schema_generator=StrictJsonSchema)
    except (pydantic.PydanticUserError, SchemaError, NameError) as error:
        raise InputError(
            f"answer_type {answer_type!r} has no JSON schema: {_shorten(str(error))}"
        ) from error
    return AnswerFormat(schema, adapter.validate_json)


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[: MAX_SHOWN - 1]}…"
