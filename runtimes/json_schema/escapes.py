r"""Schemas whose answers need ``\u`` escapes, for control characters that JSON writes in no other way.

Answers to all others have none: they could write the name of a property so that it matches another rule.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from edgevlm.runtimes.json_schema.keywords import SchemaPath, refuse
from edgevlm.runtimes.json_schema.translation import Translation, subschemas

_CONTROL_CHARACTER = re.compile(r"(?<!\\)(?:\\\\)*\\u00[01]")
"""Matches a control character in a schema as JSON, but no escape of a pattern that stands for one."""


def needs_escapes(schema: Mapping[str, Any]) -> bool:
    r"""Return True if answers to a translated schema may need ``\u`` escapes."""
    return _CONTROL_CHARACTER.search(json.dumps(schema)) is not None


def check_escapes(translation: Translation) -> None:
    r"""Check that no ``\u`` escape can write a name in a way that matches another rule.

    Raises:
        InputError: answers may need such escapes, and an object allows other names beside those of the
            schema. The message is one line, with the place as a JSON pointer.
    """
    if not needs_escapes(translation.schema):
        return
    _check(translation.schema, (), translation)
    for name, schema in translation.schema.get("$defs", {}).items():
        _check(schema, ("$defs", name), translation)


def _check(schema: Any, place: SchemaPath, translation: Translation) -> None:
    if not isinstance(schema, dict):
        return
    named = any(schema.get(word) for word in ("properties", "patternProperties", "required"))
    if named and schema.get("additionalProperties") is not False:
        refuse(
            translation.origin(place),
            "its control characters need \\u escapes, which could write the same name twice; "
            "add additionalProperties: false, or leave the control characters out",
        )
    for step, part in subschemas(schema):
        _check(part, (*place, *step), translation)
