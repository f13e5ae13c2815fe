"""What the decoder's attention is taught to look at."""

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

from edgevlm.evaluation import drawings, scenes
from edgevlm.evaluation.wording import WORDINGS, noun
from training import labels
from training.dialogues import Packer, attention
from training.grounding import SIDE, Attention, Finder, Places, ground
from training.model import GRID, TILE, TOKENS, nano_config, new_model

NANO = Path(__file__).parents[1] / "training" / "nano"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(NANO)


@pytest.fixture(scope="module")
def finder(tokenizer: Any) -> Finder:
    return Finder(tokenizer)


def places_of(scene: scenes.Scene) -> Places:
    return Places(scene, labels.label(scene, GRID))


NAMES = st.sampled_from(list(drawings.nouns()))
COLORS = st.sampled_from([None, *scenes.COLORS])


@settings(max_examples=150, deadline=None)
@given(name=NAMES, color=COLORS, language=st.sampled_from(["en", "ru"]), plural=st.booleans())
def test_each_form_of_a_noun_is_found(
    finder: Finder, tokenizer: Any, name: str, color: str | None, language: str, plural: bool
) -> None:
    words = WORDINGS[language].filling(name, color)
    text = words["many"] if plural else WORDINGS[language].a(name, color)
    ids = tokenizer.encode(f"Assistant: {text}, yes.", add_special_tokens=False)
    found = [mention for mention in finder.mentions(ids) if mention.name]
    assert [(m.name, m.color) for m in found] == [(name, color)]
    known = noun(name)
    spoken = tokenizer.decode(ids[found[0].noun_start : found[0].end + 1]).strip()
    assert spoken in {known.name, known.plural, known.russian, known.genitive_plural}
    assert found[0].heard[-1] == found[0].end


def test_a_word_that_begins_like_a_noun_is_no_mention(finder: Finder, tokenizer: Any) -> None:
    for text in (" category", " carpet", " котёл", " redness"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert not [m for m in finder.mentions(ids) if m.end < len(ids) - 1], text


def test_places_are_where_things_are() -> None:
    rng = np.random.default_rng(41)
    checked = 0
    for layout in ("single", "mixed", "nested") * 20:
        scene = scenes.sample(rng, layout)
        places = places_of(scene)
        for thing in scene.things:
            cells, centres = places.of(thing.name, thing.color)
            alike = [t for t in scene.things if t.label == thing.label]
            assert centres.sum() == len(alike)
            x, y = scene.place(thing)
            assert centres[int(y * SIDE) * SIDE + int(x * SIDE)] >= 1
            left, top, right, bottom = np.array([t.box() for t in alike]).T
            for cell in np.flatnonzero(cells):
                row, column = divmod(int(cell), SIDE)
                across, down = scene.width / SIDE, scene.height / SIDE
                inside = (
                    (left < (column + 1.1) * across)  # labels are as fine as an eighth of a cell
                    & (right > (column - 0.1) * across)
                    & (top < (row + 1.1) * down)
                    & (bottom > (row - 0.1) * down)
                )
                assert inside.any()
                checked += 1
        absent = next(n for n in drawings.things() if all(t.name != n for t in scene.things))
        cells, centres = places.of(absent, None)
        assert not cells.any() and not centres.any()
    assert checked > 300


def test_letters_are_looked_for_from_left_to_right() -> None:
    rng = np.random.default_rng(43)
    for _ in range(20):
        scene = scenes.sample(rng, "text")
        word = scene.words[0]
        cells = [found for found in places_of(scene).of_letters(word) if found.any()]
        columns = [(np.arange(TOKENS) % SIDE * found).sum() / found.sum() for found in cells]
        assert len(cells) >= min(2, len(word.text))
        if abs(word.angle) < 5:
            assert columns == sorted(columns)


def test_grounding_points_at_the_tokens_that_name(finder: Finder, tokenizer: Any) -> None:
    rng = np.random.default_rng(47)
    packer = Packer(tokenizer)
    scene = next(
        s
        for s in (scenes.sample(rng, "single", shapes=0.0) for _ in range(100))
        if len(tokenizer.encode(" " + s.things[0].name)) == 1
    )
    name = scene.things[0].name
    row = packer.row([packer.segment([(f"Where is the {name}?", f"the {name}")], 1)])
    batch = ground(finder, [row], [[places_of(scene)]])
    token = tokenizer.encode(" " + name)[0]
    heard, said = batch["heard_at"][:, 1].tolist(), batch["said_at"][:, 1].tolist()
    assert [row["ids"][at] for at in heard] == [token, token]
    assert [row["targets"][at] for at in said] == [token]
    assert torch.equal(batch["heard_cells"][0], batch["said_cells"][0])
    assert batch["heard_centres"].sum(1).tolist() == [1, 1]


def test_attention_is_that_of_transformers(tokenizer: Any) -> None:
    special = {t: tokenizer.convert_tokens_to_ids(t) for t in tokenizer.all_special_tokens}
    torch.manual_seed(5)
    model = new_model(nano_config(special), torch.rand(30, 3, TILE, TILE))
    model.set_attn_implementation("eager")
    owner = torch.tensor([[0] * 8 + [1] * 7 + [2] * 9, [0] * 8 + [1] * 12 + [-2] * 4])
    positions = torch.arange(24).expand(2, -1)
    out = model.model.text_model(
        inputs_embeds=torch.randn(2, 24, 256),
        attention_mask=attention(owner),
        position_ids=positions,
        output_hidden_states=True,
        output_attentions=True,
        use_cache=False,
    )
    looked = Attention(model, out.hidden_states, {"owner": owner, "positions": positions})
    for layer, head in product(range(4), range(4)):
        at = torch.tensor([[0, 12], [0, 20], [1, 19]])
        shares = looked.log_shares((layer, head), at).exp()
        torch.testing.assert_close(shares, out.attentions[layer][at[:, 0], head, at[:, 1]])
