"""The texts of the demo: each has a Russian translation, and the table has no other texts."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from edgevlm.demo.russian import RUSSIAN

DEMO = Path(__file__).resolve().parents[2] / "demo"
SCRIPTS = "\n".join(path.read_text(encoding="utf-8") for path in sorted(DEMO.glob("assets/*.js")))
TRANSLATED_LITERAL = re.compile(
    r"""\btext\(\s*("(?:[^"\\]|\\.)*"(?:\s*\+\s*"(?:[^"\\]|\\.)*")*)\s*[,)]"""
)
"""Finds translated texts in a script; a text may be joined from several literals."""
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')


def trees() -> Iterator[ast.Module]:
    for path in sorted(DEMO.glob("*.py")):
        if path.name != "russian.py":
            yield ast.parse(path.read_text(encoding="utf-8"), str(path))


def calls(name: str, position: int) -> set[str]:
    """Return the literal texts at this position in all calls of a function."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id == name
            ):
                for literal in ast.walk(node.args[position]):
                    if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                        found.add(literal.value)
    return found


def in_scripts() -> set[str]:
    """Return the arguments of `text` in the scripts."""
    return {
        "".join(LITERAL.findall(match.group(1))) for match in TRANSLATED_LITERAL.finditer(SCRIPTS)
    }


def everywhere() -> set[str]:
    """Return every literal of the demo: some texts reach `translate` or `text` through a table."""
    literals = {"".join(LITERAL.findall(match)) for match in joined(SCRIPTS)}
    for tree in trees():
        literals |= {
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return literals


def joined(script: str) -> list[str]:
    """Return the literals of a script; literals joined by a plus count as one."""
    return re.findall(r'"(?:[^"\\\n]|\\.)*"(?:\s*\+\s*"(?:[^"\\\n]|\\.)*")*', script)


def fields(text: str) -> set[str | None]:
    return {name for _, name, _, _ in Formatter().parse(text) if name is not None}


def test_every_text_has_its_russian() -> None:
    assert (
        len(calls("label", 0)) > 20 and len(calls("translate", 1)) > 20 and len(in_scripts()) > 20
    )
    used = calls("label", 0) | calls("translate", 1) | in_scripts()
    assert used - set(RUSSIAN) == set()


def test_every_russian_text_is_used() -> None:
    assert set(RUSSIAN) - everywhere() == set()


def test_no_text_is_there_twice() -> None:
    tree = ast.parse((DEMO / "russian.py").read_text(encoding="utf-8"))
    table = next(node for node in ast.walk(tree) if isinstance(node, ast.Dict))
    keys = Counter(ast.literal_eval(key) for key in table.keys if key is not None)
    assert [key for key, count in keys.items() if count > 1] == []


@pytest.mark.parametrize("english", sorted(RUSSIAN))
def test_both_languages_have_the_same_fields(english: str) -> None:
    assert fields(english) == fields(RUSSIAN[english])


def test_what_the_browser_translates_has_no_fields() -> None:
    assert [text for text in calls("label", 0) if "{" in text or "}" in text] == []


@pytest.mark.parametrize("english", sorted(RUSSIAN))
def test_russian_is_russian(english: str) -> None:
    russian = RUSSIAN[english]
    assert russian.strip() == russian and russian
    letters = re.sub(r"\{\w+\}", "", english)
    assert re.search("[а-яё]", russian, re.IGNORECASE) or not re.search("[a-z]", letters), russian
