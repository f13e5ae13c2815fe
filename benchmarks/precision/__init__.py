"""Measurements behind the choice of a precision."""
