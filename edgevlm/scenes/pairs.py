"""Two pictures to compare: one scene and the same with one change, or two scenes of their own.

Covered: a thing gone, added, recoloured or replaced by another kind at the same place; different
numbers of one kind; different single things. Not covered: moved, turned or resized things, words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgevlm.scenes import composition, drawings
from edgevlm.scenes.backgrounds import rgb_near, sample_finish
from edgevlm.scenes.composition import COLORS, Scene, Thing

CHANGES = ("gone", "added", "recolored", "replaced")

_PER_COLOR = 12  # how far a colour may stray from its anchor


@dataclass(frozen=True)
class Change:
    """What the second picture has that the first has not; `kind` is one of CHANGES."""

    kind: str
    before: Thing | None
    after: Thing | None


@dataclass(frozen=True)
class Pair:
    """Two pictures; `change` is None where they are scenes of their own."""

    first: Scene
    second: Scene
    change: Change | None


def _sampler(
    rng: np.random.Generator,
    sides: tuple[int, int] = (160, 640),
    styles: Any = drawings.STYLES,
    typefaces: Any = None,
    unseen_words: bool = False,
) -> composition.SceneSampler:
    given = drawings.seen_typefaces() if typefaces is None else typefaces
    return composition.SceneSampler(rng, sides, styles, given, unseen_words)


def _instead(sampler: composition.SceneSampler, old: Thing, shapes: float) -> Thing:
    """Another kind in the middle of the old one's box and no larger than it."""
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


def _changed(rng: np.random.Generator, shapes: float, options: dict[str, Any]) -> Pair:
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
            new = replace(old, color=color, rgb=rgb_near(COLORS[color], rng, _PER_COLOR))
        elif kind == "replaced":
            new = _instead(sampler, old, shapes)
            if new.name in names or new.size < 0.16 * sampler.short:
                continue
        if new is not None:
            sampler.things.append(new)  # the ground must differ from both
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
            second = replace(second, finish=sample_finish(rng))
        return Pair(first, second, change)


def _numbers(rng: np.random.Generator, shapes: float, options: dict[str, Any]) -> Pair:
    """Two crowds with one kind in common (or in one of them only), in clearly different numbers."""
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
            return _numbers(rng, shapes, options)
        kind = sampler.new_thing(common, 1.0)
        largest = 0.34 if len(names) < 5 else 0.28
        for name in names:
            thing = sampler.new_thing(name, float(rng.uniform(0.16, largest)))
            if name == common:
                thing = replace(thing, style=kind.style)
            sampler.add(thing, overlap=min(sampler.overlap, 0.05))
        if not sampler.things:
            return _numbers(rng, shapes, options)
        made.append(sampler.scene())
    return Pair(made[0], made[1], None)


def sample_pair(rng: np.random.Generator, shapes: float = 0.3, **scene_options: Any) -> Pair:
    """A random pair, half of them with a change; the options are those of `composition.sample`."""
    if rng.random() < 0.5:
        return _changed(rng, shapes, scene_options)
    if rng.random() < 0.55:
        return _numbers(rng, shapes, scene_options)
    layout = "single" if rng.random() < 0.6 else "mixed"
    first = composition.sample(rng, layout, shapes=shapes, **scene_options)
    second = composition.sample(rng, layout, shapes=shapes, **scene_options)
    return Pair(first, second, None)
