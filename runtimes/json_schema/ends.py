"""Check that the answers of a JSON schema can end. A schema that requires itself has no finite answer."""

from __future__ import annotations

import graphlib
from collections.abc import Iterator, Mapping
from typing import Any

from edgevlm.runtimes.json_schema.keywords import TYPES, SchemaPath, refuse
from edgevlm.runtimes.json_schema.translation import Translation, definition_name

_IN_PLACE = ("allOf", "anyOf", "oneOf")


def check_ends(translation: Translation) -> None:
    """Check that a schema has a finite answer, in time linear in its size.

    Raises:
        InputError: the schema has none. The message is one line, with the place as a JSON pointer.
    """
    definitions: Mapping[str, Any] = translation.schema.get("$defs", {})
    try:
        graphlib.TopologicalSorter(
            {name: set(_same_place(schema)) for name, schema in definitions.items()}
        ).prepare()
    except graphlib.CycleError as error:
        refuse(
            translation.definitions[error.args[1][0]],
            "the schema has no end: it refers to itself at the same place of the answer",
        )
    circuit = _Circuit(definitions)
    path = circuit.endless(translation.schema)
    if path is not None:
        refuse(
            translation.origin(path),
            "the schema has no end: what it requires requires the same again",
        )


def _same_place(schema: Any) -> Iterator[str]:
    """Yield the definitions that a schema refers to for the same place of the answer."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield definition_name(schema)
        for keyword in _IN_PLACE:
            for one in schema.get(keyword, ()):
                yield from _same_place(one)


class _Circuit:
    """A circuit of gates, one per schema. A gate is on if the schema has a finite answer.

    The gates of the schemas that a schema needs are the inputs of its gate.
    """

    def __init__(self, definitions: Mapping[str, Any]) -> None:
        self._waits: list[int] = []
        """Number of inputs that each gate waits for. It is on at 0."""
        self._feeds: list[list[int]] = []
        """Gates that each gate is an input of."""
        self._gates: dict[int, int] = {}
        """Gate of each schema, by the schema's `id`."""
        self._definitions = {name: self._gate(1, ()) for name in definitions}
        for name, schema in definitions.items():
            self._feeds[self._schema(schema)].append(self._definitions[name])

    def endless(self, schema: Any) -> SchemaPath | None:
        """Return the deepest place without a finite answer, references not followed; else None."""
        self._schema(schema)
        on = [gate for gate, waits in enumerate(self._waits) if waits == 0]
        for gate in on:  # the list grows
            for fed in self._feeds[gate]:
                self._waits[fed] -= 1
                if self._waits[fed] == 0:
                    on.append(fed)
        return None if self._on(schema) else self._deepest(schema, ())

    def _deepest(self, schema: Any, path: SchemaPath) -> SchemaPath:
        if isinstance(schema, dict) and "const" not in schema and "enum" not in schema:
            parts: list[tuple[SchemaPath, Any]] = [
                (("allOf", index), one) for index, one in enumerate(schema.get("allOf", ()))
            ]
            for kind in ("object", "array"):
                if kind in schema.get("type", TYPES):
                    parts += _needed(schema, kind)
            for step, one in parts:
                if not self._on(one):
                    return self._deepest(one, (*path, *step))
        return path

    def _on(self, schema: Any) -> bool:
        """Return True if a schema's gate is on. Call it after all gates have settled."""
        return self._waits[self._gates[id(schema)]] <= 0

    def _gate(self, waits: int, inputs: Any) -> int:
        self._waits.append(waits)
        self._feeds.append([])
        gate = len(self._waits) - 1
        for one in inputs:
            self._feeds[one].append(gate)
        return gate

    def _all(self, inputs: list[int]) -> int:
        return self._gate(len(inputs), inputs)

    def _any(self, inputs: list[int]) -> int:
        return self._gate(1, inputs)

    def _schema(self, schema: Any) -> int:
        gate = self._all([]) if not isinstance(schema, dict) else self._all(self._needs(schema))
        self._gates[id(schema)] = gate
        return gate

    def _needs(self, schema: dict[str, Any]) -> list[int]:
        needs = [self._schema(one) for one in schema.get("allOf", ())]
        if "$ref" in schema:
            needs.append(self._definitions[definition_name(schema)])
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                needs.append(self._any([self._schema(one) for one in schema[keyword]]))
        if "const" not in schema and "enum" not in schema:
            types = schema.get("type", TYPES)
            needs.append(
                self._any(
                    [
                        self._all([self._schema(one) for _, one in _needed(schema, kind)])
                        for kind in ([types] if isinstance(types, str) else types)
                    ]
                )
            )
        return needs


def _needed(schema: Mapping[str, Any], kind: str) -> list[tuple[SchemaPath, Any]]:
    """Return place and schema of each part that an answer of this type must have."""
    needed: list[tuple[SchemaPath, Any]] = []
    if kind == "object":
        properties = schema.get("properties", {})
        required = schema.get("required", ())
        needed += [
            (("properties", name), properties[name]) for name in required if name in properties
        ]
        others = len(properties) == 0 and schema.get("minProperties", 0) > len(required)
        others = others or any(name not in properties for name in required)
        if others and "additionalProperties" in schema and "patternProperties" not in schema:
            needed.append((("additionalProperties",), schema["additionalProperties"]))
    elif kind == "array":
        least = schema.get("minItems", 0)
        first = schema.get("prefixItems", [])
        needed += [(("prefixItems", index), one) for index, one in enumerate(first[:least])]
        if least > len(first) and "items" in schema:
            needed.append((("items",), schema["items"]))
    return needed
