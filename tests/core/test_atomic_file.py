"""Files that are written aside and renamed, and the user's cache, which may be missing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edgevlm.atomic_file import atomic_write, staged_file
from edgevlm.user_cache import user_cache, write_cached


def test_the_old_content_stays_until_the_new_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic_write(path, "old")
    with staged_file(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_content_and_no_other_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic_write(path, "old")
    with pytest.raises(RuntimeError), staged_file(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    with pytest.raises(UnicodeEncodeError):
        atomic_write(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_changes_nothing(tmp_path: Path) -> None:
    with staged_file(tmp_path / "result.json"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_text_is_written_in_utf_8_without_changes(tmp_path: Path) -> None:
    text = "зелёный 🟢\n"
    atomic_write(tmp_path / "text", text)
    assert (tmp_path / "text").read_bytes() == text.encode()


def test_the_cache_is_in_the_folder_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    path = user_cache("probes") / "key"
    assert path == tmp_path / "own" / "edgevlm" / "probes" / "key"
    write_cached(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("text", ["text", "\ud800"])
def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "folder"
    if text == "text":
        folder.write_text("a file in the place of the folder")
    with caplog.at_level(logging.INFO):
        write_cached(folder / "key", text)
    assert "cannot be written to the cache" in caplog.text
    assert not (folder / "key").exists()
