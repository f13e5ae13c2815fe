"""Check values of ``multipleOf`` that meet: llguidance combines them in 32 bits, and overflows silently."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from math import lcm
from typing import Any

from edgevlm.runtimes.json_schema.keywords import MAX_MULTIPLE, SchemaPath, refuse
from edgevlm.runtimes.json_schema.translation import Translation, definition_name, subschemas

MAX_COMBINATIONS = 256
"""Largest number of different multiples that the options of a schema may demand at one place."""


def check_multiples(translation: Translation) -> None:
    """Check the common multiples of all ``multipleOf`` that hold for the same place of the answer.

    Call it after `check_ends`: no schema may refer to itself at the same place of the answer.

    Raises:
        InputError: a common multiple is too large, or there are too many. The message is one line, with the
            place as a JSON pointer.
    """
    multiples = _Multiples(translation)
    multiples.check(translation.schema, ())
    for name, schema in translation.schema.get("$defs", {}).items():
        multiples.check(schema, ("$defs", name))


class _Multiples:
    """The multiples that each schema demands."""

    def __init__(self, translation: Translation) -> None:
        self._origin = translation.origin
        self._definitions: Mapping[str, Any] = translation.schema.get("$defs", {})
        self._known: dict[str, set[Decimal]] = {}
        """Multiples that each definition demands."""

    def check(self, schema: Any, place: SchemaPath) -> None:
        """Check a schema and those within it."""
        if isinstance(schema, dict):
            self._demanded(schema, place)
            for step, part in subschemas(schema):
                self.check(part, (*place, *step))

    def _demanded(self, schema: Any, place: SchemaPath) -> set[Decimal]:
        """Return the multiples that a schema can demand, one for each combination of options; 0 for none."""
        if not isinstance(schema, dict):
            return {Decimal(0)}
        demanded = {Decimal(repr(schema.get("multipleOf", 0)))}
        if "$ref" in schema:
            name = definition_name(schema)
            if name not in self._known:
                self._known[name] = self._demanded(self._definitions[name], ("$defs", name))
            demanded = self._meet(demanded, self._known[name], place)
        for part in schema.get("allOf", ()):
            demanded = self._meet(demanded, self._demanded(part, place), place)
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                options = {one for part in schema[keyword] for one in self._demanded(part, place)}
                demanded = self._meet(demanded, options, place)
        return demanded

    def _meet(
        self, some: Collection[Decimal], others: Collection[Decimal], place: SchemaPath
    ) -> set[Decimal]:
        met = {self._common(one, other, place) for one in some for other in others}
        if len(met) > MAX_COMBINATIONS:
            refuse(self._origin(place), "too many values of multipleOf meet; write fewer options")
        return met

    def _common(self, one: Decimal, other: Decimal, place: SchemaPath) -> Decimal:
        """Return the least common multiple of two multiples, 0 for none."""
        if one == other or not one or not other:
            return one or other
        decimals = max(_decimals(one), _decimals(other))
        common = lcm(int(one.scaleb(decimals)), int(other.scaleb(decimals)))
        if common > MAX_MULTIPLE:
            refuse(
                self._origin(place),
                f"multipleOf {one} and {other} meet: without the decimal point, their common multiple may be "
                f"{MAX_MULTIPLE} at most",
            )
        return Decimal(common).scaleb(-decimals)


def _decimals(number: Decimal) -> int:
    """Return the number of digits after the decimal point."""
    return max(0, -int(number.normalize().as_tuple().exponent))
