"""Tests of the attention targets and losses of training."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from edgevlm.scenes import composition, drawings
from edgevlm.scenes.pairs import sample_pair
from edgevlm.scenes.view import format_box
from edgevlm.scenes.wording import WORDINGS, noun
from training import labels
from training.attention import MENTION_LAYER, AttentionProbe, MentionHeads, attention_loss
from training.dialogues import Packer, attention_mask
from training.grounding import MentionFinder, ThingLocations, attention_targets
from training.model import GRID, TILE, TOKENS, nano_config, new_model

NANO = Path(__file__).resolve().parents[2] / "training" / "nano"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module")
def finder(tokenizer: Any) -> MentionFinder:
    return MentionFinder(tokenizer)


def locations_of(scene: composition.Scene) -> ThingLocations:
    return ThingLocations(scene, labels.label(scene, GRID))


NAMES = st.sampled_from(list(drawings.nouns()))
COLORS = st.sampled_from([None, *composition.COLORS])


@settings(max_examples=150, deadline=None)
@given(name=NAMES, color=COLORS, language=st.sampled_from(["en", "ru"]), plural=st.booleans())
def test_each_form_of_a_noun_is_found(
    finder: MentionFinder, tokenizer: Any, name: str, color: str | None, language: str, plural: bool
) -> None:
    words = WORDINGS[language].slots(name, color)
    text = words["many"] if plural else WORDINGS[language].a(name, color)
    ids = tokenizer.encode(f"Assistant: {text}, yes.", add_special_tokens=False)
    found = [mention for mention in finder.mentions(ids) if mention.name]
    assert [(m.name, m.color) for m in found] == [(name, color)]
    known = noun(name)
    spoken = tokenizer.decode(ids[found[0].noun_start : found[0].end + 1]).strip()
    assert spoken in {known.name, known.plural, known.russian, known.genitive_plural}
    assert found[0].named_at[-1] == found[0].end


def test_a_word_that_begins_like_a_noun_is_no_mention(
    finder: MentionFinder, tokenizer: Any
) -> None:
    for text in (" category", " carpet", " котёл", " redness"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not [m for m in finder.mentions(ids) if m.end < len(ids) - 1], text


def test_places_are_where_things_are() -> None:
    rng = np.random.default_rng(41)
    checked = 0
    for layout in ("single", "mixed", "nested") * 20:
        scene = composition.sample(rng, layout)
        places = locations_of(scene)
        for thing in scene.things:
            cells = places.things_in_cells(thing.name, thing.color)
            alike = [i for i, t in enumerate(scene.things, 1) if t.label == thing.label]
            assert set(alike) == set(cells[cells > 0].tolist())
            across, down = scene.width / GRID, scene.height / GRID
            for cell in np.flatnonzero(cells):
                left, top, right, bottom = scene.things[cells[cell] - 1].box()
                row, column = divmod(int(cell), GRID)
                assert left < (column + 1.15) * across  # labels are as fine as an eighth of a cell
                assert right > (column - 0.15) * across
                assert top < (row + 1.15) * down
                assert bottom > (row - 0.15) * down
                checked += 1
        absent = next(n for n in drawings.drawing_names() if all(t.name != n for t in scene.things))
        assert not places.things_in_cells(absent, None).any()
    assert checked > 300


def test_letters_are_looked_for_from_left_to_right() -> None:
    rng = np.random.default_rng(43)
    for _ in range(20):
        scene = composition.sample(rng, "text")
        word = scene.words[0]
        cells = [found for found in locations_of(scene).letter_cells(word) if found.any()]
        columns = [(np.arange(TOKENS) % GRID * found).sum() / found.sum() for found in cells]
        assert len(cells) >= min(2, len(word.text))
        if abs(word.angle) < 5:
            assert columns == sorted(columns)


def test_grounding_points_at_the_tokens_that_name(finder: MentionFinder, tokenizer: Any) -> None:
    rng = np.random.default_rng(47)
    packer = Packer(tokenizer)
    scene = next(
        s
        for s in (composition.sample(rng, "single", shapes=0.0) for _ in range(100))
        if len(tokenizer.encode(" " + s.things[0].name)) == 1
    )
    name = scene.things[0].name
    row = packer.row([packer.segment([(f"Where is the {name}?", f"the {name}")], 1)])
    batch = attention_targets(finder, [row], [[locations_of(scene)]])
    token = tokenizer.encode(" " + name)[0]
    named_at, said = batch["named_at"][:, 1].tolist(), batch["output_at"][:, 1].tolist()
    assert [row["ids"][at] for at in named_at] == [token, token]
    article = tokenizer.encode(" the")[0]  # "a" or "an" depends on what is to be named
    assert {int(row["targets"][at]) for at in said} == {article, token}
    assert torch.equal(batch["named_things"][0] > 0, batch["output_cells"][0])
    assert batch["named_things"].max(1).values.tolist() == [1, 1]
    assert batch["named_counts"].tolist() == [[1], [1]]
    left, top, right, bottom = scene.things[0].box()
    sides = [(right - left) / scene.width, (bottom - top) / scene.height]
    middle = [(left + right) / 2 / scene.width, (top + bottom) / 2 / scene.height]
    assert np.allclose(batch["named_boxes"], [middle + sides] * 2, atol=1e-4)


def output_cells(
    batch: dict[str, Any], row: dict[str, Any], tokenizer: Any
) -> dict[str, list[int]]:
    """Return the target cells before each token of a row's answers, by the text up to the token."""
    answers = row["targets"] >= 0
    first = int(np.flatnonzero(answers)[0])
    return {
        tokenizer.decode(row["targets"][first : int(at) + 1]): cells.nonzero().squeeze(1).tolist()
        for (_, at), cells in zip(batch["output_at"], batch["output_cells"], strict=True)
    }


def test_the_tokens_of_a_box_look_at_its_thing(finder: MentionFinder, tokenizer: Any) -> None:
    rng = np.random.default_rng(48)
    scene = composition.sample(rng, "mixed")
    places = locations_of(scene)
    for number, thing in enumerate(scene.things, 1):
        box = format_box(thing.box(), scene)
        row = Packer(tokenizer).row([Packer(tokenizer).segment([("And where is it?", box)], 1)])
        looked = output_cells(attention_targets(finder, [row], [[places]]), row, tokenizer)
        assert max(looked, key=len) == " " + box
        wanted = np.flatnonzero(places.things_in_cells(None, None) == number).tolist()
        assert all(cells == wanted for cells in looked.values())


def test_a_color_alone_looks_at_the_thing_that_has_it(
    finder: MentionFinder, tokenizer: Any
) -> None:
    rng = np.random.default_rng(49)
    scene = next(
        s
        for s in (composition.sample(rng, "mixed") for _ in range(99))
        if any(map(_color, s.things))
    )
    color = next(filter(None, map(_color, scene.things)))
    packer, places = Packer(tokenizer), locations_of(scene)
    row = packer.row([packer.segment([("What color is it?", color)], 1)])
    looked = output_cells(attention_targets(finder, [row], [[places]]), row, tokenizer)
    assert looked == {f" {color}": np.flatnonzero(places.things_in_cells(None, color)).tolist()}


def _color(thing: composition.Thing) -> str | None:
    return thing.color


def test_a_thing_that_is_gone_is_looked_for_in_both_images(
    finder: MentionFinder, tokenizer: Any
) -> None:
    """The tokens of the first cannot know of the second: only the second's show a difference."""
    rng = np.random.default_rng(50)
    pair = next(
        p
        for p in (sample_pair(rng, shapes=0.0) for _ in range(200))
        if p.change is not None and p.change.kind == "gone"
    )
    assert pair.change is not None and pair.change.before is not None
    name = pair.change.before.name
    packer = Packer(tokenizer)
    row = packer.row([packer.segment([("What changed?", f"the {name} is gone")], 2)])
    shown = [locations_of(pair.first), locations_of(pair.second)]
    looked = output_cells(attention_targets(finder, [row], [shown]), row, tokenizer)
    cells = np.flatnonzero(shown[0].things_in_cells(name, None)).tolist()
    assert not shown[1].things_in_cells(name, None).any()
    assert next(iter(looked.values())) == cells + [TOKENS + cell for cell in cells]


def test_things_of_two_images_are_counted_apart(finder: MentionFinder, tokenizer: Any) -> None:
    rng = np.random.default_rng(51)
    scene = next(
        s
        for s in (composition.sample(rng, "crowd") for _ in range(200))
        if len({t.name for t in s.things}) == 1 and len(s.things) > 2
    )
    packer, places = Packer(tokenizer), locations_of(scene)
    many = WORDINGS["en"].slots(scene.things[0].name, None)["many"]
    row = packer.row([packer.segment([(f"Which picture has more {many}?", "the first")], 2)])
    batch = attention_targets(finder, [row], [[places, places]])
    things = batch["named_things"][0]
    assert batch["named_counts"][0].tolist() == [len(scene.things)] * 2
    assert things.max() == 2 * len(scene.things)
    assert set(things.tolist()) == set(range(2 * len(scene.things) + 1))


def test_attention_is_that_of_transformers(tokenizer: Any) -> None:
    special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens}
    torch.manual_seed(5)
    model = new_model(nano_config(special), torch.rand(30, 3, TILE, TILE))
    model.set_attn_implementation("eager")
    owner = torch.tensor([[0] * 8 + [1] * 7 + [2] * 9, [0] * 8 + [1] * 12 + [-2] * 4])
    positions = torch.arange(24).expand(2, -1)
    out = model.model.text_model(
        inputs_embeds=torch.randn(2, 24, 256),
        attention_mask=attention_mask(owner),
        position_ids=positions,
        output_hidden_states=True,
        output_attentions=True,
        use_cache=False,
    )
    looked = AttentionProbe(model, out.hidden_states, {"owner": owner, "positions": positions})
    for layer, head in product(range(4), range(4)):
        at = torch.tensor([[0, 12], [0, 20], [1, 19]])
        shares = looked.log_shares((layer, head), at).exp()
        torch.testing.assert_close(shares, out.attentions[layer][at[:, 0], head, at[:, 1]])


class Fixed:
    """Heads that look at cells with given shares."""

    def __init__(self, shares: torch.Tensor) -> None:
        self._log = shares.log()

    def log_shares(self, which: tuple[int, int], at: torch.Tensor) -> torch.Tensor:
        return self._log


def test_counting_wants_equal_shares_whatever_the_sizes() -> None:
    """A thing's share may lie on any of its cells; the first token has that of three things."""
    things = torch.zeros(1, TOKENS, dtype=torch.long)
    things[0, :6] = 1
    things[0, 9] = 2
    nothing = torch.zeros(0, 2, dtype=torch.long)
    batch = {
        "named_at": torch.tensor([[0, 150]]),
        "named_things": things,
        "output_at": nothing,
        "output_cells": torch.zeros(0, TOKENS, dtype=torch.bool),
    }

    def off(first: float, one: float, two: float, background: float = 1e-9) -> float:
        shares = torch.full((1, 160), 1e-9)
        shares[0, 0], shares[0, 7], shares[0, 5 + 9], shares[0, 90] = first, one, two, background
        heads: Any = Fixed(shares)
        return attention_loss(heads, batch, [5])[1]["count"]

    assert abs(off(0.6, 0.2, 0.2)) < 1e-4
    assert off(0.3, 0.35, 0.35) > 0.03
    assert off(0.3, 0.2, 0.2, background=0.3) > 0.3
    assert off(0.6, 0.4, 1e-6) > 1


def test_numbers_and_boxes_are_learnt_from_the_words_own_tokens() -> None:
    """Only their rows of one layer tell anything, so that no other position or layer will do."""
    torch.manual_seed(6)
    numbers = torch.tensor([[0], [1], [4], [9]])
    boxes = torch.full((4, 4), torch.nan)
    boxes[1] = torch.tensor([0.2, 0.7, 0.1, 0.3])
    at = torch.tensor([[0, 3], [0, 7], [1, 2], [1, 8]])
    hidden = [torch.zeros(2, 10, 256) for _ in range(6)]
    hidden[MENTION_LAYER + 1][at[:, 0], at[:, 1]] = torch.randn(4, 256)
    batch = {"named_at": at, "named_counts": numbers, "named_boxes": boxes}
    heads = MentionHeads()
    optimizer = torch.optim.Adam(heads.parameters(), 1e-3)
    for _ in range(200):
        loss, figures = heads(hidden, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["numbered"] == figures["numbered_many"] == 1
    assert figures["box_off"] < 0.02
