"""Clients that break every way at random, for a short while; ``benchmarks.soak`` does it for ten minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import BAD_SCHEMAS
from edgevlm.errors import InputError
from edgevlm.runtimes.json_schema.constraint import JsonConstraint

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_good_clients_get_right_answers_all_along() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--seconds", "20", "--seed", "3"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0 and not found["unexpected"], found["first_unexpected"]
    assert found["good_answers"] and len(found["outcomes"]) > 10
    if found["before"]:
        assert found["after"]["sockets"] <= found["before"]["sockets"] + 1


def test_its_schemas_are_bad() -> None:
    texts = JsonConstraint(
        [bytes([byte]) for byte in range(256)] + [b""], [256], lambda text: list(text.encode())
    )
    for schema in BAD_SCHEMAS:
        with pytest.raises(InputError):
            texts.matcher(schema)
