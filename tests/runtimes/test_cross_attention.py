"""Cross-attention of the ONNX decoder against transformers' Mllama."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import MllamaForConditionalGeneration
from transformers.models.mllama.modeling_mllama import _prepare_cross_attention_mask
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from edgevlm.cancellation import CancelSignal
from edgevlm.errors import CancelledError, InferenceError, InputError
from edgevlm.export.checkpoint import Checkpoint
from edgevlm.export.onnx_decoder_files import write_graphs
from edgevlm.export.plan import make_plan
from edgevlm.runtimes.onnx.decoder import OnnxDecoder
from edgevlm.runtimes.protocols import CrossStates, Place
from tests.families.mllama import mllama
from tests.support.tiny_decoder import relative_error

ROWS, TILES, WIDTH = 17, 4, 64
EXACT = 2e-6
Image = tuple[NDArray[np.float32], int]
"""States, and the number of tiles that are there."""


class Model:
    """transformers' model and our decoder of the same weights."""

    def __init__(self, folder: Path) -> None:
        checkpoint = mllama(folder / "checkpoint")
        plan = make_plan(Checkpoint(checkpoint, "mllama", None))
        files = write_graphs(plan, folder, ["fp32"], ["fp32"], progress=False)
        self.image = plan.checkpoint.config.image_token_id
        self.reference: Any = MllamaForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.decoder = OnnxDecoder(
            files["fp32"],
            tokenizer=folder / "decoder.tokenizer.json",
            embeddings=folder / "decoder.embeddings.npy",
            context_length=256,
            device="cpu",
            threads=1,
        )

    @torch.no_grad()
    def logits(self, ids: Sequence[int], images: Sequence[Image]) -> NDArray[np.float32]:
        """Return transformers' logits ``[entries, vocabulary]``."""
        text = self.reference.model.language_model
        settings: dict[str, Any] = {}
        if images:
            dense = convert_sparse_cross_attention_mask_to_dense(
                [get_cross_attention_token_mask(list(ids), self.image)],
                [[tiles for _, tiles in images]],
                TILES,
                len(ids),
            )
            mask, rows = _prepare_cross_attention_mask(torch.tensor(dense), ROWS, torch.float32)
            settings = {
                "cross_attention_states": torch.tensor(np.concatenate([one for one, _ in images]))[
                    None
                ],
                "cross_attention_mask": mask,
                "full_text_row_masked_out_mask": rows,
            }
        hidden = text(input_ids=torch.tensor([list(ids)]), use_cache=False, **settings)
        found: NDArray[np.float32] = self.reference.lm_head(hidden.last_hidden_state)[0].numpy()
        return found

    def start(self, ids: Sequence[int], images: Sequence[Image]) -> None:
        """Empty the KV cache, and let cross-attention see the images of a prompt."""
        self.decoder.truncate(Place())
        places = [entry for entry, token in enumerate(ids) if token == self.image]
        self.decoder.set_images(
            [
                CrossStates(entry, states, tiles * ROWS)
                for entry, (states, tiles) in zip(places, images, strict=True)
            ]
        )

    def decode(self, ids: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Decode tokens from an entry on, and return the logits after the last."""
        positions = np.arange(first, first + len(ids), dtype=np.int32)
        self.decoder.decode_tokens(list(ids), positions, logits=True)
        return self.decoder.logits()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(tmp_path_factory.mktemp("mllama"))
    yield model
    model.decoder.close()


def some_images(count: int, seed: int = 0) -> list[Image]:
    random = np.random.default_rng(seed)
    return [
        (
            random.standard_normal((TILES * ROWS, WIDTH), np.float32),
            int(random.integers(1, TILES + 1)),
        )
        for _ in range(count)
    ]


@given(data=st.data())
def test_prompts_of_any_arrangement(model: Model, data: st.DataObject) -> None:
    """Texts and images in any order, images side by side or not; decoded in any parts."""
    kinds = data.draw(st.lists(st.booleans(), min_size=1, max_size=12))
    ids = [model.image if image else 5 + 7 * place for place, image in enumerate(kinds)]
    images = some_images(sum(kinds), data.draw(st.integers(0, 9)))
    expected = model.logits(ids, images)
    model.start(ids, images)
    done = 0
    while done < len(ids):
        size = data.draw(st.integers(1, len(ids) - done))
        found = model.decode(ids[done : done + size], done)
        done += size
        assert relative_error(found, expected[done - 1]) < EXACT


def test_a_cut_keeps_the_images(model: Model) -> None:
    ids = [1, 2, model.image, 9, 8, 7]
    images = some_images(1)
    model.start(ids, images)
    model.decode(ids)
    assert model.decoder.truncate(Place(4, 4))
    expected = model.logits([*ids[:4], 30, 31], images)[-1]
    assert relative_error(model.decode([30, 31], 4), expected) < EXACT


def test_branches_share_the_images_and_keep_them(model: Model) -> None:
    ids, images = [1, model.image, model.image, 4], some_images(2, 3)
    model.start(ids, images)
    model.decode(ids)
    first, second = model.decoder.branch(), model.decoder.branch()
    other = some_images(1, 5)
    model.start([model.image, 3], other)
    held = model.decode([model.image, 3])
    assert relative_error(held, model.logits([model.image, 3], other)[-1]) < EXACT
    found = model.decoder.decode_branches([first, second, first], [11, 12, 13])
    for row, more in enumerate(([11], [12], [11, 13])):
        assert relative_error(found[row], model.logits([*ids, *more], images)[-1]) < EXACT
    model.decoder.drop(first)
    model.decoder.drop(second)
    assert (
        relative_error(model.decode([6], 2), model.logits([model.image, 3, 6], other)[-1]) < EXACT
    )


def test_a_copy_holds_the_images(model: Model) -> None:
    ids, images = [1, model.image, 3, model.image, 5], some_images(2, 7)
    model.start(ids, images)
    model.decode(ids)
    copy = model.decoder.save()
    model.start([2], [])
    assert relative_error(model.decode([2]), model.logits([2], [])[-1]) < EXACT
    branch = model.decoder.branch_of_copy(copy, Place(5, 5))
    expected = model.logits([*ids, 21], images)[-1]
    assert relative_error(model.decoder.decode_branches([branch], [21])[0], expected) < EXACT
    model.decoder.drop(branch)
    model.decoder.restore(copy, Place(5, 5))
    assert relative_error(model.decode([21], 5), expected) < EXACT
    assert model.decoder._open_graph().images is not None


def test_damaged_copies_are_refused(model: Model) -> None:
    ids, images = [1, model.image, 3], some_images(1)
    model.start(ids, images)
    model.decode(ids)
    copy = model.decoder.save()
    damaged = copy.copy()
    damaged[-16:] = 255
    for wrong in (copy[:-4], copy[:-1], copy[:100], copy[:0], damaged, np.append(copy, copy)):
        with pytest.raises(InferenceError, match="could not be restored"):
            model.decoder.restore(wrong, Place(3, 3))
        assert relative_error(model.decode([2]), model.logits([2], [])[-1]) < EXACT
        model.decoder.truncate(Place())


def test_images_that_are_refused(model: Model) -> None:
    states = some_images(1)[0][0]
    model.start([1, 2], [])
    model.decode([1, 2])
    with pytest.raises(InputError, match="has 2 entries"):
        model.decoder.set_images([])
    model.decoder.truncate(Place())
    for wrong, message in (
        (CrossStates(0, states[:, :-1], 1), "shape"),
        (CrossStates(0, states.astype(np.float64), 1), "float32"),
        (CrossStates(0, states, 0), "seen"),
        (CrossStates(0, states, len(states) + 1), "seen"),
        (CrossStates(0, np.full_like(states, np.nan), 1), "NaN"),
    ):
        with pytest.raises(InputError, match=message):
            model.decoder.set_images([wrong])


def test_a_cancelled_call_leaves_no_image(model: Model) -> None:
    ids, images = [model.image, 3], some_images(1)
    signal = CancelSignal()
    signal.cancel()
    model.decoder.truncate(Place())
    with pytest.raises(CancelledError):
        model.decoder.set_images([CrossStates(0, *images[0])], cancel=signal)
    assert relative_error(model.decode([4]), model.logits([4], [])[-1]) < EXACT
    model.start(ids, images)
    assert relative_error(model.decode(ids), model.logits(ids, images)[-1]) < EXACT


def test_memory_of_images_is_given_back(model: Model) -> None:
    memory = model.decoder._open_graph().images
    assert memory is not None
    model.start([model.image] * 8, some_images(8))
    assert memory.cells == 768
    model.start([3], [])
    model.decode([3])
    assert memory.cells == 256
