"""The table of families in the documentation, and which families it must have."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edgevlm.export import families
from tests.families import table
from tests.families.case import ROWS

NAMED_OTHERWISE = {"llava_llama"}
"""Its checkpoints have the ``model_type`` llava, and so have their rows."""


def test_each_family_has_a_row() -> None:
    tested = {row.name.partition(",")[0] for row in ROWS}
    assert set(families.MODULES) - NAMED_OTHERWISE == tested


def test_page_has_each_row() -> None:
    """``python -m tests.families.table NAME`` adds one."""
    page = table.PAGE.read_text(encoding="utf-8")
    assert list(table.read_lines(page)) == [row.name for row in ROWS]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page with an empty table; measuring a row counts up."""
    figures = itertools.count(1)
    monkeypatch.setattr(table, "measure", lambda row: f"| {row.name} | works | {next(figures)} |")
    monkeypatch.setattr(table, "PAGE", tmp_path / "families.md")
    table.PAGE.write_text(f"Before.\n\n{table.BEGIN}\n\n{table.END}\n\nAfter.\n")
    return table.PAGE


def test_rows_by_name(page: Path) -> None:
    """They are put in order, and the other rows keep their figures."""
    table.main(["janus"])
    table.main(["gemma3"])
    named = [row.name for row in ROWS if "gemma3" in row.name]
    expected = {name: f"| {name} | works | {2 + i} |" for i, name in enumerate(named)}
    written = page.read_text()
    assert table.read_lines(written) == {**expected, "janus": "| janus | works | 1 |"}
    assert list(table.read_lines(written)) == [*named, "janus"]
    assert written.startswith(f"Before.\n\n{table.BEGIN}\n\n| `model_type`")
    assert written.endswith(f"\n\n{table.BELOW}\n\n{table.END}\n\nAfter.\n")


def test_all_rows(page: Path) -> None:
    table.main(["janus"])
    table.main([])
    assert list(table.read_lines(page.read_text())) == [row.name for row in ROWS]


def test_rows_of_other_versions(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line below the table has the versions, which are those of all rows."""
    table.main(["janus"])
    page.write_text(page.read_text().replace("transformers ", "transformers 4."))
    before = page.read_text()
    with pytest.raises(SystemExit):
        table.main(["gemma3"])
    assert "other versions" in capsys.readouterr().err
    assert page.read_text() == before


def test_unknown_name(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main(["nothing"])
    assert "no row has 'nothing' in its name" in capsys.readouterr().err
