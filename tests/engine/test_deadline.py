"""Measured costs, and the images that fit into the time of a request."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from edgevlm import VLM, Deadline
from edgevlm.bundle import Bundle
from edgevlm.engine.costs import PHASES, Costs
from edgevlm.engine.deadline import ANSWER_TOKENS, MARGIN, TEXT_POSITIONS, fit_images
from edgevlm.options import Generation
from tests.conftest import picture
from tests.support.oracle import BUNDLES


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder for each test instead of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edgevlm" / "costs"


def test_the_bound_is_above_what_was_measured() -> None:
    costs = Costs()
    assert [costs.bound(phase) for phase in PHASES] == [None] * 3
    costs.record("encode", 0.4, 200)
    assert costs.bound("encode") == pytest.approx(0.002 * 3)  # mean, and four times half of it
    for _ in range(200):
        costs.record("encode", 0.4, 200)
    assert costs.bound("encode") == pytest.approx(0.002)
    costs.record("encode", 1.2, 200)
    bound = costs.bound("encode")
    assert bound is not None and 0.006 < bound < 0.008
    costs.record("encode", 0.0, 0)
    assert costs.bound("encode") == bound


def test_a_phase_that_was_stopped_only_raises_the_cost() -> None:
    costs = Costs()
    costs.record("prefill", 1.0, 100)
    before = costs.bound("prefill")
    costs.record("prefill", 0.9, 100, stopped=True)
    assert costs.bound("prefill") == before
    costs.record("prefill", 5.0, 100, stopped=True)
    after = costs.bound("prefill")
    assert before is not None and after is not None and after > before


def test_costs_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "costs" / "model.json"
    costs = Costs(path)
    for phase in PHASES:
        costs.record(phase, 0.3, 7)
    costs.save()
    assert [Costs(path).bound(phase) for phase in PHASES] == [
        costs.bound(phase) for phase in PHASES
    ]
    for damaged in ("", "[]", '{"encode": 1}', '{"encode": [NaN, 1]}', '{"encode": [-1, 1]}'):
        path.write_text(damaged)
        assert Costs(path).bound("encode") is None


def fitted(generation: Generation, images: int, elapsed: float, costs: Costs) -> Generation:
    manifest = Bundle.open(BUNDLES / "smolvlm").manifest
    return fit_images(generation, images, elapsed, costs, manifest)


def test_images_get_the_time_that_text_and_answer_leave() -> None:
    costs = Costs()
    for _ in range(200):
        costs.record("encode", 0.2, 100)
        costs.record("prefill", 0.1, 100)
        costs.record("decode", 0.1, 10)
    generation = Generation(within=10.0)
    found = fitted(generation, 2, 1.0, costs)
    left = 10 * (1 - MARGIN) - 1.0 - 0.01 * ANSWER_TOKENS - 0.001 * TEXT_POSITIONS
    assert found == dataclasses.replace(generation, max_image_tokens=int(left / 0.003 / 2))
    short = dataclasses.replace(generation, max_tokens=1)
    more = fitted(short, 2, 1.0, costs).max_image_tokens
    assert more is not None and more > (found.max_image_tokens or 0)
    small = dataclasses.replace(generation, max_image_tokens=64)
    assert fitted(small, 2, 1.0, costs) == small
    assert fitted(generation, 2, 11.0, costs) == dataclasses.replace(generation, detail="low")
    assert fitted(generation, 0, 1.0, costs) == generation
    assert fitted(Generation(), 2, 1.0, costs) == Generation()


def test_a_model_of_unknown_costs_sees_the_least_detail() -> None:
    generation = Generation(within=100.0)
    assert fitted(generation, 1, 0.0, Costs()).detail == "low"


def test_the_time_decides_how_many_tiles_an_image_has(fresh: Callable[..., VLM]) -> None:
    vlm, image = fresh(), picture(1, 256, 256)
    whole = vlm.ask(image, "What?", max_tokens=4).stats
    assert whole.deadline is None and whole.encoded_tiles == 17
    stats = vlm.ask(image, "What?", max_tokens=4, within=1000).stats
    assert stats.encoded_tiles + stats.cached_tiles == 17
    assert stats.deadline is not None
    assert (stats.deadline.within, stats.deadline.cut) == (1000, False)
    costs = vlm._engine._costs
    costs.record("encode", 1000, 1, stopped=True)  # as on a machine that has become slow
    stats = vlm.ask(picture(2, 256, 256), "What?", max_tokens=4, within=1000).stats
    assert stats.encoded_tiles == 1
    assert stats.deadline == Deadline(1000, "low", None, cut=False)


def test_the_next_process_knows_the_costs(fresh: Callable[..., VLM], own_cache: Path) -> None:
    vlm, image = fresh(), picture(1, 256, 256)
    vlm.ask(image, "What?", max_tokens=4)
    assert not own_cache.exists(), "without deadlines nothing is written"
    first = vlm.ask(picture(2, 256, 256), "What?", max_tokens=4, within=1000).stats
    assert first.encoded_tiles == 17
    (path,) = own_cache.iterdir()
    assert path.suffix == ".json"
    second = fresh().ask(image, "What?", max_tokens=4, within=1000).stats
    assert second.encoded_tiles == 17
    other = fresh(threads=2)
    assert other.ask(image, "What?", max_tokens=4, within=1000).stats.encoded_tiles == 1
