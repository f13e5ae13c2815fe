"""Checks of arguments, with errors that name the value."""

from __future__ import annotations

import math

import numpy as np

from edgevlm.errors import InputError


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int.

    Raises:
        InputError: no integer, or outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} must be an integer, is {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, is {value}")
    return int(value)


def check_number(name: str, value: object, low: float, high: float) -> float:
    """`value` as a float; raises as `check_integer`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not math.isfinite(value)
    ):
        raise InputError(f"{name} must be a number, is {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, is {value}")
    return float(value)
