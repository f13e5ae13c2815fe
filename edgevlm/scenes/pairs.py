"""Pairs of scenes to compare: a scene and the same scene with one change, or two different scenes.

In a change, a thing is gone, added, recolored, or replaced by another kind at the same place. Different
scenes differ in the number of one kind or in their things. Things do not move, turn or change their size,
and pairs have no words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevlm.scenes import composition, drawings
from edgevlm.scenes.backgrounds import sample_distortion
from edgevlm.scenes.composition import COLORS, Scene, Thing, sample_rgb

CHANGES = ("gone", "added", "recolored", "replaced")


@dataclass(frozen=True)
class Change:
    """The difference of the second scene from the first."""

    kind: str
    """One of CHANGES."""
    before: Thing | None
    """The thing in the first scene; None if it was added."""
    after: Thing | None
    """The thing in the second scene; None if it is gone."""


@dataclass(frozen=True)
class Pair:
    """Two scenes."""

    first: Scene
    second: Scene
    change: Change | None
    """None if the scenes are different ones."""


def _sampler(
    rng: np.random.Generator,
    sides: tuple[int, int] = (160, 640),
    styles: Any = drawings.STYLES,
    typefaces: Any = None,
    unseen_words: bool = False,
) -> composition.SceneSampler:
    given = drawings.training_typefaces() if typefaces is None else typefaces
    return composition.SceneSampler(rng, sides, styles, given, unseen_words)


def _replacement(sampler: composition.SceneSampler, old: Thing, shapes: float) -> Thing:
    """Return a thing of another kind that fits into the box of the old one, at its center."""
    name = old.name
    while name == old.name:
        name = sampler.new_name(shapes)
    new = replace(sampler.new_thing(name, 1.0), size=old.size)
    left, top, right, bottom = old.box()
    a, b, c, d = new.box()
    fit = min((right - left) / (c - a), (bottom - top) / (d - b))
    x = (left + right - fit * (a + c)) / 2
    y = (top + bottom - fit * (b + d)) / 2
    return replace(new, size=old.size * fit, x=x, y=y)


def _sample_changed(rng: np.random.Generator, shapes: float, options: dict[str, Any]) -> Pair:
    kind = CHANGES[int(rng.integers(len(CHANGES)))]
    while True:
        sampler = _sampler(rng, **options)
        count = int(rng.integers(2, 4)) + (kind == "added")
        names: list[str] = []
        while len(names) < count:
            name = sampler.new_name(1.0 if kind == "recolored" and not names else shapes)
            if name not in names:
                names.append(name)
        for name in names:
            sampler.add(sampler.new_thing(name, float(rng.uniform(0.26, 0.48))))
        things = list(sampler.things)
        if len(things) < count:
            continue
        index = 0 if kind == "recolored" else int(rng.integers(len(things)))
        old = things[index]
        new: Thing | None = None
        if kind == "recolored":
            others = [color for color in COLORS if color != old.color]
            color = others[int(rng.integers(len(others)))]
            new = replace(old, color=color, rgb=sample_rgb(color, rng))
        elif kind == "replaced":
            new = _replacement(sampler, old, shapes)
            if new.name in names or new.size < 0.16 * sampler.shorter_side:
                continue
        if new is not None:
            sampler.things.append(new)  # the background must contrast with both
        scene = sampler.scene()
        rest = [*things[:index], *things[index + 1 :]]
        with_it = replace(scene, things=tuple(things))
        other = [*things[:index], new, *things[index + 1 :]] if new is not None else rest
        without = replace(scene, things=tuple(other))
        if kind == "added":
            first, second, change = without, with_it, Change(kind, None, old)
        else:
            first, second, change = with_it, without, Change(kind, old, new)
        if rng.random() < 0.5:
            second = replace(second, distortion=sample_distortion(rng))
        return Pair(first, second, change)


def _sample_counts(rng: np.random.Generator, shapes: float, options: dict[str, Any]) -> Pair:
    """Return two crowds with clearly different numbers of one kind; one number may be 0."""
    low = int(rng.integers(0, 4))
    numbers = [low, int(rng.integers(low + 2, 7))]
    if rng.random() < 0.5:
        numbers.reverse()
    common = ""
    made = []
    for number in numbers:
        sampler = _sampler(rng, **options)
        common = common or sampler.new_name(max(shapes, 0.5))
        names = [common] * number
        other = sampler.new_name(shapes)
        names += [other] * int(rng.integers(0 if number else 1, 3)) if other != common else []
        if not names:
            return _sample_counts(rng, shapes, options)
        kind = sampler.new_thing(common, 1.0)
        largest = 0.34 if len(names) < 5 else 0.28
        for name in names:
            thing = sampler.new_thing(name, float(rng.uniform(0.16, largest)))
            if name == common:
                thing = replace(thing, style=kind.style)
            sampler.add(thing, overlap=min(sampler.overlap, 0.05))
        if not sampler.things:
            return _sample_counts(rng, shapes, options)
        made.append(sampler.scene())
    return Pair(made[0], made[1], None)


def sample_pair(rng: np.random.Generator, shapes: float = 0.3, **scene_options: Any) -> Pair:
    """Return a random pair; half of the pairs have a change.

    Args:
        rng: source of randomness.
        shapes: share of shapes among the things, from 0 to 1.
        scene_options: further options of `composition.sample`.
    """
    if rng.random() < 0.5:
        return _sample_changed(rng, shapes, scene_options)
    if rng.random() < 0.55:
        return _sample_counts(rng, shapes, scene_options)
    layout = "single" if rng.random() < 0.6 else "mixed"
    first = composition.sample(rng, layout, shapes=shapes, **scene_options)
    second = composition.sample(rng, layout, shapes=shapes, **scene_options)
    return Pair(first, second, None)
