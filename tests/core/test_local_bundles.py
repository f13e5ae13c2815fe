"""Which bundles were exported here: remembered, listed while they exist, never in the way."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgevlm.local_bundles import exported_bundles, remember
from edgevlm.manifest import MANIFEST_NAME


def bundle(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / MANIFEST_NAME).write_text("{}")
    return folder


def test_the_newest_comes_first_and_what_is_gone_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert exported_bundles() == []
    one, other = bundle(tmp_path / "one"), bundle(tmp_path / "Bündel")
    for folder in (one, other, one):
        remember(folder)
    assert exported_bundles() == [one, other]
    (one / MANIFEST_NAME).unlink()
    assert exported_bundles() == [other]
    assert len(list((tmp_path / "cache" / "edgevlm" / "exports").iterdir())) == 1


def test_a_relative_folder_is_found_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle(tmp_path / "here" / "mine")
    monkeypatch.chdir(tmp_path / "here")
    remember(Path("mine"))
    monkeypatch.chdir("/")
    assert exported_bundles() == [tmp_path / "here" / "mine"]


@pytest.mark.parametrize("content", ["", "[]", '{"folders": 3}', '{"folders": [null]}', "{"])
def test_a_damaged_list_is_an_empty_one(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    remember(bundle(tmp_path / "one"))
    (tmp_path / "edgevlm" / "exports" / "bundles.json").write_text(content)
    assert exported_bundles() == []


def test_a_home_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    remember(bundle(tmp_path / "one"))
    assert exported_bundles() == []
