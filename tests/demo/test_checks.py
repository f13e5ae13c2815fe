"""Models, checks of their files, and comparisons, without a browser."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgevlm import VLM, Bundle, BundleError, ClosedError, InputError
from edgevlm.demo import models_tab
from edgevlm.demo.compare import view
from edgevlm.demo.comparison import SideResult, SideSettings, can_differ, compare
from edgevlm.demo.model_pool import ModelEntry, ModelPool
from edgevlm.demo.streaming import ActiveStreams
from edgevlm.local_bundles import remember
from edgevlm.manifest import ListFormat, Usage

NANO = "edgevlm-nano"
SCENE = str(Path(__file__).resolve().parents[2] / "examples" / "scene.png")
SECONDS = 60
"""Seconds after which a wait for another thread fails."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with the local exports `other` and `one`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "other"):
        shutil.copytree(Bundle.open(NANO).folder, tmp_path / name)
        remember(tmp_path / name)
    return tmp_path


@pytest.fixture
def models() -> Iterator[ModelPool]:
    models = ModelPool(threads=1)
    yield models
    models.close()


def settled(models: ModelPool) -> dict[str, ModelEntry]:
    """Wait until all files are checked; return the entries by label."""
    while any(entry.problem is None and not entry.checked for entry in models.entries()):
        models.checks.wait(SECONDS)
    return {entry.label: entry for entry in models.entries()}


def decoder(folder: Path) -> Path:
    (entry,) = Bundle.open(NANO).manifest.decoder.files.values()
    return folder / entry.name


def alter(folder: Path) -> None:
    """Change one bit, but neither size nor time."""
    path = decoder(folder)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def truncate(folder: Path) -> None:
    os.truncate(decoder(folder), 1000)


def folder_instead(folder: Path) -> None:
    decoder(folder).unlink()
    decoder(folder).mkdir()


def manifest(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "manifest.json").write_text(text)

    return damage


DAMAGE = {
    "altered": (alter, "was altered"),
    "truncated": (truncate, "has 1000 bytes"),
    "missing": (lambda folder: decoder(folder).unlink(), "is missing"),
    "not JSON": (manifest("{"), "manifest is not JSON"),
    "too deep": (manifest("[" * 100_000), "manifest is not JSON"),
    "no object": (manifest("7"), "must be an object"),
    "a folder for a file": (
        folder_instead,
        "is missing",
    ),
}


@pytest.mark.parametrize(("damage", "words"), DAMAGE.values(), ids=DAMAGE)
def test_a_broken_bundle_is_said_to_be_so(
    folder: Path, models: ModelPool, damage: Callable[[Path], Any], words: str
) -> None:
    assert all(entry.usable for entry in settled(models).values())
    damage(folder / "one")
    entries = settled(models)
    problem = entries["one"].problem
    assert problem is not None and words in problem
    assert not entries["one"].usable and entries["other"].usable
    assert models_tab.model_state(entries["one"], models, None) == ("broken", "broken")
    listing = models_tab.model_table(list(entries.values()), models, NANO)
    assert words in listing and f"delete its folder: {folder / 'one'}" in listing
    with pytest.raises(BundleError, match=words), models.acquire("one"):
        pass
    with pytest.raises(BundleError, match=words):
        list(models.load("one"))


def test_a_mended_bundle_is_whole_again(folder: Path, models: ModelPool) -> None:
    kept = decoder(folder / "one").read_bytes()
    alter(folder / "one")
    assert not settled(models)["one"].usable
    decoder(folder / "one").write_bytes(kept)
    assert settled(models)["one"].usable


def test_a_check_holds_nothing_up(
    folder: Path, models: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a slow disk the list is shown, unread files count as unchecked, and the model answers."""
    go_on = threading.Event()
    check = Bundle.check_hashes_once

    def slow(bundle: Bundle, entries: Any) -> None:
        if bundle.folder.name == "one" and threading.current_thread() is not loader:
            go_on.wait(SECONDS)
        check(bundle, entries)

    loader = threading.current_thread()
    monkeypatch.setattr(Bundle, "check_hashes_once", slow)
    (one,) = [entry for entry in models.entries() if entry.label == "one"]
    assert one.problem is None and not one.checked and not one.usable
    assert models_tab.model_state(one, models, None) == ("checking", "being checked")
    with models.acquire("one") as loaded:
        assert loaded.vlm.ask(SCENE, "Where is the key?").text
    go_on.set()
    assert settled(models)["one"].usable


def test_two_bundles_of_one_name_say_where_they_are(
    folder: Path, models: ModelPool, tmp_path: Path
) -> None:
    second = tmp_path / "elsewhere" / "one"
    shutil.copytree(folder / "other", second)
    remember(second)
    labels = {f"one ({folder / 'one'})", f"one ({second})"}
    assert labels < settled(models).keys()
    for label in labels:
        with models.acquire(label) as loaded:
            assert loaded.entry.model in label
    with pytest.raises(InputError, match="no model 'one' is offered"):
        models.find("one")


def test_a_bundle_given_by_its_folder_is_offered_once(folder: Path) -> None:
    models = ModelPool(str(folder / "one"), threads=1)
    labels = [entry.label for entry in models.entries()]
    assert labels == [str(folder / "one"), NANO, "other"]


def test_a_folder_that_is_deleted(folder: Path, models: ModelPool) -> None:
    """A loaded model works without its folder; another one is no longer listed, with a message."""
    with models.acquire("other"):
        pass
    settled(models)
    for name in ("one", "other"):
        shutil.rmtree(folder / name)
    assert [entry.label for entry in models.entries()] == [NANO]
    with models.acquire("other") as loaded:
        assert loaded.vlm.ask(SCENE, "Where is the key?").text
    with pytest.raises(InputError, match="choose another under Models"):
        list(models.load("one"))
    assert models.usage("other").location_format == ListFormat(100), "it is still loaded"
    assert models.usage("one") == Usage()


@pytest.mark.parametrize("in_use", [False, True])
def test_another_bundle_of_the_same_name_takes_its_place(
    folder: Path, models: ModelPool, tmp_path: Path, in_use: bool
) -> None:
    second = tmp_path / "elsewhere" / "one"
    with models.acquire("one") as first:
        shutil.copytree(folder / "one", second)
        shutil.rmtree(folder / "one")
        remember(second)
        if in_use:
            settled(models)
            assert first.vlm.ask(SCENE, "Where is the key?").text, "whoever uses it goes on"
    settled(models)
    assert not models.is_loaded("one")
    with models.acquire("one") as loaded:
        assert loaded.entry.model == str(second) and loaded is not first
    with pytest.raises(ClosedError, match="is closed"):
        first.vlm.ask(SCENE, "Where is the key?")


def test_a_folder_that_may_not_be_read(
    folder: Path, models: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **options: Any) -> Any:
        if path.parent.name == "one":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", refused)
    entries = settled(models)
    assert "Permission denied" in (entries["one"].problem or "") and entries["other"].usable


def test_steps_of_loading_come_in_order(folder: Path, models: ModelPool) -> None:
    shares = list(models.load("one"))
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert len({models_tab.step_name(share) for share in shares}) == 3
    assert list(models.load("one")) == [], "it is loaded"


def test_what_makes_a_difference(folder: Path, models: ModelPool) -> None:
    plain = SideSettings(NANO)
    warm = SideSettings(NANO, temperature=0.7)
    for other in (SideSettings("one"), warm, SideSettings(NANO, system="Be brief.")):
        assert can_differ([plain, other], models, has_image=True, fixed_seed=True)
    assert can_differ([warm, warm], models, has_image=True, fixed_seed=False), "chance differs"
    assert not can_differ([warm, warm], models, has_image=True, fixed_seed=True)
    assert not can_differ([plain, plain], models, has_image=True, fixed_seed=False)
    assert not can_differ(
        [plain, SideSettings(NANO, system=" ")], models, has_image=True, fixed_seed=False
    )
    low = SideSettings(NANO, detail="low")
    assert not can_differ([plain, low], models, has_image=True, fixed_seed=False), "it has one tile"


def ended(
    models: ModelPool,
    streams: ActiveStreams,
    left: SideSettings,
    right: SideSettings,
    picture: str | None = SCENE,
) -> list[SideResult]:
    question = "Where is the key?"
    options: Any = {"max_tokens": 40}
    *_, last = compare(models, streams, "browser", picture, question, [left, right], options)
    return last


def test_one_model_in_two_settings(models: ModelPool) -> None:
    left, right = ended(
        models, ActiveStreams(), SideSettings(NANO), SideSettings(NANO, system="Ответь.")
    )
    assert left.state == right.state == "done" and left.text == "[62, 57, 87, 90]"
    shown = view([left, right])
    assert "data:image" not in shown[0], "there is no picture to draw on"


def test_no_difference_is_refused_in_words(models: ModelPool) -> None:
    with pytest.raises(InputError, match="choose another model, temperature or system prompt"):
        ended(models, ActiveStreams(), SideSettings(NANO), SideSettings(NANO))


@pytest.mark.parametrize("broken", ["left", "right"])
def test_an_error_of_one_side_leaves_the_other(
    folder: Path, models: ModelPool, broken: str
) -> None:
    alter(folder / "one")
    settings = {
        "left": SideSettings(NANO),
        "right": SideSettings(NANO),
        broken: SideSettings("one"),
    }
    left, right = ended(models, ActiveStreams(), settings["left"], settings["right"])
    sides = {"left": left, "right": right}
    other = sides.pop("left" if broken == "right" else "right")
    assert other.state == "done" and other.text == "[62, 57, 87, 90]"
    assert sides[broken].state == "failed" and "was altered" in (sides[broken].problem or "")


def test_a_picture_that_cannot_be_read_is_said_on_both_sides(
    models: ModelPool, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    sides = ended(
        models,
        ActiveStreams(),
        SideSettings(NANO),
        SideSettings(NANO, 0.5),
        str(tmp_path / "broken.png"),
    )
    assert [side.state for side in sides] == ["failed", "failed"]
    assert all("broken.png" in (side.problem or "") for side in sides)


def test_stop_ends_both_sides_even_while_a_model_is_loaded(
    folder: Path, models: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    load = VLM.from_pretrained.__func__  # type: ignore[attr-defined]  # every class method has it

    def slow(cls: Any, /, *arguments: Any, **options: Any) -> Any:
        go_on.wait(SECONDS)
        return load(cls, *arguments, **options)

    monkeypatch.setattr(VLM, "from_pretrained", classmethod(slow))
    streams = ActiveStreams()
    sides = compare(
        models, streams, "browser", SCENE, "Where?", [SideSettings("one"), SideSettings(NANO)], {}
    )
    assert [side.state for side in next(sides)] == ["loading", "waiting"]
    streams.stop("browser")
    *_, last = sides
    assert [side.state for side in last] == ["stopped", "stopped"]
    go_on.set()
