"""Random schemas of all keywords that are honoured, and random values. They have few names, so they meet."""

from __future__ import annotations

import json
import random
from typing import Any

NAMES = ["a", "b", "ab", "c"]
TYPES = ["null", "boolean", "integer", "number", "string", "array", "object"]
SCALARS = [None, True, False, 0, 1, 2, 3, -1, 0.25, 1.5, 2.0, "", "a", "b", "ab", "abc"]
LEAVES = [
    True, False, {}, {"type": "integer"}, {"type": "string"}, {"const": 1}, {"type": "null"},
]  # fmt: skip


def random_value(choose: random.Random, depth: int = 2) -> Any:
    kind = choose.random()
    if depth and kind < 0.35:
        names = choose.sample(NAMES, choose.randint(0, 3))
        return {name: random_value(choose, depth - 1) for name in names}
    if depth and kind < 0.55:
        return [random_value(choose, depth - 1) for _ in range(choose.randint(0, 3))]
    return choose.choice(SCALARS)


def random_schema(choose: random.Random) -> dict[str, Any]:
    """Return a schema of several keywords in any order, with definitions if it refers to them."""
    schema = _schema(choose, 2)
    if "#/$defs/" in json.dumps(schema):
        schema["$defs"] = {"x": _schema(choose, 1), "y": _schema(choose, 1)}
    return schema


def _within(choose: random.Random, depth: int) -> Any:
    if depth == 0 or choose.random() < 0.1:
        return choose.choice(LEAVES)
    return _schema(choose, depth - 1)


def _schema(choose: random.Random, depth: int) -> dict[str, Any]:
    groups = choose.sample(
        [_type, _numbers, _texts, _object, _array, _several, _values, _reference],
        choose.choice([1, 1, 2, 2, 3]),
    )
    keywords = [item for group in groups for item in group(choose, depth).items()]
    choose.shuffle(keywords)
    return dict(keywords)


def _type(choose: random.Random, depth: int) -> dict[str, Any]:
    several = choose.random() < 0.4
    return {"type": choose.sample(TYPES, 2) if several else choose.choice(TYPES)}


def _numbers(choose: random.Random, depth: int) -> dict[str, Any]:
    bounds = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"]
    found = {name: choose.choice([-1, 0, 0.5, 1, 1.5, 2]) for name in choose.sample(bounds, 2)}
    return found | (
        {"multipleOf": choose.choice([0.5, 1, 1.5, 2])} if choose.random() < 0.3 else {}
    )


def _texts(choose: random.Random, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "minLength": choose.randint(0, 2),
        "maxLength": choose.randint(1, 3),
        "pattern": choose.choice(["^a", "b$", "^ab?$", "a"]),
    }
    return {name: found[name] for name in choose.sample(list(found), 2)}


def _object(choose: random.Random, depth: int) -> dict[str, Any]:
    named = [{"enum": ["a", "b"]}, {"pattern": "^a"}, {"maxLength": 1}, {"const": "a"}, False]
    found: dict[str, Any] = {
        "properties": {
            name: _within(choose, depth) for name in choose.sample(NAMES, choose.randint(1, 3))
        },
        "required": choose.sample(NAMES, choose.randint(1, 2)),
        "additionalProperties": choose.choice([False, _within(choose, depth)]),
        "patternProperties": {
            pattern: _within(choose, depth)
            for pattern in choose.sample(["^a", "b$", "^c"], choose.choice([1, 1, 2]))
        },
        "minProperties": choose.randint(0, 2),
        "maxProperties": choose.randint(0, 2),
        "propertyNames": choose.choice(named),
    }
    return {name: found[name] for name in choose.sample(list(found), choose.randint(1, 4))}


def _array(choose: random.Random, depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "items": _within(choose, depth),
        "prefixItems": [_within(choose, depth) for _ in range(choose.randint(1, 2))],
        "minItems": choose.randint(0, 2),
        "maxItems": choose.randint(0, 2),
    }
    return {name: found[name] for name in choose.sample(list(found), choose.randint(1, 3))}


def _several(choose: random.Random, depth: int) -> dict[str, Any]:
    keywords = choose.sample(["allOf", "anyOf", "oneOf"], choose.choice([1, 1, 2]))
    return {
        keyword: [_within(choose, depth) for _ in range(choose.randint(1, 2))]
        for keyword in keywords
    }


def _values(choose: random.Random, depth: int) -> dict[str, Any]:
    if choose.random() < 0.5:
        return {"const": random_value(choose, 1)}
    return {"enum": [random_value(choose, 1) for _ in range(choose.randint(1, 3))]}


def _reference(choose: random.Random, depth: int) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{choose.choice('xy')}"}
