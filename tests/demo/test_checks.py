"""What the page knows of its models, and two settings side by side, without a browser."""

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
from edgevlm.demo.compare import Setting, Side, compare, differ, usable, view
from edgevlm.demo.model_pool import Models, Offer
from edgevlm.demo.streaming import Running
from edgevlm.local_bundles import remember
from edgevlm.manifest import Usage

NANO = "edgevlm-nano"
SCENE = str(Path(__file__).resolve().parents[2] / "examples" / "scene.png")
SECONDS = 60
"""Until what another thread does counts as not done."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose bundles `other` and `one` count as exported on this machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("one", "other"):
        shutil.copytree(Bundle.open(NANO).folder, tmp_path / name)
        remember(tmp_path / name)
    return tmp_path


@pytest.fixture
def models() -> Iterator[Models]:
    models = Models(threads=1)
    yield models
    models.close()


def settled(models: Models) -> dict[str, Offer]:
    """Every offer by its label, once all files are checked."""
    while any(offer.problem is None and not offer.checked for offer in models.offers()):
        models.checks.wait(SECONDS)
    return {offer.label: offer for offer in models.offers()}


def decoder(folder: Path) -> Path:
    (entry,) = Bundle.open(NANO).manifest.decoder.files.values()
    return folder / entry.name


def alter(folder: Path) -> None:
    """One bit, with the size and the time of before."""
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
    folder: Path, models: Models, damage: Callable[[Path], Any], words: str
) -> None:
    assert all(map(usable, settled(models).values()))
    damage(folder / "one")
    offers = settled(models)
    problem = offers["one"].problem
    assert problem is not None and words in problem
    assert not usable(offers["one"]) and usable(offers["other"])
    assert models_tab.state_of(offers["one"], models, None) == ("broken", "broken")
    listing = models_tab.listing(list(offers.values()), models, NANO)
    assert words in listing and f"delete its folder: {folder / 'one'}" in listing
    with pytest.raises(BundleError, match=words), models.lease("one"):
        pass
    with pytest.raises(BundleError, match=words):
        list(models.loading("one"))


def test_a_mended_bundle_is_whole_again(folder: Path, models: Models) -> None:
    kept = decoder(folder / "one").read_bytes()
    alter(folder / "one")
    assert not usable(settled(models)["one"])
    decoder(folder / "one").write_bytes(kept)
    assert usable(settled(models)["one"])


def test_a_check_holds_nothing_up(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that never ends: the list is there, nothing unread counts as whole, the model answers."""
    go_on = threading.Event()
    check = Bundle.check_hashes_once

    def slow(bundle: Bundle, entries: Any) -> None:
        if bundle.folder.name == "one" and threading.current_thread() is not loader:
            go_on.wait(SECONDS)
        check(bundle, entries)

    loader = threading.current_thread()
    monkeypatch.setattr(Bundle, "check_hashes_once", slow)
    (one,) = [offer for offer in models.offers() if offer.label == "one"]
    assert one.problem is None and not one.checked and not usable(one)
    assert models_tab.state_of(one, models, None) == ("checking", "being checked")
    with models.lease("one") as loaded:
        assert loaded.vlm.ask(SCENE, "Where is the key?").text
    go_on.set()
    assert usable(settled(models)["one"])


def test_two_bundles_of_one_name_say_where_they_are(
    folder: Path, models: Models, tmp_path: Path
) -> None:
    second = tmp_path / "elsewhere" / "one"
    shutil.copytree(folder / "other", second)
    remember(second)
    labels = {f"one ({folder / 'one'})", f"one ({second})"}
    assert labels < settled(models).keys()
    for label in labels:
        with models.lease(label) as loaded:
            assert loaded.offer.model in label
    with pytest.raises(InputError, match="no model 'one' is offered"):
        models.find("one")


def test_a_bundle_given_by_its_folder_is_offered_once(folder: Path) -> None:
    models = Models(str(folder / "one"), threads=1)
    labels = [offer.label for offer in models.offers()]
    assert labels == [str(folder / "one"), NANO, "other"]


def test_a_folder_that_is_deleted(folder: Path, models: Models) -> None:
    """A loaded model goes on without its folder; another is no longer offered, and says so."""
    with models.lease("other"):
        pass
    settled(models)
    for name in ("one", "other"):
        shutil.rmtree(folder / name)
    assert [offer.label for offer in models.offers()] == [NANO]
    with models.lease("other") as loaded:
        assert loaded.vlm.ask(SCENE, "Where is the key?").text
    with pytest.raises(InputError, match="choose another under Models"):
        list(models.loading("one"))
    assert models.usage("other").boxes == "percent", "it is still loaded"
    assert models.usage("one") == Usage()


@pytest.mark.parametrize("in_use", [False, True])
def test_another_bundle_of_the_same_name_takes_its_place(
    folder: Path, models: Models, tmp_path: Path, in_use: bool
) -> None:
    second = tmp_path / "elsewhere" / "one"
    with models.lease("one") as first:
        shutil.copytree(folder / "one", second)
        shutil.rmtree(folder / "one")
        remember(second)
        if in_use:
            settled(models)
            assert first.vlm.ask(SCENE, "Where is the key?").text, "whoever uses it goes on"
    settled(models)
    assert not models.is_loaded("one")
    with models.lease("one") as loaded:
        assert loaded.offer.model == str(second) and loaded is not first
    with pytest.raises(ClosedError, match="is closed"):
        first.vlm.ask(SCENE, "Where is the key?")


def test_a_folder_that_may_not_be_read(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, **options: Any) -> Any:
        if path.parent.name == "one":
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    stat = Path.stat
    monkeypatch.setattr(Path, "stat", refused)
    offers = settled(models)
    assert "Permission denied" in (offers["one"].problem or "") and usable(offers["other"])


def test_steps_of_loading_come_in_order(folder: Path, models: Models) -> None:
    shares = list(models.loading("one"))
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1
    assert len({models_tab.step_name(share) for share in shares}) == 3
    assert list(models.loading("one")) == [], "it is loaded"


def test_what_makes_a_difference(folder: Path, models: Models) -> None:
    plain = Setting(NANO)
    warm = Setting(NANO, temperature=0.7)
    for other in (Setting("one"), warm, Setting(NANO, system="Be brief.")):
        assert differ([plain, other], models, picture=True, fixed_seed=True)
    assert differ([warm, warm], models, picture=True, fixed_seed=False), "chance differs"
    assert not differ([warm, warm], models, picture=True, fixed_seed=True)
    assert not differ([plain, plain], models, picture=True, fixed_seed=False)
    assert not differ([plain, Setting(NANO, system=" ")], models, picture=True, fixed_seed=False)
    low = Setting(NANO, detail="low")
    assert not differ([plain, low], models, picture=True, fixed_seed=False), "it has one tile"


def ended(
    models: Models, running: Running, left: Setting, right: Setting, picture: str | None = SCENE
) -> list[Side]:
    question = "Where is the key?"
    options: Any = {"max_tokens": 40}
    *_, last = compare(models, running, "browser", picture, question, [left, right], options)
    return last


def test_one_model_in_two_settings(models: Models) -> None:
    left, right = ended(models, Running(), Setting(NANO), Setting(NANO, system="Ответь."))
    assert left.state == right.state == "done" and left.text == "[62, 57, 87, 90]"
    shown = view([left, right], models)
    assert "data:image" not in shown[0], "there is no picture to draw on"


def test_no_difference_is_refused_in_words(models: Models) -> None:
    with pytest.raises(InputError, match="choose another model, temperature or system prompt"):
        ended(models, Running(), Setting(NANO), Setting(NANO))


@pytest.mark.parametrize("broken", ["left", "right"])
def test_an_error_of_one_side_leaves_the_other(folder: Path, models: Models, broken: str) -> None:
    alter(folder / "one")
    settings = {"left": Setting(NANO), "right": Setting(NANO), broken: Setting("one")}
    left, right = ended(models, Running(), settings["left"], settings["right"])
    sides = {"left": left, "right": right}
    other = sides.pop("left" if broken == "right" else "right")
    assert other.state == "done" and other.text == "[62, 57, 87, 90]"
    assert sides[broken].state == "failed" and "was altered" in (sides[broken].problem or "")


def test_a_picture_that_cannot_be_read_is_said_on_both_sides(
    models: Models, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    sides = ended(
        models, Running(), Setting(NANO), Setting(NANO, 0.5), str(tmp_path / "broken.png")
    )
    assert [side.state for side in sides] == ["failed", "failed"]
    assert all("broken.png" in (side.problem or "") for side in sides)


def test_stop_ends_both_sides_even_while_a_model_is_loaded(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    load = VLM.from_pretrained.__func__  # type: ignore[attr-defined]  # every class method has it

    def slow(cls: Any, /, *arguments: Any, **options: Any) -> Any:
        go_on.wait(SECONDS)
        return load(cls, *arguments, **options)

    monkeypatch.setattr(VLM, "from_pretrained", classmethod(slow))
    running = Running()
    sides = compare(
        models, running, "browser", SCENE, "Where?", [Setting("one"), Setting(NANO)], {}
    )
    assert [side.state for side in next(sides)] == ["loading", "waiting"]
    running.stop("browser")
    *_, last = sides
    assert [side.state for side in last] == ["stopped", "stopped"]
    go_on.set()
