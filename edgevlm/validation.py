"""Checks of arguments; the errors name the argument and its value."""

from __future__ import annotations

import math

import numpy as np

from edgevlm.errors import InputError


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """Return `value` as an int.

    Args:
        name: the argument's name, for the message.
        value: an int or a NumPy integer; not a bool.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        InputError: the value is not an integer or is outside the range.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise InputError(f"{name} must be an integer, is {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, is {value}")
    return int(value)


def check_number(name: str, value: object, low: float, high: float) -> float:
    """Return `value` as a float.

    Args:
        name: the argument's name, for the message.
        value: a finite int, float or NumPy number; not a bool.
        low: smallest allowed value.
        high: largest allowed value.

    Raises:
        InputError: the value is not a finite number or is outside the range.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.integer | np.floating)
        or not math.isfinite(value)
    ):
        raise InputError(f"{name} must be a number, is {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must be from {low} to {high}, is {value}")
    return float(value)
