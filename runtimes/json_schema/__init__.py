"""Constrained decoding of answers that follow a JSON schema."""
